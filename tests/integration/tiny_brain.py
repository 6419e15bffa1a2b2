"""A Brain of three linear layers: loops of recipes in seconds."""

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from speechbrain_stablequant import PostTrainingQuantizer

SIZE = 16


class Data(torch.utils.data.Dataset):
    """Random inputs with the sign of a random projection."""

    def __init__(self, count=64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, SIZE, generator=generator)
        projection = torch.randn(
            SIZE, generator=torch.Generator().manual_seed(99)
        )
        self.y = (self.x @ projection > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class TinyBrain(sb.Brain):
    """Classifies; keeps checkpoints by two keys."""

    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.net(batch[0]).relu())

    def compute_objectives(self, predictions, batch, stage):
        return nn.functional.cross_entropy(predictions, batch[1])

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID:
            meta = {"loss": float(stage_loss), "up": float(epoch)}
            self.checkpointer.save_and_keep_only(
                meta=meta, min_keys=["loss", "up"]
            )


def build(folder, cls=TinyBrain, net=None, lr=0.01, run_opts=None, **knobs):
    """Return a Brain with a block, its epoch counter in the hparams."""
    torch.manual_seed(0)
    modules = {
        "net": net
        or nn.Sequential(nn.Linear(SIZE, 32), nn.ReLU(), nn.Linear(32, 32)),
        "head": nn.Linear(32, 2),
    }
    counter = EpochCounter(knobs.pop("float_epochs", 3))
    checkpointer = Checkpointer(
        folder / "save", {**modules, "counter": counter}
    )
    training = {"epochs": 4, **knobs.pop("training", {})}
    ptq = PostTrainingQuantizer(
        checkpointer=checkpointer,
        method="quantization_aware",
        training=training,
        plots=knobs.pop("plots", False),
        **{"bits": "W2A8", "min_coverage": 0.1, "min_key": "loss", **knobs},
    )
    hparams = {
        "output_folder": str(folder),
        "ptq": ptq,
        "checkpointer": checkpointer,
        "counter": counter,
    }
    return cls(
        modules,
        lambda parameters: torch.optim.Adam(parameters, lr=lr),
        hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer=checkpointer,
    )


def fit(brain, train_set=None):
    """Train as a recipe does, on batches of eight."""
    options = {"batch_size": 8}
    brain.fit(
        brain.hparams.counter,
        Data() if train_set is None else train_set,
        Data(32, seed=1),
        train_loader_kwargs=options,
        valid_loader_kwargs=options,
    )


def evaluate(brain, **keys):
    """Evaluate as a recipe does; the report's test of this pass."""
    brain.evaluate(
        Data(64, seed=2), test_loader_kwargs={"batch_size": 8}, **keys
    )
    return brain.hparams.ptq.report.tests[-1]


def values(brain) -> dict[str, torch.Tensor]:
    """Return a copy of all values."""
    state = brain.modules.state_dict()
    return {key: value.clone() for key, value in state.items()}

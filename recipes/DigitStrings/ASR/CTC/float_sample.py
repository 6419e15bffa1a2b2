#!/usr/bin/env python3
"""The float model that the demo starts from, kept in the folder ``sample``.

To make the sample from an experiment, do the following:
> python float_sample.py results/demo/1986

The weights are safetensors, which nobody has to trust; the demo makes a
checkpoint of SpeechBrain's from them.
"""

import shutil
import sys
from pathlib import Path

from hyperpyyaml import load_hyperpyyaml
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from speechbrain import Brain

HERE = Path(__file__).resolve().parent
SAMPLE = HERE / "sample"
WEIGHTS = "model.safetensors"
LABELS = "label_encoder.txt"


def make_brain(folder: Path) -> Brain:
    """Make a Brain of the recipe's model, with its folder of checkpoints."""
    text = (HERE / "hparams" / "demo.yaml").read_text(encoding="utf-8")
    hparams = load_hyperpyyaml(text, {"output_folder": str(folder)})
    return Brain(
        hparams["modules"],
        hparams=hparams,
        checkpointer=hparams["checkpointer"],
    )


def write_sample(folder: Path, sample: Path = SAMPLE) -> None:
    """Write the best checkpoint of an experiment as the sample.

    Arguments
    ---------
    folder : Path
        Output folder of the recipe.
    sample : Path
        Folder of the sample.
    """
    brain = make_brain(folder)
    best = brain.checkpointer.recover_if_possible(min_key="WER")
    if best is None:
        sys.exit(f"{folder} has no checkpoint: train first, with train.py.")
    sample.mkdir(exist_ok=True)
    # SpeechBrain chooses a checkpoint by its validation WER and logs its epoch.
    notes = {
        "WER": str(best.meta["WER"]),
        "epoch": str(brain.hparams.epoch_counter.current),
    }
    save_model(brain.modules, str(sample / WEIGHTS), notes)
    shutil.copy(folder / "save" / LABELS, sample)


def restore_sample(folder: Path, sample: Path = SAMPLE) -> None:
    """Write the sample as the checkpoint that training leaves behind.

    It has no states of the optimizers: it is for tests, not to train on.

    Arguments
    ---------
    folder : Path
        Output folder of the recipe. One with checkpoints of a training is
        refused: their letters may be numbered in another order.
    sample : Path
        Folder of the sample.
    """
    trained = sorted((folder / "save").glob("CKPT*"))
    if any(path.name != "CKPT+sample" for path in trained):
        sys.exit(
            f"{folder} has checkpoints of a training: give another "
            "--output_folder, or train anew with --train (make demo TRAIN=1)."
        )
    brain = make_brain(folder)
    load_model(brain.modules, sample / WEIGHTS)
    brain.hparams.label_encoder.load(sample / LABELS)
    with safe_open(sample / WEIGHTS, "pt") as file:
        notes = file.metadata()
    brain.hparams.epoch_counter.current = int(notes["epoch"])
    brain.checkpointer.save_checkpoint(
        meta={"WER": float(notes["WER"])}, name="sample"
    )
    # The recipe would otherwise number the letters as they come in the speech
    # at hand, and the model has been trained on another order.
    shutil.copy(sample / LABELS, folder / "save")


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))

"""``when: fit``: recipes that never call ``evaluate``."""

import pytest
import torch
import yaml

from speechbrain_stablequant import QuantizationPlan, load_quantized
from speechbrain_stablequant.errors import KnobError
from tests.integration import folders, toy
from tests.integration.conftest import copy_experiment

FIT = "ptq: {when: fit, method: uniform}"


class BadLastEpoch(toy.ToyASR):
    """Ends with an epoch that is much worse than the best one."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == toy.sb.Stage.TRAIN and epoch == 22:
            with torch.no_grad():
                self.modules.ctc_lin.w.weight.mul_(-1.0)


class TwoKeys(toy.ToyASR):
    """Keeps checkpoints by two keys: which one is the best is open."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == toy.sb.Stage.VALID:
            wer = self.wer_metric.summarize("error_rate")
            meta = {"WER": wer, "loss": float(stage_loss)}
            self.checkpointer.save_and_keep_only(
                meta=meta, min_keys=["WER", "loss"]
            )


@pytest.fixture(scope="module")
def both(trained, tmp_path_factory):
    """Train on to a bad end, without the block and with it."""
    runs = []
    for name, block in (("plain", ""), ("ptq", toy.BLOCK)):
        folder = tmp_path_factory.mktemp("fit") / name
        copy_experiment(trained, folder)
        overrides = "number_of_epochs: 22\n" + (FIT if block else "")
        hparams = toy.load(folder, overrides, block)
        runs.append((folder, toy.run(hparams, BadLastEpoch, tests=())[0]))
    return runs


def kept(folder) -> dict[str, dict]:
    """Return what each checkpoint says about itself, the worst WER first."""
    found = {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in (folder / "save").glob("CKPT+*/CKPT.yaml")
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]["WER"]))


def test_search_and_validation_are_reported(float_run, experiment):
    plain, _, _ = float_run
    brain, _ = toy.run(toy.load(experiment, "ptq: {when: fit}"), tests=())
    found = folders.report(experiment)
    assert [test["name"] for test in found["tests"]] == ["validation"]
    assert found["search"]["joint"]["metric"] == "WER"
    rows = found["tests"][0]["metrics"]
    for name in ("float", "quantized"):  # the search saw all of the set, too
        joint = found["search"]["joint"][name]
        assert rows["WER"][name] == pytest.approx(joint)
    assert (experiment / "ptq" / "checkpoint" / "wav2vec2.ckpt").is_file()
    assert folders.saved(experiment) == folders.saved(plain)
    assert brain.hparams.ptq.report.table().startswith("PTQ W8A8")


def test_best_checkpoint_is_quantized(both):
    _, (folder, brain) = both
    *_, (best, meta) = kept(folder).items()
    (worst, worst_meta), *_ = kept(folder).items()
    assert worst_meta["WER"] > meta["WER"] + 30  # so that it matters
    found = folders.report(folder)
    assert found["weights"] == {
        "checkpoint": best,
        "key": "WER",
        "choice": "lowest",
        "value": meta["WER"],
    }
    wer = found["tests"][0]["metrics"]["WER"]
    assert wer["float"] == pytest.approx(meta["WER"])
    assert wer["quantized"] < worst_meta["WER"] - 20
    assert f"quantized: {best}, lowest WER" in (
        (folder / "train_log.txt").read_text()
    )
    model = toy.load(folder, block="")["model"]
    load_quantized(model, folder / "ptq" / "checkpoint" / "model.ckpt")
    floats = torch.load(folder / "save" / best / "model.ckpt")
    assert torch.allclose(model[1].w.weight, floats["1.w.weight"], atol=0.02)


def test_fit_leaves_the_brain_where_training_has_left_it(both):
    (plain, float_brain), (folder, brain) = both
    before, after = (
        folders.Snapshot(b.modules).values for b in (float_brain, brain)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert folders.saved(folder) == folders.saved(plain)
    assert brain.step == float_brain.step
    assert brain.optimizer_step == float_brain.optimizer_step
    state, float_state = (
        b.optimizer.state_dict()["state"] for b in (brain, float_brain)
    )
    for index, values in float_state.items():
        for name, value in values.items():
            assert torch.equal(value, state[index][name])
    assert "delete_checkpoints" not in vars(brain.checkpointer)
    optimized = {
        id(p) for group in brain.optimizer.param_groups for p in group["params"]
    }
    assert {id(p) for p in brain.modules.parameters()} <= optimized


def test_key_is_remembered_when_nothing_is_left_to_train(both, tmp_path):
    """An interrupted search goes on with the same weights."""
    _, (folder, _) = both
    again = copy_experiment(folder, tmp_path / "again")
    hparams = toy.load(again, f"number_of_epochs: 22\n{FIT}")
    toy.run(hparams, BadLastEpoch, tests=())
    assert folders.report(again)["weights"] == folders.report(folder)["weights"]
    one, two = (f / "ptq" / "checkpoint" for f in (folder, again))
    names = {path.name for path in one.iterdir()}
    assert "model.ckpt" in names
    for name in names - {"label_encoder.ckpt"}:
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("run_opts", [{}, {"test_only": True}])
def test_key_of_the_user(both, tmp_path, run_opts):
    _, (folder, _) = both
    again = copy_experiment(folder, tmp_path / "again")
    overrides = "ptq: {when: fit, method: uniform, max_key: WER}"
    hparams = toy.load(again, f"number_of_epochs: 22\n{overrides}")
    toy.run(hparams, BadLastEpoch, run_opts, tests=())
    (worst, meta), *_ = kept(again).items()
    found = folders.report(again)
    assert found["weights"]["checkpoint"] == worst
    wer = found["tests"][0]["metrics"]["WER"]["float"]
    assert wer == pytest.approx(meta["WER"])


def test_several_keys_choose_nothing(trained, tmp_path, caplog):
    folder = copy_experiment(trained, tmp_path / "experiment")
    hparams = toy.load(folder, f"number_of_epochs: 21\n{FIT}")
    toy.run(hparams, TwoKeys, tests=())
    assert folders.report(folder)["weights"]["checkpoint"] is None
    assert "several keys (min_key WER, min_key loss)" in caplog.text
    assert "quantized: the weights that fit left" in caplog.text


def test_plan_of_weights_needs_no_validation_set(experiment):
    overrides = "ptq: {when: fit, method: uniform, bits: W8}"
    hparams = toy.load(experiment, overrides)
    brain = toy.build(hparams)
    brain.fit(brain.hparams.epoch_counter, toy.datasets(hparams)["train"])
    assert folders.report(experiment)["tests"] == []
    assert QuantizationPlan.load(experiment / "ptq" / "plan.json").layers


def test_unknown_key_names_the_nearest(experiment):
    hparams = toy.load(experiment, "ptq: {when: fit, min_key: WERR}")
    with pytest.raises(KnobError, match="min_key 'WERR'.*mean 'WER'"):
        toy.run(hparams, tests=())


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ("when: fit, min_key: WER, max_key: ACC", "exclude each other"),
        ("min_key: WER", "goes with when: fit"),
    ],
)
def test_keys_that_make_no_sense(tmp_path, knobs, problem):
    with pytest.raises(KnobError, match=problem):
        toy.load(tmp_path, f"ptq: {{{knobs}}}")

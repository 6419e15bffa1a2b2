"""Whatever a recipe does in its test pass, the float model comes back."""

import pytest
import torch

from tests.integration import bad_recipes, folders, toy
from tests.integration.conftest import copy_experiment

QUICK = "ptq: {search_utterances: 6, calibration_utterances: 6}"
SEARCHER = f"""
searcher: !new:{bad_recipes.__name__}.AliasSearcher
    modules: [!ref <enc>, !ref <ctc_lin>]
"""
BAD = [
    bad_recipes.Saver,
    bad_recipes.Averager,
    bad_recipes.Recoverer,
    bad_recipes.Deleter,
    bad_recipes.Writer,
    bad_recipes.Gambler,
    bad_recipes.Searcher,
]


def run_both(trained, tmp_path, brain_class, epochs=0):
    """Run a recipe without and with the plugin, from the same checkpoints."""
    found = []
    for name, block in (("plain", ""), ("ptq", toy.BLOCK)):
        folder = copy_experiment(trained, tmp_path / name)
        extra = SEARCHER if brain_class is bad_recipes.Searcher else ""
        hparams = toy.load(folder, QUICK if block else "", extra + block)
        found.append((folder, hparams, *toy.run(hparams, brain_class)))
        if epochs:
            train_more(found[-1][2], hparams, epochs)
    return found


def train_more(brain, hparams, epochs):
    hparams["epoch_counter"].limit += epochs
    data = toy.datasets(hparams)
    brain.fit(
        hparams["epoch_counter"],
        data["train"],
        data["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )


@pytest.mark.parametrize("brain_class", BAD, ids=lambda c: c.__name__)
def test_folder_is_as_without_the_plugin(trained, tmp_path, brain_class):
    (plain, _, _, before), (folder, _, _, losses) = run_both(
        trained, tmp_path, brain_class
    )
    assert losses == before
    assert folders.saved(folder) == folders.saved(plain)
    mine, theirs = folders.results(folder), folders.results(plain)
    assert {name: mine.get(name) for name in theirs} == theirs
    extra = set(mine) - set(theirs)
    assert len(extra) >= len(theirs)
    assert all(name.rpartition(".")[0].endswith("_ptq") for name in extra)
    # The quantized pass took place, over other weights.
    for test in folders.report(folder)["tests"]:
        loss = test["metrics"]["loss"]
        assert loss["quantized"] != loss["float"]


def test_quantized_files_are_told_from_float_ones(trained, tmp_path):
    _, (folder, *_) = run_both(trained, tmp_path, bad_recipes.Writer)
    mine = folders.results(folder)
    for name in ("final.txt", "hyps/test-clean-0.txt", "loss.npy"):
        stem, _, ending = name.rpartition(".")
        assert f"{stem}_ptq.{ending}" in mine
    assert mine["final.txt"] != mine["final_ptq.txt"]
    last = folders.report(folder)["tests"][-1]["metrics"]
    written = mine["final_ptq.txt"].decode().split()
    assert float(written[0]) == last["loss"]["quantized"]
    assert float(written[1]) == last["WER"]["quantized"]


def test_aliases_are_quantized_too(trained, tmp_path):
    """A searcher that shares modules decodes with the quantized ones."""
    _, (folder, hparams, brain, _) = run_both(
        trained, tmp_path, bad_recipes.Searcher
    )
    assert hparams["searcher"].parts[1] is brain.modules["ctc_lin"]
    assert folders.report(folder)["coverage"]["fraction"] == 1.0


@pytest.mark.parametrize("brain_class", BAD, ids=lambda c: c.__name__)
def test_training_goes_on_as_without_the_plugin(trained, tmp_path, brain_class):
    """Checkpoints after another epoch are the same, byte for byte."""
    (plain, *_), (ptq, *_) = run_both(trained, tmp_path, brain_class, 1)
    for folder in (plain, ptq):
        assert "epoch: 21" in (folder / "train_log.txt").read_text()
    assert folders.saved(ptq) == folders.saved(plain)


def test_no_trace_in_the_brain(float_run, block_run):
    """Metrics, attributes and hooks are those of the float pass."""
    _, plain, _ = float_run
    _, brain, _ = block_run
    for name in ("wer_metric", "cer_metric"):
        mine, theirs = getattr(brain, name), getattr(plain, name)
        assert mine.scores == theirs.scores
    assert brain.step == plain.step
    assert set(vars(brain)) - set(vars(plain)) == {"_stablequant"}
    theirs = vars(plain.hparams)
    for name, value in vars(brain.hparams).items():
        if isinstance(value, (str, int, float)) and "folder" not in name:
            expected = theirs[name]
            if isinstance(expected, str):
                value = value.replace(
                    brain.hparams.output_folder, plain.hparams.output_folder
                )
            assert value == expected, name
    assert set(vars(brain.checkpointer)) - set(vars(plain.checkpointer)) == {
        "add_recoverable"
    }
    logger = brain.hparams.train_logger
    assert set(vars(logger)) == set(vars(plain.hparams.train_logger))
    for module, other in zip(brain.modules.modules(), plain.modules.modules()):
        assert type(module) is type(other) or _parametrized(module, other)
        assert set(vars(module)) == set(vars(other))
        assert module.training == other.training
        for key, value in vars(other).items():
            if "_hooks" in key:
                assert len(vars(module)[key]) == len(value)


def _parametrized(module, other):
    """Parametrized classes are made anew for each module, by torch."""
    return type(module).__name__ == type(other).__name__ and (
        torch.nn.utils.parametrize.is_parametrized(module)
    )


def test_result_paths_keep_their_type(experiment):
    """A Path among the hparams does not come back as a string."""
    hparams = toy.load(experiment, QUICK)
    data, brain = toy.datasets(hparams), toy.build(hparams)
    brain.fit([], data["train"], data["valid"])
    odd = f"{experiment}//./other.txt"
    brain.hparams.path_file, brain.hparams.odd_file = experiment / "a.txt", odd
    toy.evaluate(brain, hparams, data, "test-clean")
    assert brain.hparams.path_file == experiment / "a.txt"
    assert brain.hparams.odd_file == odd


# -- interruptions ------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("stop"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
@pytest.mark.parametrize("phase", ["calibration", "search", "pass"])
def test_interrupted(float_run, experiment, phase, error):
    plain, _, plain_losses = float_run
    hparams = toy.load(experiment, QUICK)
    data = toy.datasets(hparams)
    brain = toy.build(hparams, bad_recipes.Interrupted)
    brain.fit([], data["train"], data["valid"])
    brain.checkpointer.recover_if_possible(min_key="WER")
    snapshot, attributes = folders.Snapshot(brain.modules), set(vars(brain))

    bad_recipes.Interrupted.phase, bad_recipes.Interrupted.error = phase, error
    with pytest.raises(type(error)):
        toy.evaluate(brain, hparams, data, "test-clean")
    assert bad_recipes.Interrupted.error is None  # it came to that phase

    snapshot.check()
    assert set(vars(brain)) >= attributes
    assert "on_evaluate_start" not in vars(brain)
    for name in ("save_checkpoint", "recover_if_possible"):
        assert name not in vars(brain.checkpointer)
    assert "log_stats" not in vars(hparams["train_logger"])
    assert brain.hparams.test_wer_file == f"{experiment}/wer_test-clean.txt"
    assert folders.saved(experiment) == folders.saved(plain)
    written = folders.results(experiment)["wer_test-clean.txt"]
    assert written == folders.results(plain)["wer_test-clean.txt"]

    # ... and the Brain goes on as if nothing had been.
    again = [toy.evaluate(brain, hparams, data, n) for n in toy.TEST_SETS]
    assert again == plain_losses
    snapshot.check()
    mine, theirs = folders.results(experiment), folders.results(plain)
    assert {name: mine[name] for name in theirs} == theirs
    assert len(folders.report(experiment)["tests"]) == 2


@pytest.mark.parametrize("phase", ["calibration", "search"])
def test_interrupted_after_fit(experiment, phase):
    hparams = toy.load(experiment, "ptq: {when: fit}")
    data = toy.datasets(hparams)
    brain = toy.build(hparams, bad_recipes.Interrupted)
    snapshot = folders.Snapshot(brain.modules)
    brain.checkpointer.recover_if_possible()
    snapshot = folders.Snapshot(brain.modules)
    bad_recipes.Interrupted.phase = phase
    bad_recipes.Interrupted.error = RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"):
        brain.fit([], data["train"], data["valid"])
    snapshot.check()
    brain.fit([], data["train"], data["valid"])
    snapshot.check()
    assert (experiment / "ptq" / "report.json").is_file()


def test_infinite_metric_is_strict_json(experiment):
    """What overflows is null in the report, which stays readable."""
    hparams = toy.load(experiment, "ptq: {method: uniform}")
    toy.run(hparams, bad_recipes.Overflowing, tests=("test-clean",))
    row = folders.report(experiment)["tests"][0]["metrics"]["ratio"]
    assert (row["float"], row["quantized"], row["items"]) == (None, None, 16)

"""An interrupted search goes on where it stopped."""

import json

import pytest

from speechbrain_stablequant.errors import StableQuantError
from tests.integration import bad_recipes, folders, toy
from tests.integration.conftest import copy_experiment


class StopsInTheMiddle(toy.ToyASR):
    """Presses Ctrl-C after some passes with quantized layers."""

    passes = 20

    def compute_forward(self, batch, stage):
        names = {type(m).__name__ for m in self.modules.modules()}
        if any(name.startswith("Quantized") for name in names):
            self.hparams.passes = getattr(self.hparams, "passes", 0) + 1
            if self.hparams.passes > self.passes:
                raise KeyboardInterrupt
        return super().compute_forward(batch, stage)


def entries(journal) -> list:
    """Return the keys of a journal's complete lines."""
    found = []
    for line in journal.read_text().splitlines():
        entry = json.loads(line) if line.endswith("}") else {}
        found.append(entry.get("key"))
    return [key for key in found if key is not None]


@pytest.mark.parametrize("where", ["ptq", "quantized", "outside"])
def test_search_is_resumed(block_run, experiment, tmp_path, where):
    """The second run ends with the same plan and runs only the rest."""
    folder, _, _ = block_run
    results = (tmp_path if where == "outside" else experiment) / where
    overrides = f"ptq: {{output_folder: {results}}}"
    with pytest.raises(KeyboardInterrupt):
        toy.run(toy.load(experiment, overrides), StopsInTheMiddle)
    journal = results / "search.jsonl"
    candidates = [
        key for key in entries(journal) if not key.startswith("float")
    ]
    assert len(candidates) == StopsInTheMiddle.passes
    assert not (results / "plan.json").exists()

    with open(journal, "a") as file:
        file.write('{"key": "max wav2vec2.mod')  # cut off by the interruption
    toy.run(toy.load(experiment, overrides))

    assert (results / "plan.json").read_text() == (
        folder / "ptq" / "plan.json"
    ).read_text()
    found = folders.strict_json((results / "report.json").read_text())
    reference = folders.report(folder)
    cost, whole = found["search"].pop("cost"), reference["search"]["cost"]
    assert cost["resumed"] == StopsInTheMiddle.passes
    # The float pass over a batch is done again where candidates are left.
    done = whole["evaluations"] - cost["evaluations"]
    assert done >= StopsInTheMiddle.passes
    for part in ("sensitivity", "flagged", "percentiles", "joint"):
        assert found["search"][part] == reference["search"][part]
    assert "20 resumed" in (experiment / "train_log.txt").read_text()


def test_other_knobs_start_anew(block_run, trained, tmp_path):
    """A journal of another search is set aside, and not believed."""
    experiment = copy_experiment(trained, tmp_path / "experiment")
    with pytest.raises(KeyboardInterrupt):
        toy.run(toy.load(experiment), StopsInTheMiddle)
    toy.run(toy.load(experiment, "ptq: {bits: W4A8}"), tests=("test-clean",))
    cost = folders.report(experiment)["search"]["cost"]
    assert cost["resumed"] == 0
    (old,) = (experiment / "ptq").glob("search*.old")
    assert len(entries(old)) > StopsInTheMiddle.passes


def test_finished_search_runs_nothing(block_run, experiment):
    """A second run of a finished experiment measures nothing again."""
    toy.run(toy.load(experiment), tests=("test-clean",))
    first = folders.report(experiment)
    toy.run(toy.load(experiment), tests=("test-clean",))
    second = folders.report(experiment)
    assert second["search"]["cost"]["evaluations"] == 0
    assert second["search"]["cost"]["resumed"] > 20
    assert second["clipping"] == first["clipping"]


def test_edited_plan_is_kept(experiment):
    """A plan edited by hand is not overwritten by a later search."""
    quick = "ptq: {method: uniform}"
    toy.run(toy.load(experiment, quick), tests=("test-clean",))
    path = experiment / "ptq" / "plan.json"
    edited = path.read_text().replace('"bits": 8', '"bits": 7', 1)
    path.write_text(edited)
    toy.run(toy.load(experiment, quick), tests=("test-clean",))
    kept = [p.read_text() for p in path.parent.glob("plan.*.json")]
    assert kept == [edited]
    toy.run(
        toy.load(experiment, f"ptq: {{plan: {path}}}"), tests=("test-clean",)
    )
    assert folders.report(experiment)["search"] == {}


def test_damaged_plan_is_refused(experiment):
    path = experiment / "plan.json"
    path.write_text('{"layers": {"enc.linear.w": {"weight": {"bits": 9}}}}')
    hparams = toy.load(experiment, f"ptq: {{plan: {path}}}")
    with pytest.raises(StableQuantError, match="enc.linear.w"):
        toy.run(hparams, bad_recipes.Saver)

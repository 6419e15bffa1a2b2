"""Commands on what a recipe has left."""

import shutil

import pytest

from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.errors import ExperimentError
from tests.integration import publishing
from tests.integration.cli.conftest import edited_plan
from tests.integration.folders import strict_json


def test_an_experiment_has_all_parts(experiment):
    for folder in (experiment, experiment / "ptq"):
        found = Experiment(folder)
        assert found.folder == experiment
        assert found.hyperparams.is_file()
        assert found.report["label"] == "W8A8 stablequant"
        assert set(found.checkpoints) == {"wav2vec2", "model"}
        assert list(found.other_files) == ["tokenizer.ckpt"]
        assert len(found.plan.layers) > 20


@pytest.mark.parametrize(
    ("missing", "attribute", "words"),
    [
        ("hyperparams.yaml", "hyperparams", "recipe writes it"),
        ("ptq/report.json", "report", "Run the recipe"),
        ("ptq/plan.json", "plan", "Run the recipe"),
    ],
)
def test_missing_parts_say_what_to_do(experiment, missing, attribute, words):
    (experiment / missing).unlink()
    with pytest.raises(ExperimentError, match=words):
        getattr(Experiment(experiment), attribute)


def test_no_quantized_files(experiment):
    for path in (experiment / "ptq" / "checkpoint").glob("*.ckpt"):
        path.unlink()
    with pytest.raises(ExperimentError, match="no quantized checkpoint"):
        Experiment(experiment).checkpoints  # noqa: B018


def test_inspect_an_experiment(experiment, stablequant):
    code, out, _ = stablequant("inspect", experiment)
    assert code == 0
    for expected in (
        "stablequant",
        "wav2vec2",
        "test-other",
        "weights quantized",
    ):
        assert expected in out
    code, out, err = stablequant("inspect", experiment, "--layers", "--json")
    data = strict_json(out)
    assert {row["name"] for row in data["layers"]} == set(
        Experiment(experiment).plan.layers
    )
    assert all(row["num_bytes"] > 0 for row in data["layers"])
    assert err == ""


def test_compare_with_an_applied_plan(experiment, stablequant, tmp_path):
    applied = tmp_path / "applied"
    plan = edited_plan(experiment, tmp_path)
    stablequant("apply", plan, experiment, "--output", applied)
    code, out, _ = stablequant("compare", experiment, applied, "--json")
    data = strict_json(out)
    assert code == 0
    assert [row["name"] for row in data["layers"]] == ["enc.linear.w"]
    differs = data["layers"][0]["differs"]["weights"]
    assert [text[:4] for text in differs] == ["int8", "int4"]


def test_items_of_a_run_pair_with_themselves(experiment, stablequant):
    code, out, _ = stablequant("compare", experiment, experiment, "--json")
    rows = {(r["test"], r["metric"]): r for r in strict_json(out)["metrics"]}
    change = rows["test-clean", "WER"]["differences"][1]
    assert (change["change"], change["low"], change["high"]) == (0, 0, 0)


def test_compare_with_what_was_published(experiment, stablequant):
    hub = publishing.publish_asr(experiment, experiment / "ptq" / "hub")
    for name in ("plan.json", "report.json"):
        shutil.copyfile(experiment / "ptq" / name, hub / name)
    code, out, _ = stablequant("compare", experiment, hub, "--json")
    data = strict_json(out)
    assert code == 0
    assert data["layers"] == []
    first, second = data["sources"]
    for key in ("quantized_layers", "num_bytes", "float_num_bytes"):
        assert first[key] == second[key] > 0
    for row in data["metrics"]:  # its items would be those of the folder above
        assert row["differences"][1]["change"] == 0
        assert row["differences"][1]["low"] is None
    assert data["notes"] == []


def test_names_stay_without_the_plan_of_the_model(experiment, stablequant):
    hub = publishing.publish_asr(experiment, experiment / "ptq" / "hub")
    edited_plan(experiment, hub).replace(hub / "plan.json")
    code, out, _ = stablequant("inspect", hub, "--layers", "--json")
    assert code == 0
    names = [row["name"] for row in strict_json(out)["layers"]]
    assert {name.partition(".")[0] for name in names} == {"wav2vec2", "model"}


def test_report_makes_the_page_again(experiment, stablequant):
    page = experiment / "ptq" / "report.html"
    page.unlink(missing_ok=True)
    code, out, _ = stablequant("report", experiment, "--json")
    assert code == 0
    assert strict_json(out)["page"] == str(page)
    assert "test-clean" in page.read_text(encoding="utf-8")


def test_report_of_damaged_json(experiment, stablequant):
    (experiment / "ptq" / "report.json").write_text('{"label": ')
    code, out, err = stablequant("report", experiment)
    assert (code, out) == (2, "")
    assert "report.json" in err

"""What is in a published folder, and that it replaces nothing but its own."""

import json

import pytest
from huggingface_hub import ModelCard
from speechbrain.inference.ASR import EncoderASR

from speechbrain_stablequant import (
    QuantizationPlan,
)
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing import (
    interface_of,
    load_published,
    make_folder,
)
from tests.integration import folders, toy
from tests.integration.publications.experiments import FILES, unchecked

# -- what is made ------------------------------------------------------------


def test_folder_has_what_loading_needs(publication):
    assert set(publication.folder.files()) == FILES
    assert publication.interface == "EncoderASR"
    assert interface_of(publication.folder.path).name == "EncoderASR"


def test_rescored_utterances_are_as_in_the_recipe(publication, run):
    """But for padding: the recipe scores batches, the check one file."""
    check = publication.check
    items = json.loads((run / "ptq" / "items.json").read_text())
    recorded = {
        key: (errors, words)
        for test in items.values()
        for key, errors, words in test["WER"]["quantized"]
    }
    results = check.results
    assert check.metric == "WER"
    assert len(results) == check.items == 12
    assert all(recorded[key][1] == results[key]["WER"][1] for key in results)
    words = sum(recorded[key][1] for key in results)
    before = sum(recorded[key][0] for key in results)
    after = sum(found["WER"][0] for found in results.values())
    assert check.recorded == 100 * before / words
    assert check.published == 100 * after / words
    same = sum(recorded[key][0] == results[key]["WER"][0] for key in results)
    assert check.same == same >= 8


def test_nothing_of_this_machine_is_in_it(publication, run):
    for name in publication.folder.files():
        data = (publication.folder.path / name).read_bytes()
        assert str(run).encode() not in data, name
        assert b"optimizer" not in data, name


def test_the_yaml_defines_no_more_than_inference_needs(publication):
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    for name in ("opt_class", "checkpointer", "train_logger", "ptq:", "seed"):
        assert name not in text
    assert "freeze" not in text


def test_stock_speechbrain_transcribes(publication, tmp_path):
    folder = publication.folder.path
    model = EncoderASR.from_hparams(str(folder), savedir=str(tmp_path / "s"))
    example = next(iter(publication.check.results.values()))
    text = model.transcribe_file(str(folder / "example.wav"))
    assert set(text) <= set(toy.ALPHABET + " ")
    assert text
    assert type(example["text"]) is str
    ours = load_published(str(folder), str(tmp_path / "t"))
    assert isinstance(ours, EncoderASR)


def test_the_card_has_the_measured_figures(publication, run):
    path = publication.folder.path / "README.md"
    card = ModelCard.load(path)
    tests = folders.report(run)["tests"]
    found = {
        (r.dataset_split, r.metric_type): r.metric_value
        for r in card.data.eval_results
    }
    for test in tests:
        wer = test["metrics"]["WER"]["quantized"]
        assert found[test["name"], "wer"] == round(wer, 4)
    assert card.data.library_name == "speechbrain"
    assert card.data.language == "en"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert 'source="me/toy"' in card.text
    for file in folders.report(run)["files"]:
        assert f"`{file['name']}.ckpt`" in card.text
    assert f"{publication.check.same} of 12 results the same" in card.text


def test_the_plan_is_that_of_the_run(publication, run):
    assert QuantizationPlan.load(
        publication.folder.path / "plan.json"
    ) == QuantizationPlan.load(run / "ptq" / "plan.json")


# -- again, and elsewhere ------------------------------------------------------


def test_made_again_it_replaces_its_own(experiment):
    first = make_folder(experiment, unchecked())
    (experiment / "ptq" / "hub" / "example.wav").rename(
        experiment / "taken.wav"
    )
    again = make_folder(experiment, unchecked())
    assert again.folder.sizes() == first.folder.sizes()


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_what_people_wrote_there_is_not_lost(experiment, name):
    folder = make_folder(experiment, unchecked()).folder.path
    (folder / name).write_text("written by hand")
    with pytest.raises(PublishError, match=f"{name} was changed or added"):
        make_folder(experiment, unchecked())
    assert (folder / name).read_text() == "written by hand"
    assert not list(folder.parent.glob(".hub-*"))


def test_a_folder_of_others_is_not_touched(experiment, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(PublishError, match="not made by publishing"):
        make_folder(experiment, unchecked(output=str(other)))
    assert [p.name for p in other.iterdir()] == ["file"]

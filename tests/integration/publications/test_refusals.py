"""What is not published, and what is said then."""

import pytest
import torch

from speechbrain_stablequant import (
    read_header,
    save_quantized,
)
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.publishing import (
    PublishOptions,
    make_folder,
)
from tests.integration import toy
from tests.integration.publications.experiments import as_recipe, unchecked

# -- what is refused -----------------------------------------------------------


def test_another_model_than_was_measured(experiment):
    """The files load, but somebody has put others in their place."""
    hparams = toy.load(experiment, block="")
    torch.manual_seed(5)
    model = hparams["model"]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    path = experiment / "ptq" / "checkpoint" / "model.ckpt"
    plan = read_header(path)["plan"]
    with Conversion(model) as conversion:
        conversion.apply_plan(plan)
        save_quantized(model, path, plan)
    with pytest.raises(
        PublishError, match="it is not what was measured: .*WER"
    ):
        make_folder(experiment)
    assert not (experiment / "ptq" / "hub").exists()


def yaml_of(experiment):
    """Let the YAML of a copy name the copy."""
    path = experiment / "hyperparams.yaml"
    text = path.read_text()
    (original,) = {
        line.partition(": ")[2]
        for line in text.splitlines()
        if line.startswith("output_folder: ")
    }
    path.write_text(text.replace(original, str(experiment)))
    return experiment


@pytest.mark.parametrize("name", ["plan.json", "report.json"])
def test_parts_of_different_runs(experiment, name):
    path = experiment / "ptq" / name
    text = path.read_text()
    old, new = {
        "plan.json": ('"bits": 8', '"bits": 7'),
        "report.json": ('"num_bytes": ', '"num_bytes": 1'),
    }[name]
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(PublishError, match=f"{name} is .*once more"):
        make_folder(experiment, unchecked())


def test_parameters_that_nothing_loads(experiment, publication, tmp_path):
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    kept = [
        line
        for line in text.splitlines()
        if line not in ("      model: !ref <model>",)
        and "model: !name" not in line
    ]
    (tmp_path / "inference.yaml").write_text("\n".join(kept))
    options = PublishOptions(hyperparams=str(tmp_path / "inference.yaml"))
    with pytest.raises(PublishError, match="no file has values for .*enc"):
        make_folder(experiment, options)


def test_a_yaml_of_the_user_and_no_reference_texts(
    experiment, publication, tmp_path
):
    for path in experiment.glob("test-*.csv"):
        path.write_text(path.read_text().replace("wrd", "spoken"))
    path = tmp_path / "inference.yaml"
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    path.write_text(f"# written by hand\n{text}")
    options = PublishOptions(hyperparams=str(path))
    made = make_folder(yaml_of(experiment), options)
    published = made.folder.path / "hyperparams.yaml"
    assert published.read_text() == path.read_text()
    assert made.check.metric is None
    assert len(made.check.results) == 12
    assert "NOT SCORED: the manifest has no column" in made.check.line()


def test_a_yaml_with_a_path_of_this_machine(experiment, publication, tmp_path):
    path = tmp_path / "inference.yaml"
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    path.write_text(f"{text}\nwhere: {experiment.resolve()}/data\n")
    options = unchecked(hyperparams=str(path))
    with pytest.raises(PublishError, match="paths of this machine"):
        make_folder(experiment, options)
    assert not (experiment / "ptq" / "hub").exists()


def test_modules_that_are_not_known(block_run, tmp_path):
    extra = "adapter: !new:torch.nn.ReLU\n"
    folder = as_recipe(block_run[0], tmp_path / "experiment", extra)
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    path.write_text(text.replace("\nmodules:", "\nmodules:\n  adapter: {}", 1))
    with pytest.raises(PublishError, match="known to have: adapter"):
        make_folder(folder, unchecked())


def test_a_tokenizer_without_labels(experiment):
    """Some recipes save one that they never fill; the labels are in save/."""
    empty = "================\n'starting_index' => 0\n"
    path = experiment / "ptq" / "checkpoint" / "tokenizer.ckpt"
    labels = experiment / "save" / "label_encoder.txt"
    assert labels.is_file()
    path.write_text(empty)
    made = make_folder(experiment, unchecked())
    assert (made.folder.path / "tokenizer.ckpt").read_bytes() == (
        labels.read_bytes()
    )
    labels.unlink()
    with pytest.raises(PublishError, match="has no labels"):
        make_folder(experiment, unchecked())

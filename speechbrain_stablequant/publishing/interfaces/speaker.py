"""Embeddings of utterances: speaker verification, and classification."""

from typing import Any

from yaml import Node

from speechbrain_stablequant.artifacts.hyperparams import new, reference
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import (
    Interface,
    Needs,
    audio,
)
from speechbrain_stablequant.publishing.inventory import NORMALIZERS, Recipe

__all__ = ["ENCODER_CLASSIFIER", "SPEAKER_RECOGNITION"]

LABELS = "label_encoder"


def _embeds(recipe: Recipe) -> bool:
    return recipe.module("embedding_model") is not None


def _verifies(recipe: Recipe) -> bool:
    """Whether the recipe was tested on trials, or has no classifier."""
    tests = recipe.experiment.report["tests"]
    by_trials = any("EER" in test["metrics"] for test in tests)
    return _embeds(recipe) and (by_trials or not recipe.module("classifier"))


def _front(recipe: Recipe, interface: str) -> dict[str, Node]:
    """Return the modules that both interfaces need."""
    if not _embeds(recipe):
        raise PublishError(
            f"{interface} needs a module embedding_model; "
            f"{recipe.definitions.source} has none."
        )
    recipe.known_only(["embedding_model", "classifier"], interface)
    features = recipe.features
    if "normalize" not in features:
        raise PublishError(
            f"{interface} needs a normalization of features "
            f"({', '.join(NORMALIZERS)}); {recipe.definitions.source} has none."
        )
    return {
        "compute_features": features["compute_features"],
        "mean_var_norm": features["normalize"],
        "embedding_model": recipe.refer("embedding_model"),
    }


def _classifier_needs(recipe: Recipe) -> Needs:
    modules = _front(recipe, "EncoderClassifier")
    if not recipe.module("classifier"):
        raise PublishError(
            f"{recipe.definitions.source} has no module classifier. Publish "
            "the embeddings with --interface SpeakerRecognition."
        )
    modules["classifier"] = recipe.refer("classifier")
    path = recipe.label_file(LABELS)
    if path is None:
        raise PublishError(
            f"The names of the classes were not found: "
            f"{recipe.experiment.folder / 'save' / LABELS}.txt is not there."
        )
    recipe.files[LABELS] = path
    nodes = {}
    if recipe.object(LABELS) is None:
        # The recipes make it in Python.
        nodes[LABELS] = new("speechbrain.dataio.encoder.CategoricalEncoder")
    return Needs(nodes, modules, {LABELS: reference(LABELS)})


def _left_out(recipe: Recipe) -> list[str]:
    norm = recipe.score_normalization
    return [f"the scores of the test were normalized ({norm})"] if norm else []


def _verify(model: Any, item: dict[str, Any]) -> dict[str, Any]:
    """Return the score of a trial, or what an embedding looks like."""
    first = audio(model, item)
    if "path2" not in item:
        vector = model.encode_batch(first)
        return {"size": vector.shape[-1], "norm": float(vector.norm())}
    second = audio(model, {"path": item["path2"], **item["part2"]})
    score, _ = model.verify_batch(first, second)
    return {"score": [float(score), 1.0]}


def _classify(model: Any, item: dict[str, Any]) -> dict[str, Any]:
    """Return the class, and whether it is wrong if the right one is known."""
    try:
        _, score, _, label = model.classify_batch(audio(model, item))
    except KeyError as err:
        raise ValueError(
            f"The classifier has a class {err} that label_encoder.ckpt has no "
            f"name for ({len(model.hparams.label_encoder)} labels): it is of "
            "another run."
        ) from err
    found = {"label": label[0], "score": float(score)}
    if item.get("label"):
        found["error"] = [float(label[0] != item["label"]), 1.0]
    return found


SPEAKER_RECOGNITION = Interface(
    name="SpeakerRecognition",
    module="speechbrain.inference.speaker",
    task="audio-classification",
    title="Speaker verification",
    fits=_verifies,
    needs=lambda recipe: Needs({}, _front(recipe, "SpeakerRecognition")),
    run=_verify,
    call='score, same_speaker = model.verify_files("{audio}", "other.wav")',
    modules=["embedding_model"],
    metrics=["score"],
    by_trials=True,
    left_out=_left_out,
)
ENCODER_CLASSIFIER = Interface(
    name="EncoderClassifier",
    module="speechbrain.inference.classifiers",
    task="audio-classification",
    title="Classification of utterances",
    fits=lambda recipe: _embeds(recipe) and bool(recipe.module("classifier")),
    needs=_classifier_needs,
    run=_classify,
    call='probabilities, score, index, label = model.classify_file("{audio}")',
    modules=["embedding_model", "classifier"],
    metrics=["error"],
    labels=LABELS,
)

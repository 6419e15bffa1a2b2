"""Embeddings of utterances: speaker verification, and classification."""

from yaml import Node

from speechbrain_stablequant.artifacts.hyperparams import new, reference
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import Interface, Needs
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


def _speaker_needs(recipe: Recipe) -> Needs:
    return Needs({}, _front(recipe, "SpeakerRecognition"))


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
    node = recipe.object(LABELS) or recipe.definitions.get(LABELS)
    nodes = {}
    if node is None:
        # The recipes make it in Python.
        nodes[LABELS] = new("speechbrain.dataio.encoder.CategoricalEncoder")
    return Needs(nodes, modules, {LABELS: reference(LABELS)})


SPEAKER_RECOGNITION = Interface(
    name="SpeakerRecognition",
    module="speechbrain.inference.speaker",
    task="audio-classification",
    title="Speaker verification",
    fits=_verifies,
    needs=_speaker_needs,
)
ENCODER_CLASSIFIER = Interface(
    name="EncoderClassifier",
    module="speechbrain.inference.classifiers",
    task="audio-classification",
    title="Classification of utterances",
    fits=lambda recipe: _embeds(recipe) and bool(recipe.module("classifier")),
    needs=_classifier_needs,
)

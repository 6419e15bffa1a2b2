"""Where an interface does something else than the recipe's own test."""

from speechbrain_stablequant.artifacts.hyperparams import plain
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["departures", "refuse_switches"]

# Switches that recipes read in Python, and the value that interfaces imply
_SWITCHES = {"amp_to_db": False, "normalize": True, "upsampling": False}


def refuse_switches(recipe: Recipe) -> None:
    """Refuse recipes that compute features in a way that no interface does.

    Raises
    ------
    PublishError
        If a known switch of SpeechBrain's recipes is not as interfaces imply.
    """
    for name, implied in _SWITCHES.items():
        value = recipe.definitions.value(name)
        if isinstance(value, bool) and value is not implied:
            raise PublishError(
                f"{recipe.definitions.source} has {name}: {value}, which the "
                "recipe obeys in its compute_forward and the interface does "
                "not know: the model would get other features. Give an "
                "inference YAML with --hyperparams."
            )


def departures(recipe: Recipe, interface: str) -> list[str]:
    """Return steps of the recipe's test that the interface leaves out.

    Its measured results are then not those of what is published.
    """
    found = []
    beam = recipe.definitions.entries("test_beam_search")
    ngrams = beam.get("kenlm_model_path")
    if interface == "EncoderASR" and ngrams is not None and plain(ngrams):
        found.append("the test decoded with an n-gram language model")
    if interface.endswith("ASR") and "rescorer" in recipe.definitions:
        found.append("the test rescored its hypotheses with a language model")
    if interface == "WaveformEncoder":
        found.append("the test was of a model that the encoder is a part of")
    norm = score_normalization(recipe)
    if interface == "SpeakerRecognition" and norm:
        found.append(f"the scores of the test were normalized ({norm})")
    return found


def score_normalization(recipe: Recipe) -> str:
    """Return how the recipe normalizes scores; empty if it does not."""
    value = recipe.definitions.value("score_norm")
    if isinstance(value, str) and value.lower() not in ("", "none", "null"):
        return value
    for _, node in recipe.definitions.values():
        if node.tag.endswith(".VerificationStats"):
            given = plain(node).get("score_norm")
            if given:
                return str(given)
    return ""

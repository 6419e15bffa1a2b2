"""The interfaces by name. The first that fits is taken."""

from collections.abc import Collection
from typing import Optional

from speechbrain_stablequant.core.options import check_choice
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import Interface
from speechbrain_stablequant.publishing.interfaces.encoder import (
    WAVEFORM_ENCODER,
)
from speechbrain_stablequant.publishing.interfaces.language_model import (
    LANGUAGE_MODEL,
)
from speechbrain_stablequant.publishing.interfaces.recognition import (
    ENCODER_ASR,
    ENCODER_DECODER_ASR,
)
from speechbrain_stablequant.publishing.interfaces.speaker import (
    ENCODER_CLASSIFIER,
    SPEAKER_RECOGNITION,
)
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["INTERFACES", "choose", "interface", "recognize"]

INTERFACES: dict[str, Interface] = {
    known.name: known
    for known in (
        ENCODER_DECODER_ASR,
        ENCODER_ASR,
        SPEAKER_RECOGNITION,
        ENCODER_CLASSIFIER,
        LANGUAGE_MODEL,
        WAVEFORM_ENCODER,
    )
}


def interface(name: str) -> Interface:
    """Return an interface by its name.

    Example
    -------
    >>> interface("EncoderASR").module
    'speechbrain.inference.ASR'
    """
    check_choice("The interface", name, INTERFACES, PublishError)
    return INTERFACES[name]


def choose(recipe: Recipe, name: Optional[str] = None) -> Interface:
    """Return the interface that a user names, or that fits an experiment.

    Raises
    ------
    PublishError
        If none does.
    """
    if name is not None:
        return interface(name)
    for known in INTERFACES.values():
        if known.fits(recipe):
            return known
    raise PublishError(
        f"{recipe.definitions.source}: which interface loads a model with the "
        f"modules {', '.join(recipe.modules)} is not known. Give an inference "
        f"YAML with --hyperparams and the interface with --interface "
        f"({', '.join(INTERFACES)})."
    )


def recognize(
    modules: Collection[str], names: Collection[str]
) -> Optional[Interface]:
    """Return the interface that loads a published YAML, None if none does.

    Arguments
    ---------
    modules, names : collection of str
        Its modules, and its names at the top level.

    Example
    -------
    >>> recognize(["encoder"], ["tokenizer", "decoding_function"]).name
    'EncoderASR'
    >>> recognize(["encoder"], []).name
    'WaveformEncoder'
    """
    found = [
        known
        for known in INTERFACES.values()
        if set(known.modules) <= set(modules) and set(known.names) <= set(names)
    ]
    # The most particular: a classifier has all that a speaker model needs.
    return max(
        found,
        key=lambda known: len(known.modules) + len(known.names),
        default=None,
    )

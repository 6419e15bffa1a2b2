"""A folder that a stranger loads in one line, from an experiment."""

from speechbrain_stablequant.publishing.card import About, model_card
from speechbrain_stablequant.publishing.check import Check
from speechbrain_stablequant.publishing.publish import (
    Publication,
    PublishOptions,
    make_folder,
)
from speechbrain_stablequant.publishing.published import interface_of, load
from speechbrain_stablequant.publishing.upload import Destination, upload

__all__ = [
    "About",
    "Check",
    "Destination",
    "Publication",
    "PublishOptions",
    "interface_of",
    "load",
    "make_folder",
    "model_card",
    "upload",
]

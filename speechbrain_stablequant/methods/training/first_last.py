"""First and last layer: wider than the rest in quantization-aware training."""

import dataclasses

from torch import nn

from speechbrain_stablequant.layers import quantizable_layers
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training.distillation import find_blocks

__all__ = ["with_first_last"]


def with_first_last(root: nn.Module, settings: Settings) -> Settings:
    """Return settings with the bit widths of the first and last layer.

    The first and last layer suffer most from few bits and hold few of the
    weights. Layers of repeated blocks are neither; the user's ``layer_bits``
    take precedence.

    Arguments
    ---------
    root : torch.nn.Module
        The prepared model.
    settings : Settings
        The options; returned as they are for any other method.
    """
    if settings.method != "quantization_aware":
        return settings
    names = [name for name, _, _ in quantizable_layers(root)]
    inside = tuple(f"{block}." for block in find_blocks(root, names))
    ends = [n for n in (names[:1] + names[-1:]) if not n.startswith(inside)]
    widths = settings.training_settings.first_last
    edges = dict.fromkeys(map(_literal, ends), widths)
    return dataclasses.replace(
        settings, layer_bits={**edges, **settings.layer_bits}
    )


def _literal(name: str) -> str:
    """Return a pattern that matches a name and nothing else.

    Of the wildcards only ``[`` can occur in names (of registered dictionaries).
    """
    return name.replace("[", "[[]")

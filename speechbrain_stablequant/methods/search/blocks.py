"""Blocks: the groups of layers that a search treats as one."""

from collections.abc import Iterable

from torch import nn

__all__ = ["group_blocks"]


def group_blocks(
    root: nn.Module, layers: Iterable[str]
) -> dict[str, list[str]]:
    """Group layers into blocks.

    In the StableQuant paper a block is a convolution of the feature extractor
    or a Transformer layer: an element of a ``ModuleList``. Layers outside any
    list (projections, heads) are blocks by themselves.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    layers : iterable of str
        Qualified names of its layers.

    Returns
    -------
    dict
        Layer names by block name, in the order of the layers.

    Example
    -------
    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model = nn.ModuleDict(
    ...     {
    ...         "blocks": nn.ModuleList([block(), block()]),
    ...         "head": nn.Linear(2, 2),
    ...     }
    ... )
    >>> group_blocks(model, ["blocks.0.0", "blocks.0.1", "blocks.1.0", "head"])
    {'blocks.0': ['blocks.0.0', 'blocks.0.1'], 'blocks.1': ['blocks.1.0'], 'head': ['head']}
    """
    blocks: dict[str, list[str]] = {}
    for name in layers:
        blocks.setdefault(_block_of(root, name), []).append(name)
    return blocks


def _block_of(root: nn.Module, name: str) -> str:
    """Return the innermost list element around a layer, or the layer.

    An element that holds lists itself (a Res2Net block, a whole encoder) is
    too coarse; the layers beside its lists then stand alone.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        parent = root.get_submodule(".".join(parts[: end - 1]))
        if isinstance(parent, nn.ModuleList):
            element = ".".join(parts[:end])
            nested = any(
                isinstance(m, nn.ModuleList)
                for m in root.get_submodule(element).modules()
            )
            return name if nested else element
    return name

"""Rewrites: equal forms of modules that compilers turn into faster graphs.

They are in place while a module is traced, and change results by no more than
rounding. Compilers fuse and quantize matrix products well, but with dynamic
shapes they leave transposes, pads and copies around convolutions as they are;
the rewrites avoid these. Each family of models has a file of its own, with
functions that look at one module and return the methods to replace.
"""

import contextlib
from collections.abc import Iterator

from torch import nn

from speechbrain_stablequant.runtime.rewrites.attention import (
    rewrite_relative_attention,
    rewrite_relative_encoding,
    rewrite_wavlm_attention,
)
from speechbrain_stablequant.runtime.rewrites.encoder import rewrite_encoder
from speechbrain_stablequant.runtime.rewrites.frontend import (
    rewrite_feature_encoder,
)
from speechbrain_stablequant.runtime.rewrites.tdnn import rewrite_ecapa

__all__ = ["rewritten"]

_REWRITES = (
    rewrite_ecapa,
    rewrite_encoder,
    rewrite_feature_encoder,
    rewrite_relative_attention,
    rewrite_relative_encoding,
    rewrite_wavlm_attention,
)
_ABSENT = object()


@contextlib.contextmanager
def rewritten(root: nn.Module) -> Iterator[None]:
    """Replace methods by faster ones inside a ``with`` block.

    Enter it inside `lowered`: rewrites lay out weights on entering, and are to
    find the integer constants that lowering has put there.

    Arguments
    ---------
    root : torch.nn.Module
        Float or quantized module in evaluation mode; unchanged after the
        block.

    Example
    -------
    >>> layer = nn.Linear(2, 2)
    >>> with rewritten(layer):
    ...     "forward" in vars(layer)
    False
    """
    before = {}
    try:
        for module in root.modules():
            for rewrite in _REWRITES:
                for target, name, function in rewrite(module):
                    attributes = target.__dict__
                    old = attributes.get(name, _ABSENT)
                    # A method may be replaced twice: the first find counts.
                    before.setdefault((target, name), old)
                    attributes[name] = function
        yield
    finally:
        for (target, name), old in before.items():
            if old is _ABSENT:
                target.__dict__.pop(name, None)
            else:
                target.__dict__[name] = old

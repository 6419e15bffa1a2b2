"""Rewrites: equal forms of modules that compilers turn into faster graphs.

They are in place while a module is traced, and change results by no more than
rounding. Compilers fuse and quantize matrix products well, but with dynamic
shapes they leave transposes, pads and copies around convolutions as they are;
the rewrites avoid these.

Each family of models has a file of its own, with functions that look at any one
module and return a list of (module, name of a method, function to take its
place): an empty one if the module is of another family, or in a form that is
not rewritten.
"""

from contextlib import AbstractContextManager

from torch import nn

from speechbrain_stablequant.runtime.attributes import replaced
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


def rewritten(root: nn.Module) -> AbstractContextManager:
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
    return replaced(
        change
        for module in root.modules()
        for rewrite in _REWRITES
        for change in rewrite(module)
    )

"""Changes of a float module that keep its function and show its weights."""

from typing import Callable, Optional

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from speechbrain_stablequant.layers.attention import (
    DecomposedMultiheadAttention,
    DecomposedWavLMAttention,
    QuantizedMultiheadAttention,
)

__all__ = ["rewrite_for"]

_WAVLM = "transformers.models.wavlm.modeling_wavlm"
_DERIVED: dict[type, type] = {}


def rewrite_for(module: nn.Module) -> Optional[Callable[[], None]]:
    """Return what prepares one module for quantization, or None.

    Arguments
    ---------
    module : torch.nn.Module
        A module of a float model; its children are not looked at.

    Returns
    -------
    callable, optional
        Changes the module in place when called. The function of the module
        stays the same up to rounding.
    """
    if parametrize.is_parametrized(module):
        if list(module.parametrizations) != ["weight"]:
            return None
        return lambda: _fuse_parametrization(module)
    norm = _old_weight_norm(module)
    if norm is not None:
        return lambda: _fuse_old_weight_norm(module, norm)
    mixin = _decomposed_mixin(module)
    if mixin is not None:
        return lambda: setattr(
            module, "__class__", _decomposed_class(mixin, type(module))
        )
    return None


def _fuse_parametrization(module):
    """Make the parametrized weight a plain parameter.

    ``parametrize.remove_parametrizations`` also takes the property off the
    generated class, which the restored module needs again.
    """
    originals = module.parametrizations["weight"].parameters()
    weight = nn.Parameter(
        module.weight.detach().clone(),
        requires_grad=any(p.requires_grad for p in originals),
    )
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    module._parameters["weight"] = weight


def _old_weight_norm(module):
    """Return the pre-hook of ``torch.nn.utils.weight_norm`` on ``weight``."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return key, hook
    return None


def _fuse_old_weight_norm(module, norm):
    key, hook = norm
    parts = (module.weight_g, module.weight_v)
    trained = any(part.requires_grad for part in parts)
    hook.remove(module)
    module.weight.requires_grad_(trained)
    del module._forward_pre_hooks[key]


def _decomposed_mixin(module):
    """Return the class that decomposes an attention module, or None."""
    cls = type(module)
    if issubclass(
        cls, (DecomposedMultiheadAttention, DecomposedWavLMAttention)
    ):
        return None
    if (
        issubclass(cls, nn.MultiheadAttention)
        and QuantizedMultiheadAttention.unsupported(module) is None
    ):
        return DecomposedMultiheadAttention
    # By name, so that transformers need not be installed.
    if any(
        c.__module__ == _WAVLM and c.__name__ == "WavLMAttention"
        for c in cls.__mro__
    ):
        return DecomposedWavLMAttention
    return None


def _decomposed_class(mixin, cls):
    if issubclass(mixin, cls):
        return mixin
    if cls not in _DERIVED:
        _DERIVED[cls] = type(f"Decomposed{cls.__name__}", (mixin, cls), {})
    return _DERIVED[cls]

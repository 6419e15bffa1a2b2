"""The checkpoint format: integers packed, plan inside, nothing executed.

A checkpoint is one `safetensors <https://github.com/huggingface/safetensors>`_
file: raw tensors behind a JSON header, no pickle. For a weight ``w`` of a
quantized layer it has ``w_packed`` (int32, see `speechbrain_stablequant.core.packing`),
``w_scale`` and, if affine, ``w_zero_point``; all other parameters and buffers
are there as they are. The header carries the format version, the plan and a
hash over all of it.

A file from a hub is untrusted: names, shapes, types and the hash are checked
before the model is touched; on any error the model is as it was.
"""

import json
from pathlib import Path
from typing import Any, Optional, Union

import torch
from safetensors.torch import save
from torch import nn

from speechbrain_stablequant.artifacts.checkpoint_reader import (
    FORMAT,
    VERSION,
    check_floats,
    content_digest,
    parameter_name,
    read_verified,
    unpack_layers,
)
from speechbrain_stablequant.artifacts.safetensors_file import order_header
from speechbrain_stablequant.core.files import write_atomically
from speechbrain_stablequant.core.packing import pack
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import CheckpointError, PlanError
from speechbrain_stablequant.layers import Conversion, QuantizedModule

__all__ = ["load_quantized", "save_quantized"]


# -- writing -----------------------------------------------------------------


def save_quantized(
    module: nn.Module,
    path: Union[str, Path],
    plan: Optional[QuantizationPlan] = None,
    extra: Optional[dict[str, Any]] = None,
) -> Path:
    """Write a converted module to a file, atomically.

    Arguments
    ---------
    module : torch.nn.Module
        Module with quantized layers, as `Conversion` or `quantize` left it.
    path : str or Path
        Where to write; an older file there is replaced only at the end.
    plan : QuantizationPlan
        Plan of this module's layers, names relative to ``module``.
    extra : dict, optional
        Plain data to remember: metrics, versions.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    CheckpointError
        If nothing in the module is quantized.
    """
    quantized = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedModule)
    }
    if not quantized:
        raise CheckpointError(
            "This module has no quantized layer: quantize it first, or save "
            "it as a float checkpoint."
        )
    if plan is None or set(plan.layers) != set(quantized):
        raise CheckpointError("The plan does not name the quantized layers.")
    tensors = _pack_layers(quantized)
    # Weights are packed above, and the plan has the ranges of the inputs.
    owned = {
        parameter_name(n, b)
        for n, m in quantized.items()
        for b in m.conversion_buffers()
    }
    for name, tensor in module.state_dict().items():
        if name not in owned:
            # clone: safetensors refuses tensors that share memory.
            tensors[name] = tensor.detach().cpu().clone().contiguous()
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "plan": plan.to_json(indent=None),
        "extra": json.dumps(extra or {}, sort_keys=True),
    }
    header["sha256"] = content_digest(tensors, header)
    data = order_header(save(tensors, metadata=header))
    write_atomically(Path(path), data)
    return Path(path)


def _pack_layers(layers) -> dict[str, torch.Tensor]:
    """Return packed weights and scales of quantized layers."""
    tensors = {}
    for name, layer in layers.items():
        for short, scheme in layer._weight_schemes.items():
            values, scale, zero_point = layer.quantized_weight(short)
            key = parameter_name(name, short)
            packed = values if scheme.is_float else pack(values, scheme)
            tensors[f"{key}_packed"] = packed.cpu().contiguous()
            if scale is not None:
                tensors[f"{key}_scale"] = scale.cpu().contiguous()
            if zero_point is not None:
                tensors[f"{key}_zero_point"] = zero_point.cpu().contiguous()
    return tensors


# -- reading -----------------------------------------------------------------


def load_quantized(
    module: nn.Module, path: Union[str, Path], end_of_epoch: bool = True
) -> nn.Module:
    """Turn a float module into the quantized one that a file holds.

    Name it in a ``hyperparams.yaml`` as the custom hook of a loadable::

        pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
            loadables:
                wav2vec2: !ref <wav2vec2>
            custom_hooks:
                wav2vec2: !name:speechbrain_stablequant.load_quantized

    Arguments
    ---------
    module : torch.nn.Module
        A float module of the same architecture; converted in place.
    path : str or Path
        File written by `save_quantized`.
    end_of_epoch : bool
        Unused; SpeechBrain's Checkpointer passes it.

    Returns
    -------
    torch.nn.Module
        The same module.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another version or for another model. The
        module is then unchanged.
    """
    path = Path(path)
    header, plan, tensors = read_verified(path, _num_bytes(module))
    conversion = Conversion(module)
    try:
        weights = unpack_layers(conversion, plan, tensors, path)
        floats = check_floats(conversion.root, weights, tensors, path)
        for name, layer_weights in weights.items():
            conversion.set_weights(name, layer_weights)
        try:
            conversion.quantize()
        except PlanError as err:
            raise CheckpointError(
                f"{path} is for another model: {err}"
            ) from err
        target = module.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in floats:
                target[name].copy_(tensors[name])
    except BaseException:
        conversion.restore()
        raise
    return module


def _num_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.nbytes for t in tensors)

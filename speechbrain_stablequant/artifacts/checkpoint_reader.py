"""Read and verify quantized checkpoints; the model is not touched.

A file from a hub is untrusted: its size, header, names, shapes, types, ranges
and hash are checked before `checkpoint.load_quantized` uses any of it.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Union

import torch
from safetensors import SafetensorError, safe_open

from speechbrain_stablequant.core.numerics import Quantized, integer_dtype
from speechbrain_stablequant.core.packing import packed_words, unpack
from speechbrain_stablequant.core.plan import (
    LayerPlan,
    QuantizationPlan,
)
from speechbrain_stablequant.errors import CheckpointError, PlanError, nearest
from speechbrain_stablequant.layers import quantized_class

__all__ = [
    "FORMAT",
    "VERSION",
    "check_floats",
    "check_hash",
    "content_digest",
    "parameter_name",
    "read_header",
    "read_metadata",
    "read_verified",
    "unpack_layers",
]

FORMAT = "speechbrain_stablequant"
VERSION = 1
_MAX_HEADER_BYTES = 64 << 20
_MAX_FILE_FACTOR = 1.1  # over the float model; more cannot be ours
_SLACK_BYTES = 1 << 20


def content_digest(
    tensors: dict[str, torch.Tensor], header: dict[str, str]
) -> str:
    """Return the SHA-256 over all tensors and the header's other fields."""
    digest = hashlib.sha256()
    for key in ("format", "version", "plan", "extra"):
        digest.update(header[key].encode() + b"\0")
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_header(path: Union[str, Path]) -> dict[str, Any]:
    """Return the header of a checkpoint: format, version, plan, extra.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint of a version that we read.
    """
    header = _raw_header(Path(path))
    plan, extra = _parse(header, Path(path))
    return {**header, "plan": plan, "extra": extra}


def read_metadata(path: Path, what: str) -> dict[str, str]:
    """Read the metadata of a safetensors file, if they can be sane.

    Arguments
    ---------
    path : Path
        The file.
    what : str
        What the file should be, for error messages.

    Raises
    ------
    CheckpointError
        If it is unreadable, damaged, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path} is not {what}, or is damaged: truncated "
                    f"(a header of {length} bytes in a file of {size})."
                )
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except OSError as err:
        raise CheckpointError(f"Cannot read {path}: {err}.") from err
    except (SafetensorError, ValueError) as err:
        raise CheckpointError(
            f"{path} is damaged or is not {what} ({err}). "
            "Download it again, or check what wrote it."
        ) from err


def _raw_header(path: Path) -> dict[str, str]:
    """Read the metadata of a checkpoint of a version that we read."""
    header = read_metadata(path, "a quantized checkpoint")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of {FORMAT} "
            f"(format: {header.get('format')!r})."
        )
    if header.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} has format version {header.get('version')!r}; this "
            f"package reads version {VERSION}. Update {FORMAT}."
        )
    missing = {"plan", "extra", "sha256"} - set(header)
    if missing:
        raise CheckpointError(f"{path} has no {sorted(missing)} in its header.")
    return header


def _parse(header: dict[str, str], path: Path):
    """Return the plan and the extra data of a header."""
    try:
        plan = QuantizationPlan.from_json(header["plan"], f"{path}: plan")
        return plan, json.loads(header["extra"])
    except (PlanError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: {err}") from err


def read_verified(path: Path, model_num_bytes: int):
    """Read and verify a file: header, plan, tensors."""
    header = _raw_header(path)
    size = path.stat().st_size
    limit = model_num_bytes * _MAX_FILE_FACTOR + _SLACK_BYTES
    if size > limit:
        raise CheckpointError(
            f"{path} has {size:,} bytes, more than the float model "
            f"({model_num_bytes:,}): it belongs to another model."
        )
    plan, _ = _parse(header, path)
    return header, plan, _read_tensors(path, header)


def check_hash(path: Union[str, Path]) -> None:
    """Check that a file is as it was written; no model is needed.

    Raises
    ------
    CheckpointError
        If the file is damaged, or not a checkpoint of a version that we read.
    """
    _read_tensors(Path(path), _raw_header(Path(path)))


def _read_tensors(path: Path, header) -> dict[str, torch.Tensor]:
    """Read all tensors of a file and compare them with its hash."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as err:
        raise CheckpointError(f"{path} is damaged: {err}.") from err
    if content_digest(tensors, header) != header["sha256"]:
        raise CheckpointError(
            f"{path} does not match its own hash: it is damaged or was "
            "changed. Download it again."
        )
    return tensors


def unpack_layers(conversion, plan, tensors, path):
    """Return the weights of all layers, checked against the model."""
    weights = {}
    for name, layer_plan in plan.layers.items():
        try:
            conversion.set(name, layer_plan)
        except PlanError as err:
            raise CheckpointError(
                f"{path} is for another model: {err}"
            ) from err
        module = conversion.layer(name)
        cls = quantized_class(module)
        assert cls is not None  # `set` has refused other layers
        weights[name] = {
            short: _unpack_weight(
                parameter_name(name, short),
                tuple(cls.to_rows(module, short, weight.detach()).shape),
                layer_plan,
                tensors,
                path,
            )
            for short, weight in cls.quantizable_weights(module).items()
        }
    return weights


def _unpack_weight(key, shape, plan: LayerPlan, tensors, path) -> Quantized:
    """Check and unpack one weight of a given shape, (channels, values)."""
    scheme = plan.weight
    channels, count = shape

    def take(part, dtype, expected):
        name = f"{key}_{part}"
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{path} has no '{name}'.")
        if tensor.dtype != dtype or tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{path}: '{name}' is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the model needs {dtype} {expected}."
            )
        return tensor

    if scheme.is_float:
        return Quantized(
            take("packed", integer_dtype(scheme), shape), None, None
        )
    words = packed_words(count, scheme)
    packed = take("packed", torch.int32, (channels, words))
    try:
        values = unpack(packed, count, scheme)
    except ValueError as err:
        raise CheckpointError(f"{path}: '{key}_packed': {err}") from err
    scale = take("scale", torch.float32, scheme.scale_shape(*shape))
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CheckpointError(f"{path}: '{key}_scale' is not positive, finite.")
    zero_point = None
    if not scheme.symmetric:
        zero_point = take(
            "zero_point", integer_dtype(scheme), tuple(scale.shape)
        )
        _check_range(zero_point, scheme, f"{path}: '{key}_zero_point'")
    _check_range(values, scheme, f"{path}: '{key}_packed'")
    return Quantized(values, scale, zero_point)


def _check_range(values, scheme, where) -> None:
    if values.numel() and not scheme.is_binary:
        low, high = int(values.min()), int(values.max())
        if low < scheme.qmin or high > scheme.qmax:
            raise CheckpointError(
                f"{where} has integers from {low} to {high}, outside "
                f"{scheme.qmin} to {scheme.qmax}."
            )


def check_floats(root, weights, tensors, path) -> list[str]:
    """Check what is not quantized; return its names."""
    expected = dict(root.state_dict())
    for name, layer in weights.items():
        for short in layer:
            expected.pop(parameter_name(name, short), None)
    packed = {
        f"{parameter_name(name, short)}_{part}"
        for name, layer in weights.items()
        for short, quantized in layer.items()
        for part, tensor in zip(("packed", *Quantized._fields[1:]), quantized)
        if tensor is not None
    }
    given = set(tensors) - packed
    for name in sorted(given - set(expected)):
        raise CheckpointError(
            f"{path} has a tensor '{name}' that the model does not have."
            + nearest(name, expected)
        )
    for name, tensor in expected.items():
        if name not in given:
            raise CheckpointError(f"{path} has no '{name}'.")
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: '{name}' is {found.dtype} {tuple(found.shape)}, the "
                f"model needs {tensor.dtype} {tuple(tensor.shape)}."
            )
    return list(expected)


def parameter_name(name: str, short: str) -> str:
    """Return the name of a layer's parameter; the root has none itself."""
    return f"{name}.{short}" if name else short

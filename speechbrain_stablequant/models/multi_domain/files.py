"""Domain files: the layers of a domain, and the hash of their trunk.

A domain is a `safetensors` file, like a quantized checkpoint: raw tensors
behind a JSON header, nothing executed. Where the domain's layers are
quantized it *is* a quantized checkpoint, packed, with the same header in its
``extra`` data.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from speechbrain_stablequant.artifacts import checkpoint, checkpoint_reader
from speechbrain_stablequant.artifacts.safetensors_file import order_header
from speechbrain_stablequant.core.files import write_atomically
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import (
    CheckpointError,
    KnobError,
    StableQuantError,
    nearest,
)
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.models.multi_domain.config import DomainConfig
from speechbrain_stablequant.models.multi_domain.layers import (
    DomainLayers,
    Sites,
)

__all__ = [
    "DomainHeader",
    "check_domain",
    "load_domain",
    "read_domain",
    "save_domain",
    "trunk_hash",
]

FORMAT = "speechbrain_stablequant.domain"
VERSION = 1
_DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class DomainHeader:
    """The header of a domain file.

    Arguments
    ---------
    path : Path
        The file.
    name : str
        Name of the domain.
    config : DomainConfig
        Its layers.
    trunk : str
        Hash of the trunk that it belongs to.
    quantized : bool
        Whether the file is a quantized checkpoint.
    sha256 : str
        Hash of the content of a float file.
    """

    path: Path
    name: str
    config: DomainConfig
    trunk: str
    quantized: bool
    sha256: str = ""


def trunk_hash(trunk: nn.Module) -> str:
    """Return a SHA-256 over all weights of a trunk."""
    return _digest(trunk.state_dict())


def _digest(tensors: dict[str, torch.Tensor], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_domain(
    layers: nn.Module,
    path: Union[str, Path],
    name: str,
    trunk: str,
    plan: Optional[QuantizationPlan] = None,
) -> Path:
    """Write the layers of a domain; see `MultiDomainLM.save_domain`.

    Arguments
    ---------
    layers : DomainLayers
        The layers.
    path : str or Path
        Where to write.
    name : str
        Name of the domain.
    trunk : str
        `trunk_hash` of its trunk.
    plan : QuantizationPlan, optional
        Plan of the whole model or of the domain alone, where layers of the
        domain are quantized.

    Raises
    ------
    StableQuantError
        If layers are quantized and the plan does not name them.
    """
    about = {
        "domain": name,
        "config": layers.config.to_dict(),
        "trunk": trunk,
    }
    if any(isinstance(m, QuantizedModule) for m in layers.modules()):
        mine = _plan_of(layers, name, plan)
        extra = {"domain_version": VERSION, **about}
        return checkpoint.save_quantized(layers, path, mine, extra)
    tensors = {
        key: tensor.detach().cpu().clone().contiguous()
        for key, tensor in layers.state_dict().items()
    }
    text = json.dumps(about, sort_keys=True)
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "domain": text,
        "sha256": _digest(tensors, text),
    }
    path = Path(path)
    write_atomically(path, order_header(save(tensors, metadata=header)))
    return path


def _plan_of(layers, name, plan) -> QuantizationPlan:
    """Return the part of a plan that is about a domain."""
    if plan is None:
        raise StableQuantError(
            f"Layers of domain '{name}' are quantized: pass the plan that "
            "they were quantized with."
        )
    wanted = {
        key
        for key, m in layers.named_modules()
        if isinstance(m, QuantizedModule)
    }
    marker = f"domains.{name}."
    # A domain that was quantized alone, or loaded, has a plan of its own.
    mine = {
        key.rpartition(marker)[2]: layer
        for key, layer in plan.layers.items()
        if marker in key or key in wanted
    }
    if not wanted <= set(mine):
        missing = sorted(wanted - set(mine))[0]
        raise StableQuantError(
            f"The plan does not name '{marker}{missing}', which is quantized."
        )
    return QuantizationPlan({key: mine[key] for key in sorted(wanted)})


def read_domain(path: Union[str, Path]) -> DomainHeader:
    """Read the header of a domain file.

    Raises
    ------
    CheckpointError
        If it is not a domain file, or of another version.
    """
    path = Path(path)
    header = checkpoint_reader.read_metadata(path, "a domain file")
    quantized = header.get("format") == checkpoint_reader.FORMAT
    if quantized:
        about = checkpoint_reader.read_header(path)["extra"]
    elif header.get("format") == FORMAT:
        try:
            about = json.loads(header.get("domain"))
        except (TypeError, ValueError, RecursionError) as err:
            raise CheckpointError(
                f"{path} has a damaged header: {err}."
            ) from err
    else:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of a domain "
            f"(format: {header.get('format')!r})."
        )
    if not isinstance(about, dict):
        about = {}
    version = (
        about.get("domain_version") if quantized else header.get("version")
    )
    if str(version) != str(VERSION):
        raise CheckpointError(
            f"{path} is not a domain file of version {VERSION}, which this "
            f"package reads (version: {version!r})."
        )
    for key, kind in (("domain", str), ("config", dict), ("trunk", str)):
        if not isinstance(about.get(key), kind):
            raise CheckpointError(f"{path} has no valid '{key}' in its header.")
    try:
        config = DomainConfig.of(about["config"])
    except KnobError as err:
        raise CheckpointError(f"{path}: {err}") from err
    return DomainHeader(
        path,
        about["domain"],
        config,
        about["trunk"],
        quantized,
        header.get("sha256", ""),
    )


def load_domain(
    header: DomainHeader, sites: Sites, trunk: Optional[str]
) -> DomainLayers:
    """Build the layers of a domain and load their weights.

    Arguments
    ---------
    header : DomainHeader
        From `read_domain`.
    sites : Sites
        Where the layers go in the trunk.
    trunk : str or None
        `trunk_hash` of the trunk that they are for; None accepts any.

    Returns
    -------
    DomainLayers
        The layers, with weights of the file's types.

    Raises
    ------
    CheckpointError
        If the file is damaged or does not fit the trunk.
    """
    path = header.path
    if trunk is not None and trunk != header.trunk:
        raise CheckpointError(
            f"{path} (domain '{header.name}') was trained on another trunk "
            "than this one. Load the weights of the trunk first; where it was "
            "quantized or fine-tuned since, pass same_trunk=False."
        )
    layers = _without_memory(header, sites)
    if header.quantized:
        # On the meta device first: compares shapes and allocates nothing.
        checkpoint.load_quantized(layers, path)
        layers = _without_memory(header, sites).to_empty(device="cpu")
        return checkpoint.load_quantized(layers, path)
    tensors = _read_tensors(header, layers.state_dict())
    layers.load_state_dict(tensors, assign=True)
    return layers


def check_domain(header: DomainHeader) -> None:
    """Check that a domain file is intact; no trunk is needed.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    if header.quantized:
        checkpoint_reader.check_hash(header.path)
    else:
        _read_tensors(header)


def _read_tensors(header: DomainHeader, expected=None) -> dict:
    """Read all tensors of a file and compare them with its hash."""
    path = header.path
    try:
        with safe_open(str(path), framework="pt") as file:
            keys = list(file.keys())
            found = {key: file.get_slice(key) for key in keys}
            if expected is not None:
                _check_tensors(expected, found, path)
            tensors = {key: file.get_tensor(key) for key in keys}
            text = (file.metadata() or {}).get("domain", "")
    except (SafetensorError, OSError, ValueError) as err:
        raise CheckpointError(f"{path} is damaged: {err}.") from err
    if _digest(tensors, text) != header.sha256:
        raise CheckpointError(
            f"{path} does not match its own hash: it is damaged or was "
            "changed. Copy or download it again."
        )
    return tensors


def _without_memory(header: DomainHeader, sites: Sites) -> DomainLayers:
    """Return a domain's layers on the meta device.

    A header may claim any size: nothing of that size is allocated before the
    file has proved to hold as much.
    """
    try:
        with torch.device("meta"):
            return DomainLayers(header.config, sites)
    except (RuntimeError, TypeError, OverflowError) as err:
        raise CheckpointError(
            f"{header.path} asks for impossible layers: {header.config}."
        ) from err


def _check_tensors(expected, found, path) -> None:
    """Compare names, shapes and types with those that the trunk needs."""
    for key in sorted(set(found) - set(expected)):
        raise CheckpointError(
            f"{path} has a tensor '{key}' for which this trunk has no place."
            + nearest(key, expected)
        )
    for key, tensor in expected.items():
        if key not in found:
            raise CheckpointError(f"{path} has no '{key}'.")
        shape, dtype = found[key].get_shape(), found[key].get_dtype()
        if shape != list(tensor.shape) or dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: '{key}' is {dtype} {tuple(shape)}, this trunk needs "
                f"floats {tuple(tensor.shape)}."
            )

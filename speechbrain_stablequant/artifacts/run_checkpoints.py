"""Write the files that stock SpeechBrain needs to load a quantized model."""

import hashlib
from pathlib import Path
from typing import Optional

import torch
from speechbrain.core import Brain
from speechbrain.utils.checkpoints import (
    DEFAULT_SAVE_HOOKS,
    Checkpointer,
    get_default_hook,
)
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from speechbrain_stablequant.artifacts.checkpoint import save_quantized
from speechbrain_stablequant.core.numerics import Quantized
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.layers import QuantizedModule

__all__ = ["export_checkpoints", "save_plan"]


def save_plan(plan: QuantizationPlan, path: Path) -> Path:
    """Write a plan; a different one, perhaps edited by hand, is kept.

    Arguments
    ---------
    plan : QuantizationPlan
        The plan.
    path : Path
        Where to write. A different plan moves to ``<stem>.<hash>.json``.
    """
    if path.is_file():
        old = path.read_bytes()
        if old != (plan.to_json() + "\n").encode():
            mark = hashlib.sha256(old).hexdigest()[:8]
            path.replace(path.with_suffix(f".{mark}{path.suffix}"))
    return plan.save(path)


def export_checkpoints(
    folder: Path,
    root: nn.ModuleDict,
    plan: QuantizationPlan,
    checkpointer: Optional[Checkpointer],
) -> list[dict]:
    """Write one file for each loadable.

    The files have the names of the recipe's recoverables, so that they fit
    the loadables of an inference ``hyperparams.yaml``. What is not quantized
    but needed at inference (tokenizer, normalization) is written as
    SpeechBrain does.

    Arguments
    ---------
    folder : Path
        Where to write.
    root : torch.nn.ModuleDict
        The modules, quantized.
    plan : QuantizationPlan
        The plan, names as in ``root``.
    checkpointer : Checkpointer, optional
        The recipe's, for the recoverables; without it every module of
        ``root`` gets a file.

    Returns
    -------
    list of dict
        For each quantized file: ``name``, ``path``, ``num_bytes``,
        ``float_num_bytes`` and ``float_measured_on``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plans = {id(root.get_submodule(n)): p for n, p in plan.layers.items()}
    loadables = _loadables(root, checkpointer)
    files = []
    for name, module in loadables.items():
        layers = _relative_plan(module, plans)
        path = folder / f"{name}.ckpt"
        if layers:
            own = QuantizationPlan(layers, plan.method, plan.settings)
            save_quantized(module, path, own)
            files.append(_sizes(name, path, module, checkpointer))
    if checkpointer is not None:
        _save_others(folder, checkpointer, set(loadables))
    return files


def _loadables(root, checkpointer) -> dict[str, nn.Module]:
    """Return recoverable modules, and quantized modules outside of them."""
    found = {}
    if checkpointer is not None:
        found = {
            name: obj
            for name, obj in checkpointer.recoverables.items()
            if isinstance(obj, nn.Module)
        }
    held = {id(m) for obj in found.values() for m in obj.modules()}
    for name, module in root.items():
        if any(id(m) not in held for m in _quantized(module)):
            found[name] = module
    return found


def _quantized(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, QuantizedModule)]


def _relative_plan(module, plans) -> dict[str, LayerPlan]:
    return {
        name: plans[id(layer)]
        for name, layer in module.named_modules()
        if id(layer) in plans
    }


def _save_others(folder: Path, checkpointer, done: set) -> None:
    """Save tokenizers and the like with SpeechBrain's own hooks."""
    training_only = (torch.optim.Optimizer, EpochCounter, Brain)
    for name, obj in checkpointer.recoverables.items():
        if (
            name in done
            and _quantized(obj)
            or isinstance(obj, training_only)
            or type(obj).__module__ == "speechbrain.nnet.schedulers"
            or "dataloader" in name
            or name == "scaler"
        ):
            continue
        hook = checkpointer.custom_save_hooks.get(name)
        hook = hook or get_default_hook(obj, DEFAULT_SAVE_HOOKS)
        if hook is not None:
            hook(obj, folder / f"{name}.ckpt")


def _sizes(name: str, path: Path, module, checkpointer) -> dict:
    """Return sizes on disk, of the float checkpoint where there is one."""
    float_path = _float_file(name, checkpointer)
    if float_path is not None:
        float_bytes, source = float_path.stat().st_size, "checkpoint file"
    else:
        float_bytes, source = _float_num_bytes(module), "tensors in float32"
    return {
        "name": name,
        "path": str(path),
        "num_bytes": path.stat().st_size,
        "float_num_bytes": float_bytes,
        "float_measured_on": source,
    }


def _float_file(name: str, checkpointer) -> Optional[Path]:
    if checkpointer is None:
        return None
    checkpoint = checkpointer.find_checkpoint()
    if checkpoint is None or name not in checkpoint.paramfiles:
        return None
    return Path(checkpoint.paramfiles[name])


def _float_num_bytes(module: nn.Module) -> int:
    """Return the size of a quantized module's float version."""
    kept = [*module.parameters(), *_float_buffers(module)]
    count = sum(t.numel() * t.element_size() for t in kept)
    for layer in _quantized(module):
        for name, shape in layer._weight_shapes.items():
            size = torch.Size(shape).numel()
            count += size * layer._weight_dtypes[name].itemsize
    return count


def _float_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Return the buffers in a checkpoint of the float version."""
    added = {
        id(layer._buffers.get(f"{name}_{part}"))
        for layer in _quantized(module)
        for names in (layer._weight_shapes, layer._input_schemes)
        for name in names
        for part in Quantized._fields
    }
    state = module.state_dict(keep_vars=True).values()
    found = {id(t): t for t in state if isinstance(t, torch.Tensor)}
    return [
        tensor
        for key, tensor in found.items()
        if key not in added and not isinstance(tensor, nn.Parameter)
    ]

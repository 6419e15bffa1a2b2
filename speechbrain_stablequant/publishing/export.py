"""Files for runtimes alone, from what `accelerate` would compile."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from speechbrain_stablequant.errors import RuntimeConversionError
from speechbrain_stablequant.publishing.load import LoadedModel
from speechbrain_stablequant.runtime import (
    Acceleration,
    export_onnx,
    make_backend,
)
from speechbrain_stablequant.runtime.tracing import Signature, speaking_names

__all__ = ["Part", "find_parts", "samples", "verify", "write_part"]

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
LOWEST_SNR = 20.0  # dB; a wrong graph is far below, rounding far above


@dataclass
class Part:
    """A module that becomes one file.

    Arguments
    ---------
    name : str
        Qualified name of the module.
    module : torch.nn.Module
        The module.
    layers : list of LayerExecution
        How its quantized layers run.
    calls : list of tuple
        Arguments and results of its calls on samples: ``(args, kwargs,
        tensors)``.
    """

    name: str
    module: nn.Module
    layers: list
    calls: list[tuple] = field(default_factory=list)

    @property
    def inputs(self) -> list[tuple[str, torch.Tensor]]:
        """Names and tensors of the first call."""
        args, kwargs, _ = self.calls[0]
        _, tensors = Signature.of(args, kwargs)
        names = speaking_names(self.module, args, kwargs)
        return list(zip(names, tensors))


def samples(model: LoadedModel) -> list[Callable[[], Any]]:
    """Return two ways to call a model, of different sizes and lengths.

    Arguments
    ---------
    model : LoadedModel
        One that takes audio, or a language model.

    Raises
    ------
    RuntimeConversionError
        If it is neither.
    """
    if model.takes_audio:
        batches = [
            _voices(count, seconds, model.sample_rate)
            for count, seconds in ((2, 2.0), (3, 3.1))
        ]
        return [functools.partial(model.run, *batch) for batch in batches]
    if "lm" in model.interface.mods:
        texts = [_tokens(model, *shape) for shape in ((2, 9), (3, 14))]
        return [functools.partial(model.read, tokens) for tokens in texts]
    raise RuntimeConversionError(
        f"{model.name} takes neither audio nor tokens: export its modules from "
        "Python with speechbrain_stablequant.runtime.export_onnx."
    )


def _voices(count: int, seconds: float, rate: int):
    """Return a batch of synthetic voices, and relative lengths."""
    generator = torch.Generator().manual_seed(count)
    time = torch.arange(int(seconds * rate)) / rate
    pitch = 90 + 120 * torch.rand(count, 1, generator=generator)
    angle = 2 * torch.pi * pitch * time
    wave = sum((k * angle).sin() / k for k in range(1, 12))
    wave = wave * (0.6 + 0.4 * (2 * torch.pi * 3 * time).sin())
    noise = torch.randn(wave.shape, generator=generator)
    return 0.1 * wave + 0.005 * noise, torch.linspace(1.0, 0.8, count)


def _tokens(model: LoadedModel, count: int, length: int) -> torch.Tensor:
    """Return random tokens of a language model, without padding (0)."""
    sizes = [
        module.num_embeddings
        for module in model.interface.mods.modules()
        if isinstance(module, nn.Embedding)
    ]
    generator = torch.Generator().manual_seed(count)
    shape = (count, length)
    return torch.randint(1, min(sizes), shape, generator=generator)


def find_parts(
    model: LoadedModel, runtime: str, calls: Sequence[Callable[[], Any]]
) -> list[Part]:
    """Find the largest parts that a runtime compiles, and how they are called.

    Arguments
    ---------
    model : LoadedModel
        The model.
    runtime : str
        ``onnx`` or ``openvino``.
    calls : list of callable
        Ways to call it, see `samples`.

    Raises
    ------
    RuntimeConversionError
        If there is none.
    """
    root = model.interface.mods
    backend = make_backend(
        runtime, precision="f32", allow_float="*", cache_folder=False
    )
    acceleration = Acceleration(root, backend)
    acceleration.install()
    try:
        calls[0]()
    finally:
        acceleration.remove()
    found = [
        Part(each.name, each.module, variant.compiled.layers)
        for each in acceleration.modules
        for variant in list(each.variants.values())[:1]
    ]
    if not found:
        reasons = {m.failure for m in acceleration.modules if m.failure}
        raise RuntimeConversionError(
            f"No part of the model can be converted for {runtime}: "
            f"{'; '.join(sorted(reasons)) or 'nothing quantized was called'}."
        )
    _record(found, calls)
    return found


def _record(parts: list[Part], calls) -> None:
    """Note arguments and results of parts in reference execution."""
    hooks = []
    for part in parts:

        def note(module, args, kwargs, result, part=part):
            tensors = [
                leaf.detach().clone()
                for leaf in pytree.tree_leaves(result)
                if isinstance(leaf, torch.Tensor)
            ]
            part.calls.append((args, kwargs, tensors))

        hooks.append(part.module.register_forward_hook(note, with_kwargs=True))
    try:
        for call in calls:
            call()
    finally:
        for hook in hooks:
            hook.remove()


# -- writing -----------------------------------------------------------------


def write_part(part: Part, runtime: str, folder: Path) -> Path:
    """Write the file of a part and return its path."""
    path = folder / f"{part.name.replace('.', '-')}{SUFFIXES[runtime]}"
    if runtime == "openvino":
        _write_openvino(part, path)
        return path
    args, kwargs, _ = part.calls[0]
    if kwargs:
        names = speaking_names(part.module, args, {})
        kwargs = {**dict(zip(names, args)), **kwargs}
    export_onnx(part.module, kwargs or args, path)
    return path


def _write_openvino(part: Part, path: Path) -> None:
    """Write the graph that `accelerate` compiles, inputs named."""
    import openvino

    args, kwargs, _ = part.calls[0]
    signature, tensors = Signature.of(args, kwargs)
    backend = make_backend("openvino", precision="f32", cache_folder=False)
    with torch.no_grad():
        model = backend.convert(part.module, signature, tensors)[0]
    names = [name for name, _ in part.inputs]
    if len(model.inputs) != len(names):
        raise RuntimeConversionError(
            f"{part.name}: its graph has {len(model.inputs)} inputs, the module "
            f"takes {len(names)}."
        )
    for port, name in zip(model.inputs, names):
        port.get_tensor().set_names({name})
    # Else scales and integers of 16-bit layers would be rounded once more
    openvino.save_model(model, path, compress_to_fp16=False)


# -- checking ----------------------------------------------------------------


def verify(part: Part, runtime: str, path: Path) -> list[dict]:
    """Run a file with its runtime alone, and compare with the model.

    Returns
    -------
    list of dict
        For each sample: ``shapes`` of the inputs, ``snr`` in dB (None: no
        difference at all), ``max_difference`` and ``ok``.
    """
    execute = (_onnx_runner if runtime == "onnx" else _openvino_runner)(path)
    names = [name for name, _ in part.inputs]
    rows = []
    for args, kwargs, expected in part.calls:
        _, tensors = Signature.of(args, kwargs)
        values = [tensor.detach().numpy() for tensor in tensors]
        results = execute(dict(zip(names, values)))
        rows.append(
            {
                "shapes": {n: list(v.shape) for n, v in zip(names, values)},
                **_compared(results, [t.numpy() for t in expected]),
            }
        )
    return rows


def _onnx_runner(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    used = [given.name for given in session.get_inputs()]
    return lambda inputs: session.run(None, {n: inputs[n] for n in used})


def _openvino_runner(path: Path):
    import openvino

    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda inputs: list(compiled(inputs).values())


def _compared(results, expected) -> dict:
    """Return signal-to-noise ratio and largest difference of all outputs."""
    if [v.shape for v in results] != [v.shape for v in expected]:
        return {"snr": None, "max_difference": None, "ok": False}
    a = np.concatenate([np.ravel(v).astype(np.float64) for v in results])
    b = np.concatenate([np.ravel(v).astype(np.float64) for v in expected])
    noise, signal = float(np.square(a - b).sum()), float(np.square(b).sum())
    snr: Optional[float] = None
    if noise > 0 and signal > 0:
        snr = 10 * math.log10(signal / noise)
    return {
        "snr": snr,
        "max_difference": float(np.abs(a - b).max()),
        "ok": noise == 0 or (snr is not None and snr >= LOWEST_SNR),
    }

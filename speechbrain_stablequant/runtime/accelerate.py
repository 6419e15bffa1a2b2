"""`accelerate`: run a quantized model on integer kernels, in place."""

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Union

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.core.options import (
    check_choice,
    check_whole_number,
)
from speechbrain_stablequant.errors import KnobError, PlanError, nearest
from speechbrain_stablequant.layers import QuantizedModule, cached_weights
from speechbrain_stablequant.runtime.backend import Backend, quantized_layers
from speechbrain_stablequant.runtime.cache import (
    CompiledCache,
    default_cache_folder,
)
from speechbrain_stablequant.runtime.compiled_module import CompiledModule
from speechbrain_stablequant.runtime.execution import (
    LayerExecution,
    RuntimeReport,
)
from speechbrain_stablequant.runtime.processor import detect_processor

__all__ = [
    "RUNTIMES",
    "Acceleration",
    "accelerate",
    "decelerate",
    "make_backend",
    "require_cpu",
    "running",
    "runtime_report",
]

logger = get_logger(__name__)

REFERENCE = "reference"
RUNTIMES = ("openvino", "onnx", REFERENCE)
PRECISIONS = ("auto", "f32", "bf16")
_ATTRIBUTE = "_stablequant_acceleration"


class Acceleration:
    """The compiled modules of one accelerated model.

    Arguments
    ---------
    root : torch.nn.Module
        The model; its ``forward`` methods are replaced by `install`.
    backend : Backend
        What runs it.
    """

    def __init__(self, root: nn.Module, backend: Backend):
        self.root, self.backend = root, backend
        names = [name for name, _, _ in quantized_layers(root)]
        for pattern in backend.allow_float:
            if not fnmatch.filter(names, pattern):
                logger.warning(
                    "allow_float: no quantized layer is called '%s'.%s",
                    pattern,
                    nearest(pattern, names),
                )
        self.modules = [
            CompiledModule(name, module, backend)
            for name, module in root.named_modules()
            if type(module).forward is not nn.Module.forward  # can be called
            and any(isinstance(m, QuantizedModule) for m in module.modules())
        ]

    def install(self) -> None:
        """Run on the runtime from now on."""
        require_cpu(self.root)
        for module in self.modules:
            module.install()

    def remove(self) -> None:
        """Run on plain torch again."""
        for module in self.modules:
            module.remove()

    def report(self) -> RuntimeReport:
        """Return what ran, how, and how long it took to compile."""
        rows: dict[str, LayerExecution] = {}
        for name, _, planned in quantized_layers(self.root):
            rows[name] = LayerExecution(name, planned, "not run")
        for module in self.modules:
            for variant in list(module.variants.values()):
                for row in variant.compiled.layers:
                    name = ".".join(p for p in (module.name, row.name) if p)
                    if rows[name].precision in ("not run", "int8"):
                        rows[name] = replace(row, name=name)
            if module.failure is not None and module.name in rows:
                rows[module.name].precision = "reference"
        backend = self.backend
        return RuntimeReport(
            backend.name,
            backend.settings,
            list(rows.values()),
            [report for module in self.modules for report in module.reports],
            list(dict.fromkeys(backend.notes)),
        )


def accelerate(
    model: Any,
    runtime: str = "openvino",
    threads: Optional[int] = None,
    precision: str = "auto",
    allow_float: Union[str, Sequence[str]] = (),
    cache_folder: Union[str, Path, bool] = True,
) -> Any:
    """Run a quantized model on integer kernels, in place.

    Each module that is called is compiled at its first call, as large a part
    of the model as can be converted at once; the same compiled model serves
    all later calls, of any batch size and length and from any thread. Results
    are compared with plain torch the first time that a shape changes. A
    module in training mode runs on plain torch. A module whose results depend
    on plain Python attributes that change has to report them: see
    `speechbrain_stablequant.runtime.state`.

    Arguments
    ---------
    model : torch.nn.Module or speechbrain.inference.interfaces.Pretrained
        A model with quantized layers, or an interface that holds one
        (``EncoderASR``, ``SpeakerRecognition``, ...).
    runtime : str
        ``openvino``, ``onnx`` (ONNX Runtime; needs
        ``speechbrain_stablequant[onnx]``), or ``reference``: plain torch, as
        before.
    threads : int, optional
        Threads of one call; by default those of torch.
    precision : str
        Precision of everything that is not int8: ``f32``, ``bf16``, or
        ``auto``: bf16 on processors with AMX tiles, else f32.
    allow_float : str or list of str
        Names (``*`` wildcards) of layers that may run in float although the
        plan quantizes weights and inputs.
    cache_folder : str, Path or bool
        Where compiled models are kept for the next start; by default
        ``$STABLEQUANT_CACHE`` or a folder in the user's cache. False keeps
        none.

    Returns
    -------
    same as ``model``
        The same object.

    Raises
    ------
    KnobError
        For a bad argument.
    PlanError
        If the model has no quantized layers.
    ExecutionError
        When the model is called, if a layer would not run in int8.

    Example
    -------
    >>> from speechbrain_stablequant import quantize
    >>> net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> net = net.eval()
    >>> data = [torch.randn(2, 16)]
    >>> _ = quantize(net, data, bits="W8A8", progress=False)
    >>> net = accelerate(net, cache_folder=False)
    >>> net(torch.randn(3, 16)).shape
    torch.Size([3, 4])
    >>> runtime_report(net).summary()
    '2 of 2 layers executed in int8'
    """
    root = _root_of(model)
    if not any(isinstance(m, QuantizedModule) for m in root.modules()):
        raise PlanError(
            "The model has no quantized layers: quantize it, or load a "
            "quantized checkpoint, before accelerating it."
        )
    backend = make_backend(
        runtime, threads, precision, allow_float, cache_folder
    )
    decelerate(model)
    if backend is None:
        return model
    acceleration = Acceleration(root, backend)
    acceleration.install()
    root.__dict__[_ATTRIBUTE] = acceleration
    return model


def require_cpu(root: nn.Module) -> None:
    """Raise a `KnobError` unless a model is on the CPU and in float32."""
    for tensor in (*root.parameters(), *root.buffers()):
        if tensor.device.type != "cpu":
            raise KnobError(
                f"The model is on {tensor.device}; runtimes compute on the "
                "CPU. Move it there (in a recipe: --device cpu), or use "
                "runtime: reference."
            )
    for module in root.modules():
        dtypes = getattr(module, "_weight_dtypes", {}).values()
        if any(dtype != torch.float32 for dtype in dtypes):
            raise KnobError(
                "The model is in half precision; runtimes take and return "
                "float32. Call model.float(), and pass precision='bf16' to "
                "compute in bfloat16 inside."
            )


def decelerate(model: Any) -> Any:
    """Undo `accelerate`; the model runs on plain torch again."""
    root = _root_of(model)
    acceleration = root.__dict__.pop(_ATTRIBUTE, None)
    if acceleration is not None:
        acceleration.remove()
    return model


def runtime_report(model: Any) -> RuntimeReport:
    """Return what the runtime made of an accelerated model, so far.

    Raises
    ------
    PlanError
        If the model is not accelerated.
    """
    acceleration = _root_of(model).__dict__.get(_ATTRIBUTE)
    if acceleration is None:
        raise PlanError("The model is not accelerated: call accelerate first.")
    return acceleration.report()


@contextlib.contextmanager
def running(
    root: nn.Module, backend: Optional[Backend]
) -> Iterator[Optional[Acceleration]]:
    """Run a quantized model on a backend inside a ``with`` block.

    Arguments
    ---------
    root : torch.nn.Module
        Model with quantized layers.
    backend : Backend or None
        See `make_backend`; None for reference execution.

    Yields
    ------
    Acceleration or None
        None in reference execution.
    """
    if backend is None:
        with cached_weights(root):
            yield None
        return
    acceleration = Acceleration(root, backend)
    acceleration.install()
    try:
        yield acceleration
    finally:
        acceleration.remove()


def make_backend(
    runtime: str = "openvino",
    threads: Optional[int] = None,
    precision: str = "auto",
    allow_float: Union[str, Sequence[str]] = (),
    cache_folder: Union[str, Path, bool] = True,
) -> Optional[Backend]:
    """Return a backend; arguments as in `accelerate`.

    Returns
    -------
    Backend or None
        None for ``reference``: plain torch.
    """
    for name, value, choices in (
        ("runtime", runtime, RUNTIMES),
        ("precision", precision, PRECISIONS),
    ):
        check_choice(name, value, choices)
    if threads is None:
        threads = torch.get_num_threads()
    check_whole_number("threads", threads, 1)
    if runtime == REFERENCE:
        return None
    processor = detect_processor()
    backend = _backend_class(runtime)
    if precision == "bf16" and "bf16" not in backend.precisions:
        raise KnobError(
            f"precision 'bf16': the runtime '{runtime}' has no bfloat16 "
            "kernels. Use 'f32' or 'auto', or runtime 'openvino'."
        )
    if precision == "bf16" and not processor.has_bf16:
        raise KnobError(
            "precision 'bf16': this processor has no bfloat16 hardware and "
            "would be many times slower. Use 'f32' or 'auto'."
        )
    if precision == "auto":
        tiles = processor.has_amx and "bf16" in backend.precisions
        precision = "bf16" if tiles else "f32"
    if isinstance(allow_float, str):
        allow_float = [allow_float]
    if not isinstance(allow_float, Sequence):
        raise KnobError(
            f"allow_float is {allow_float!r}: give names of layers, with * as "
            "wildcard."
        )
    folder = cache_folder
    if isinstance(cache_folder, bool):
        folder = default_cache_folder() if cache_folder else None
    return backend(
        processor, threads, precision, list(allow_float), CompiledCache(folder)
    )


def _backend_class(runtime: str) -> type[Backend]:
    """Import a runtime only when it is asked for."""
    if runtime == "openvino":
        from speechbrain_stablequant.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend
    from speechbrain_stablequant.runtime.onnx import OnnxBackend

    return OnnxBackend


def _root_of(model: Any) -> nn.Module:
    """Return the module to accelerate: itself, or those of an interface."""
    if isinstance(model, nn.Module) and not hasattr(model, "mods"):
        return model
    modules = getattr(model, "mods", None)
    if isinstance(modules, nn.Module):
        return modules
    raise KnobError(
        f"model is a {type(model).__name__}: give a torch module, or a "
        "SpeechBrain inference interface."
    )

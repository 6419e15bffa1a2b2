"""ONNX: files for other programs, and ONNX Runtime's int8 kernels on CPUs."""

import io
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import nn

from speechbrain_stablequant.errors import (
    KnobError,
    RuntimeConversionError,
    StableQuantError,
)
from speechbrain_stablequant.runtime.backend import (
    Backend,
    CompiledGraph,
    conversion_failure,
    to_numpy,
)
from speechbrain_stablequant.runtime.lowering import lowered
from speechbrain_stablequant.runtime.onnx.execution import read_execution
from speechbrain_stablequant.runtime.onnx.lowering import (
    QdqLowering,
    integer_convolutions,
    plain_attention,
)
from speechbrain_stablequant.runtime.rewrites import rewritten
from speechbrain_stablequant.runtime.trace_patches import traceable
from speechbrain_stablequant.runtime.tracing import (
    FlatModule,
    Signature,
    inert,
    speaking_names,
)

__all__ = ["ExportedOnnx", "OnnxBackend", "export_onnx"]

_TRACED_OPSET = 20  # the newest of the exporter
_LARGEST = 2**31 - 1  # of a protobuf message
_EXPORT = threading.Lock()  # the exporter's settings are global


def _packages():
    """Return onnx and onnxruntime, which only this runtime needs."""
    try:
        import onnx
        import onnxruntime
    except ImportError as err:
        raise KnobError(
            f"runtime 'onnx' needs the package {err.name}: "
            'pip install "speechbrain_stablequant[onnx]"'
        ) from err
    return onnx, onnxruntime


class OnnxBackend(Backend):
    """Compiles modules with ONNX Runtime for the CPU."""

    name = "onnx"
    precisions = ("f32",)

    def __init__(self, *args, **kwargs):
        _packages()
        super().__init__(*args, **kwargs)

    @property
    def versions(self):
        """Return the versions that a compiled model depends on."""
        onnx, onnxruntime = _packages()
        return {
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
        }

    def build(self, module, signature, tensors):
        """Return a `CompiledGraph`, and how its layers run."""
        onnx, _ = _packages()
        lowering = QdqLowering(module, self.processor.saturates)
        model, structure = _convert(module, signature, tensors, lowering)
        blob = model.SerializeToString()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            session = self._session(blob, path)
            layers = read_execution(onnx.load(path), module, lowering)
        self.note_reduced(len(lowering.reduced))
        self._note_slow(layers)
        shapes = [tensor.shape for tensor in tensors]
        return OnnxGraph(session, blob, structure, shapes, layers)

    def restore(self, blob, structure, example_shapes, layers):
        """Return a `CompiledGraph` from a file of the cache."""
        session = self._session(blob)
        return OnnxGraph(session, blob, structure, example_shapes, layers)

    def _note_slow(self, layers) -> None:
        """Add a note about integer kernels that are slower than float."""
        slow = [row.name for row in layers if row.kernel == "ConvInteger"]
        if slow:
            self.notes.append(
                f"{len(slow)} convolutions in many groups run in int8, but "
                "slower than in float; runtime 'openvino' has better kernels"
            )

    def _session(self, blob: bytes, optimized: Optional[Path] = None):
        _, onnxruntime = _packages()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised, not logged
        # By default inputs of weight-only layers are quantized, too.
        options.add_session_config_entry(
            "session.qdq_matmulnbits_accuracy_level", "1"
        )
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            return onnxruntime.InferenceSession(
                blob, options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # they have no base class of their own
            raise RuntimeConversionError(
                f"ONNX Runtime cannot load it: {str(err).strip()[:300]}"
            ) from err


class OnnxGraph(CompiledGraph):
    """One session, shared by all callers.

    Arguments
    ---------
    session : onnxruntime.InferenceSession
        What runs.
    blob : bytes
        The file that it was made from.
    structure, example_shapes, layers
        See `CompiledGraph`.
    """

    def __init__(self, session, blob, structure, example_shapes, layers):
        super().__init__(structure, example_shapes, layers)
        self.session, self.blob = session, blob
        self._used = [i.name for i in session.get_inputs()]

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run; a session may be called by several threads at once."""
        inputs = {
            name: to_numpy(tensor)
            for name, tensor in zip(_plain_names(len(tensors)), tensors)
            if name in self._used
        }
        try:
            values = self.session.run(None, inputs)
        except Exception as err:  # they have no base class of their own
            raise StableQuantError(
                f"ONNX Runtime failed: {str(err).strip()[:300]}"
            ) from err
        return [
            torch.from_numpy(value).to(dtype)
            for value, dtype in zip(values, self.structure.dtypes)
        ]

    def export(self) -> bytes:
        """Return the ONNX file."""
        return self.blob


class ExportedOnnx(NamedTuple):
    """A written ONNX file.

    Arguments
    ---------
    path : Path
        The file.
    num_bytes : int
        Its size.
    """

    path: Path
    num_bytes: int


def export_onnx(
    model: nn.Module, example_inputs: Any, path: Union[str, Path]
) -> ExportedOnnx:
    """Write a quantized module to an ONNX file.

    The file holds exactly the integers of the layers (two to a byte where they
    have at most 4 bits), with QuantizeLinear and DequantizeLinear around what
    runs on integers. Every axis of every input may change in size.

    Arguments
    ---------
    model : torch.nn.Module
        With quantized layers, in evaluation mode.
    example_inputs : torch.Tensor, tuple or dict
        What the module is called with: one argument, positional arguments, or
        arguments by name.
    path : str or Path
        Where to write.

    Returns
    -------
    ExportedOnnx
        Path and size.

    Raises
    ------
    RuntimeConversionError
        If the module cannot be converted: which operator, which layer.

    Example
    -------
    >>> from speechbrain_stablequant import quantize
    >>> net = nn.Linear(64, 64).eval()
    >>> data = [torch.randn(2, 64)]
    >>> _ = quantize(net, data, bits="W8A8", progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_onnx(net, data[0], f"{folder}/net.onnx").num_bytes < 8000
    True
    """
    onnx, _ = _packages()
    args, kwargs = (), {}
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        args = (example_inputs,)
    signature, tensors = Signature.of(args, kwargs)
    names = speaking_names(model, args, kwargs)
    found, _ = _convert(
        model, signature, tensors, QdqLowering(model), names[: len(tensors)]
    )
    onnx.checker.check_model(found)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.SerializeToString())
    return ExportedOnnx(path, path.stat().st_size)


def _convert(module, signature, tensors, lowering, names=None):
    """Return an ONNX model of one way of calling a module."""
    onnx, _ = _packages()
    from speechbrain_stablequant.runtime.onnx.graph import finish

    flat = FlatModule(module, signature).eval()
    names = names or _plain_names(len(tensors))
    axes = {
        name: {axis: f"{name}_{axis}" for axis in range(tensor.dim())}
        for name, tensor in zip(names, tensors)
    }
    buffer = io.BytesIO()
    try:
        with (
            _EXPORT,
            torch.no_grad(),
            inert(),
            lowered(module, lowering),
            integer_convolutions(module),
            rewritten(module),
            plain_attention(),
            traceable(module),
        ):
            torch.onnx.export(
                flat,
                tuple(tensors),
                buffer,
                dynamo=False,
                opset_version=_TRACED_OPSET,
                input_names=names,
                dynamic_axes=axes,
            )
    except RuntimeConversionError:
        raise
    except Exception as err:
        raise RuntimeConversionError(conversion_failure(err, None)) from err
    model = onnx.load_from_string(buffer.getvalue())
    finish(model, lowering)
    if model.ByteSize() > _LARGEST:
        raise RuntimeConversionError("its ONNX file would exceed 2 GB")
    return model, flat.structure


def _plain_names(count: int) -> list[str]:
    return [f"input_{index}" for index in range(count)]

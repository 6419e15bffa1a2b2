"""Compile with OpenVINO, and run what it compiled."""

import ctypes
import functools
import io
import logging
import queue
from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np
import torch
from torch import nn

from speechbrain_stablequant.errors import RuntimeConversionError
from speechbrain_stablequant.runtime.backend import (
    Backend,
    CompiledGraph,
    conversion_failure,
    quantized_layers,
    to_numpy,
)
from speechbrain_stablequant.runtime.lowering import Lowering, lowered
from speechbrain_stablequant.runtime.openvino.graph import (
    name_weights,
    pack_low_bit,
    read_execution,
)
from speechbrain_stablequant.runtime.rewrites import rewritten
from speechbrain_stablequant.runtime.tracing import Signature, inert, trace

__all__ = ["OpenVinoBackend", "release_freed_memory"]

# Growth of the input at which freed memory is given back: not at each call, as
# that takes time too.
_WORTH_TRIMMING = 1.125


@functools.cache
def core():
    """Return the one OpenVINO core of this process."""
    import openvino

    return openvino.Core()


class OpenVinoBackend(Backend):
    """Compiles modules with OpenVINO for the CPU."""

    name = "openvino"

    @property
    def versions(self):
        """Return the versions that a compiled model depends on."""
        import openvino

        return {"openvino": openvino.__version__, "torch": torch.__version__}

    def build(self, module, signature, tensors):
        """Return a `CompiledGraph`, and how its layers run."""
        model, structure = self.convert(module, signature, tensors)
        release_freed_memory()
        compiled = core().compile_model(model, "CPU", self._config())
        return OpenVinoGraph(
            compiled,
            structure,
            [tensor.shape for tensor in tensors],
            read_execution(compiled.get_runtime_model(), module),
        )

    def restore(self, blob, structure, example_shapes, layers):
        """Return a `CompiledGraph` from a blob of the cache."""
        model = core().import_model(io.BytesIO(blob), "CPU", self._config())
        return OpenVinoGraph(model, structure, example_shapes, layers)

    def _config(self) -> dict:
        return {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads of two processes would share the first cores.
            "ENABLE_CPU_PINNING": False,
            # By default the plugin quantizes inputs of weight-only layers.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }

    def convert(self, module: nn.Module, signature: Signature, tensors):
        """Return an uncompiled OpenVINO model, and its output structure."""
        has_int8 = any(planned for _, _, planned in quantized_layers(module))
        lowering = Lowering(self.processor.saturates, has_int8)
        traced = None
        # Rewrites lay out the constants of the lowering, hence this order.
        with inert(), lowered(module, lowering), rewritten(module):
            traced, structure = trace(module, signature, tensors)
            try:
                model = _convert_traced(traced)
            except Exception as err:
                raise RuntimeConversionError(
                    conversion_failure(err, traced)
                ) from err
        self.note_reduced(len(lowering.reduced))
        name_weights(model)
        pack_low_bit(model, module)
        return model, structure


def _convert_traced(traced):
    """Convert a trace with the frontend itself, all dimensions dynamic.

    ``openvino.convert_model`` does the same ten times slower, and sends
    telemetry.
    """
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Recipes log at debug level to their log.txt; the frontend would write the
    # whole graph there, megabytes of it.
    frontend_logger = logging.getLogger("openvino.frontend.pytorch")
    if frontend_logger.level == logging.NOTSET:
        frontend_logger.setLevel(logging.INFO)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # has to outlive the conversion
    model = frontend.convert(frontend.load(decoder))
    # Without them the plugin does not find what it could run in int8.
    apply_moc_transformations(model, cf=False, smart_reshape=False)
    return model


class OpenVinoGraph(CompiledGraph):
    """One compiled model, shared by all callers."""

    def __init__(self, model, structure, example_shapes, layers):
        super().__init__(structure, example_shapes, layers)
        self.model = model
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._largest = 0  # bytes of inputs when memory was last given back

    def export(self) -> bytes:
        """Return OpenVINO's own format of a compiled model."""
        return bytes(self.model.export_model().getbuffer())

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run; each concurrent caller has a request of its own."""
        inputs = [to_numpy(tensor) for tensor in tensors]
        # Inputs that the graph does not need are not among its parameters.
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self.model.create_infer_request()
        try:
            values = request.infer(
                dict(enumerate(inputs)), share_inputs=True, share_outputs=False
            )
            return [
                torch.from_numpy(np.asarray(values[index])).to(dtype)
                for index, dtype in enumerate(self.structure.dtypes)
            ]
        finally:
            self._requests.put(request)
            num_bytes = sum(array.nbytes for array in inputs)
            if num_bytes > _WORTH_TRIMMING * self._largest:
                self._largest = num_bytes
                release_freed_memory()


@functools.cache
def _malloc_trim() -> Optional[Callable[[int], int]]:
    """Return glibc's function, or None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def release_freed_memory() -> bool:
    """Give freed memory back to the system, where the C library can.

    Buffers that grow from call to call, as over utterances sorted by length,
    leave holes that are each too small for the next: without this, a pass
    over a sorted test set has ended with ten times the memory that it needs.

    Returns
    -------
    bool
        Whether the C library has such a function (glibc).
    """
    trim = _malloc_trim()
    if trim is None:
        return False
    trim(0)
    return True

"""The base class of runtimes: settings, the cache, the check for int8."""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Callable, Optional

import numpy as np
import torch
from torch import nn

from speechbrain_stablequant.errors import ExecutionError
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.runtime.cache import (
    CompiledCache,
    library_digest,
    module_digest,
)
from speechbrain_stablequant.runtime.execution import LayerExecution
from speechbrain_stablequant.runtime.lowering import planned_int8
from speechbrain_stablequant.runtime.processor import Processor
from speechbrain_stablequant.runtime.tracing import OutputStructure, Signature

__all__ = ["Backend", "CompiledGraph"]


class CompiledGraph:
    """A compiled graph with what is needed to call it.

    Arguments
    ---------
    structure : OutputStructure
        How the results of the module are made of flat tensors.
    example_shapes : list of tuple
        Shapes of the tensors that were traced.
    layers : list of LayerExecution
        How the quantized layers in it run; names relative to the module.

    Attributes
    ----------
    proven : set of str
        Axes for which results were compared with reference execution.
    on_proof : callable or None
        Called with ``proven`` whenever it grows, to update the cache.
    """

    cached = False

    def __init__(self, structure: OutputStructure, example_shapes, layers):
        self.structure = structure
        self.example_shapes = [tuple(shape) for shape in example_shapes]
        self.layers: list[LayerExecution] = layers
        self.notes: list[str] = []
        self.proven: set[str] = set()
        self.on_proof = None

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on flat tensors; may be called from several threads."""
        raise NotImplementedError

    def export(self) -> bytes:
        """Return what ``Backend.restore`` needs."""
        raise NotImplementedError

    @staticmethod
    def plausible(tensors, results) -> bool:
        """Return whether results of non-empty inputs are not empty.

        OpenVINO has been seen to return empty tensors in place of an error.
        """
        return not all(t.numel() for t in tensors) or all(
            result.numel() for result in results
        )

    def prove(self, axes: set[str]) -> None:
        """Record that results were compared for these axes."""
        self.proven |= axes
        if self.on_proof is not None:
            self.on_proof(self.proven)


class Backend:
    """A runtime with its settings.

    Arguments
    ---------
    processor : Processor
        What it runs on.
    threads : int
        Number of threads of one call.
    precision : str
        ``f32`` or ``bf16``: the precision of what is not int8.
    allow_float : list of str
        Patterns of names of layers that may run in float although the plan
        quantizes them.
    cache : CompiledCache
        Compiled models of earlier runs.
    """

    name = ""
    precisions: tuple[str, ...] = ("f32", "bf16")

    def __init__(
        self,
        processor: Processor,
        threads: int,
        precision: str,
        allow_float: Sequence[str],
        cache: CompiledCache,
    ):
        self.processor, self.threads = processor, threads
        self.precision, self.allow_float = precision, allow_float
        self.cache = cache
        self.notes: list[str] = []

    @property
    def settings(self) -> dict:
        """Return the settings, for reports and for the cache key."""
        return {"threads": self.threads, "precision": self.precision}

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions that a compiled model depends on."""
        raise NotImplementedError

    def compile(self, module: nn.Module, signature: Signature, tensors):
        """Return a `CompiledGraph` for one way of calling a module.

        It comes from the cache if it is there.

        Raises
        ------
        RuntimeConversionError
            If the module cannot be converted: which operator, which layer.
        """
        key = self.key(module, signature, self.versions)
        compiled = self._load(key)
        if compiled is None:
            count = len(self.notes)
            compiled = self.build(module, signature, tensors)
            compiled.notes = self.notes[count:]
            self._store(key, compiled)
        else:
            self.notes += compiled.notes
        return compiled

    def build(self, module: nn.Module, signature: Signature, tensors):
        """Convert and compile a module; see `compile`."""
        raise NotImplementedError

    def restore(self, blob: bytes, structure, example_shapes, layers):
        """Return a graph from what its ``export`` returned."""
        raise NotImplementedError

    def key(self, module: nn.Module, signature: Signature, versions) -> str:
        """Return the name of a compiled model in the cache."""
        parts = (
            self.name,
            sorted(versions.items()),
            sorted(self.processor.features),
            self.settings,
            library_digest(),
            signature.describe(),
            module_digest(module),
        )
        text = "|".join(map(str, parts))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:40]

    def _load(self, key: str) -> Optional[CompiledGraph]:
        found = self.cache.load(key)
        if found is None:
            return None
        meta, blob = found
        try:
            compiled = self.restore(
                blob,
                OutputStructure.from_dict(meta["structure"]),
                meta["example_shapes"],
                [LayerExecution(**row) for row in meta["layers"]],
            )
            compiled.notes = [str(note) for note in meta["notes"]]
            compiled.proven = set(meta["proven"])
        except Exception:  # a foreign or truncated file: compile again
            self.cache.remove(key)
            return None
        compiled.cached = True
        compiled.on_proof = lambda axes: self.cache.update(
            key, {"proven": sorted(axes)}
        )
        return compiled

    def _store(self, key: str, compiled: CompiledGraph) -> None:
        """Arrange for a graph to be cached once its results were compared.

        Not at once: a graph that turns out to be wrong must not be found by
        the next process.
        """
        if self.cache.folder is None:
            return
        try:
            meta = {
                "structure": compiled.structure.to_dict(),
                "example_shapes": [list(s) for s in compiled.example_shapes],
                "layers": [vars(row) for row in compiled.layers],
                "notes": compiled.notes,
                "proven": [],
            }
            json.dumps(meta)
        except (TypeError, NotImplementedError):
            return  # its results cannot be described as JSON

        def on_proof(axes):
            first = not meta["proven"]
            meta["proven"] = sorted(axes)
            if not first:
                self.cache.update(key, {"proven": meta["proven"]})
                return
            # Export may fail (OpenVINO); the graph runs without a cache, too.
            with contextlib.suppress(RuntimeError):
                self.cache.store(key, meta, compiled.export())

        compiled.on_proof = on_proof

    def note_reduced(self, count: int) -> None:
        """Add a note about layers whose weights were reduced to 7 bits."""
        if count:
            self.notes.append(
                f"weights of {count} layers run at 7 bits: this processor "
                "saturates sums of 8-bit products"
            )

    def check_execution(
        self, module_name: str, compiled: CompiledGraph
    ) -> None:
        """Raise unless every planned layer of a graph runs in int8."""
        for row in compiled.layers:
            if row.planned_int8 and row.precision not in ("int8", "not run"):
                name = ".".join(
                    part for part in (module_name, row.name) if part
                )
                self.forbid_float(
                    name,
                    f"runs in {row.precision} on {self.name}"
                    + (f" (kernel {row.kernel})" if row.kernel else ""),
                )

    def forbid_float(self, name: str, what: str) -> None:
        """Raise an `ExecutionError` unless the user allows a float layer."""
        if any(fnmatchcase(name, pattern) for pattern in self.allow_float):
            return
        raise ExecutionError(
            f"The plan quantizes '{name}' to 8 bits or fewer, but it {what}. "
            "To accept that, add its name to allow_float ('*' for all)."
        )


def quantized_layers(
    module: nn.Module,
) -> list[tuple[str, QuantizedModule, bool]]:
    """Return names, layers and whether they are planned for int8."""
    return [
        (name, layer, planned_int8(layer))
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedModule)
    ]


def layer_executions(
    module: nn.Module, kernels_of: Callable
) -> list[LayerExecution]:
    """Return how each quantized layer runs, given the kernels of a graph.

    Arguments
    ---------
    module : torch.nn.Module
        What was compiled.
    kernels_of : callable
        Called with the name of a layer and the layer; returns its kernels, each
        with ``kernel``, ``precision`` and ``weights``.

    Returns
    -------
    list of LayerExecution
        One for each quantized layer of the module.
    """
    rows = []
    for name, layer, planned in quantized_layers(module):
        kernels = kernels_of(name, layer)
        if not kernels:
            rows.append(LayerExecution(name, planned, "not run"))
            continue
        # A planned layer is int8 only if all of its kernels are.
        worst = min(kernels, key=lambda k: planned and k.precision == "int8")
        weights = "" if planned else worst.weights
        rows.append(
            LayerExecution(
                name, planned, worst.precision, worst.kernel, weights
            )
        )
    return rows


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of a type that runtimes take: no half precision."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.to(torch.float32)
    return tensor.contiguous().numpy()


def conversion_failure(err: Exception, traced: Optional[object]) -> str:
    """Say which operator of which layer a converter does not support.

    Converters name the operator only; the layer is looked up in the trace.
    """
    text = str(err)
    found = re.findall(r"(?:aten|prim|quantized|torchaudio)::\w+", text)
    if not found:
        return f"it cannot be converted: {text.strip().splitlines()[-1][:300]}"
    operator, where = found[0], ""
    graph = getattr(traced, "inlined_graph", None)
    for node in [] if graph is None else graph.findAllNodes(operator):
        scope = node.scopeName().rpartition("/")[2]
        where = scope.removeprefix("__module.module").strip(".")
        break
    layer = f" in {where}" if where else ""
    return f"the operator {operator}{layer} cannot be converted"

"""Modules whose ``forward`` runs on a compiled graph.

Every module that holds quantized layers gets a `CompiledModule`. The outermost
one that is called tries to compile itself, with everything inside it as part of
the same graph. If that fails it runs as plain torch, and the modules inside it
try in turn. Graphs are thus as large as possible, whichever method a searcher
or a recipe calls. There is one graph for each call signature and for each state
that a module reports (see `speechbrain_stablequant.runtime.state`).

Before a graph answers on its own, its results are compared with plain torch
for that kind of input (see `_Variant`).
"""

import threading
import time
from dataclasses import replace
from typing import Optional

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.errors import ExecutionError, StableQuantError
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.runtime.execution import CompiledModuleReport
from speechbrain_stablequant.runtime.lowering import planned_int8
from speechbrain_stablequant.runtime.state import ModuleState, execution_states
from speechbrain_stablequant.runtime.tracing import Signature, inert, is_inert

__all__ = ["CompiledModule", "relative_difference"]

logger = get_logger(__name__)

MAX_VARIANTS = 16
# Relative differences from reference execution that are accepted. A wrong graph
# (mask, length, branch) is typically off by 1 or more. A right one on integers
# still differs: a value halfway between two levels may round either way, which
# is visible at few bits.
TOLERANCE, FLOAT_TOLERANCE = 0.3, 0.03

# Tracing patches functions and layers that all threads share, so that only one
# thread may compile at a time. Reentrant: a failed module compiles those
# inside.
_COMPILING = threading.RLock()


class CompiledModule:
    """Stands in for the ``forward`` of one module.

    Arguments
    ---------
    name : str
        Qualified name of the module.
    module : torch.nn.Module
        The module.
    backend : Backend
        Compiles it, see `speechbrain_stablequant.runtime.backend`.
    """

    def __init__(self, name: str, module: nn.Module, backend):
        self.name, self.module, self.backend = name, module, backend
        before = module.__dict__.get("forward")
        # Part of a model that is accelerated already: go on to the forward
        # beneath, or results would come from a graph of a graph.
        while isinstance(before, CompiledModule):
            before = before.before
        self.before = before
        self.failure: Optional[str] = None
        self.variants: dict[Signature, _Variant] = {}
        self.reports: list[CompiledModuleReport] = []
        self._lock = threading.RLock()
        self._state = ModuleState()
        self._ready = True

    # -- in place of forward --------------------------------------------------

    def __call__(self, *args, **kwargs):
        """Run the compiled model if there can be one, else the module."""
        if is_inert() or self.failure is not None or self.module.training:
            return self.reference(*args, **kwargs)
        start = time.perf_counter()
        try:
            signature, tensors = Signature.of(args, kwargs)
            # Under autocast callers pass half precision, and tracing would
            # record casts. The runtime has a precision setting of its own.
            if torch.is_autocast_enabled("cpu"):
                with torch.autocast("cpu", enabled=False):
                    full = [_in_float32(tensor) for tensor in tensors]
                    args, kwargs = signature.arguments(full)
                    return self(*args, **kwargs)
            # Graphs compute no gradients, and runtimes are unreliable on empty
            # tensors.
            if any(
                t.requires_grad and torch.is_grad_enabled() for t in tensors
            ) or not all(t.numel() for t in tensors):
                return self.reference(*args, **kwargs)
            variant = self._variant(signature, tensors)
            if variant is None:
                return self.reference(*args, **kwargs)
            return variant(tensors, lambda: self._inert(args, kwargs))
        except ExecutionError:
            raise
        except (StableQuantError, RuntimeError) as err:
            seconds = time.perf_counter() - start
            # Was the call itself at fault? Then plain torch raises here, and
            # the module may still be compiled at the next, valid call.
            self._inert(args, kwargs)
            self._fail(_reason(err), seconds)
        return self.reference(*args, **kwargs)

    def reference(self, *args, **kwargs):
        """Run the module's own ``forward``; modules inside may be compiled."""
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _inert(self, args, kwargs):
        with inert(), torch.no_grad():
            return self.reference(*args, **kwargs)

    def install(self) -> None:
        """Take the place of the module's ``forward``."""
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Give the module its own ``forward`` back."""
        if self.module.__dict__.get("forward") is self:
            del self.module.__dict__["forward"]
            if self.before is not None:
                self.module.__dict__["forward"] = self.before

    def __reduce__(self):
        raise StableQuantError(
            "An accelerated model cannot be copied or pickled: call "
            "decelerate(model) first. state_dict() works as always."
        )

    # -- variants -------------------------------------------------------------

    def _variant(self, signature: Signature, tensors) -> Optional["_Variant"]:
        """Return the graph for a call.

        None when nothing is quantized now, a part is in training mode, or one
        is in a state that no graph should be made of.
        """
        with self._lock:
            state = ModuleState.of(self.module)
            if state.identity != self._state.identity:
                # Weights were loaded or restored: constants in the graphs are
                # out of date.
                self.variants.clear()
                self._state = state
                modules = list(self.module.modules())
                self._ready = not any(m.training for m in modules) and any(
                    isinstance(m, QuantizedModule) for m in modules
                )
            if not self._ready:
                return None
            said = execution_states(state.stateful)
            if said is None:
                return None
            signature = replace(signature, state=said)
            found = self.variants.get(signature)
            if found is None:
                if len(self.variants) >= MAX_VARIANTS:
                    raise StableQuantError(
                        f"it was called in more than {MAX_VARIANTS} ways "
                        "(an argument that is a number, or a state, changes "
                        "at each call)"
                    )
                with _COMPILING:
                    found = _Variant(self, signature, tensors, state.stateful)
                self.variants[signature] = found
            return found

    def _fail(self, reason: str, seconds: float) -> None:
        """Run as plain torch from now on; the modules inside may compile.

        A single quantized layer has nothing inside to fall back to: unless
        ``allow_float`` permits that, it is an error.
        """
        self.variants.clear()
        if isinstance(self.module, QuantizedModule) and planned_int8(
            self.module
        ):
            self.backend.forbid_float(
                self.name, f"cannot run on {self.backend.name}: {reason}"
            )
        self.failure = reason
        self.reports.append(
            CompiledModuleReport(self.name, seconds, failure=reason)
        )
        logger.warning(
            "%s does not run on %s as a whole: %s",
            self.name or type(self.module).__name__,
            self.backend.name,
            self.failure,
        )


class _Variant:
    """One compiled graph of a module: that of one call signature."""

    def __init__(
        self, owner: CompiledModule, signature: Signature, tensors, stateful
    ):
        start = time.perf_counter()
        self.compiled = owner.backend.compile(owner.module, signature, tensors)
        if execution_states(stateful) != signature.state:
            # Replaying the graph would leave the state as it was, so that
            # what other modules compute from it would be wrong.
            raise StableQuantError("its forward changes an execution_state")
        self.report = CompiledModuleReport(
            owner.name,
            seconds=time.perf_counter() - start,
            cached=self.compiled.cached,
        )
        owner.backend.check_execution(owner.name, self.compiled)
        owner.reports.append(self.report)
        rows = self.compiled.layers
        in_float = not any(row.planned_int8 for row in rows)
        exact = in_float and owner.backend.precision == "f32"
        self.tolerance = FLOAT_TOLERANCE if exact else TOLERANCE

    def __call__(self, tensors, reference):
        """Run; compare with reference execution where a shape is new.

        A trace may have recorded a length as a constant, or the branch of an
        ``if`` that holds for some lengths only. Results are therefore compared
        the first time that an axis differs from the traced example, and again
        whenever its size has doubled: few comparisons, yet none of them far
        from any size that is used.
        """
        structure, unproven = self.compiled.structure, self._unproven(tensors)
        start = time.perf_counter()
        if unproven:
            # Reference first: it raises on inputs that would crash a runtime.
            expected = reference()
            seconds = time.perf_counter() - start
        results = self.compiled.run(tensors)
        if not self.compiled.plausible(tensors, results):
            raise StableQuantError("it returned an empty result")
        if unproven:
            wanted, flat = type(structure).of(expected)
            if (wanted.spec, wanted.leaves) != (
                structure.spec,
                structure.leaves,
            ):
                raise StableQuantError(
                    "a part of its result that is not a tensor changes with the "
                    "call"
                )
            difference = relative_difference(results, flat)
            self.report.seconds += seconds
            if difference > self.tolerance:
                raise StableQuantError(
                    "its graph differs from reference execution for inputs of "
                    f"shape {[tuple(t.shape) for t in tensors]} "
                    f"(relative difference {difference:.2g})"
                )
            self.report.difference = max(
                difference, self.report.difference or 0.0
            )
            self.compiled.prove(unproven)
        return structure.build(results)

    def _unproven(self, tensors) -> set[str]:
        """Return axes, with the magnitude of their size, not yet compared."""
        axes = {"example"}
        for index, tensor in enumerate(tensors):
            example = self.compiled.example_shapes[index]
            for axis, (size, traced) in enumerate(zip(tensor.shape, example)):
                if size != traced:
                    axes.add(f"{index}.{axis}.{size.bit_length()}")
        return axes - self.compiled.proven


def _reason(err: Exception) -> str:
    """Return the line of an error that says what was wrong."""
    if isinstance(err, StableQuantError):
        return str(err)
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(err).__name__


def relative_difference(results, expected) -> float:
    """Return the largest relative difference of two lists of tensors.

    Arguments
    ---------
    results, expected : list of torch.Tensor
        Tensors to compare.

    Returns
    -------
    float
        Root mean square of the difference over that of the expected values
        (absolute where these are nearly zero); infinity where shapes or places
        of infinite values differ.

    Example
    -------
    >>> relative_difference([torch.ones(2)], [torch.full((2,), 2.0)])
    0.5
    """
    worst = 0.0
    if len(results) != len(expected):
        return float("inf")
    for result, wanted in zip(results, expected):
        if result.shape != wanted.shape:
            return float("inf")
        a = result.detach().to(torch.float64)
        b = wanted.detach().to(torch.float64)
        finite = torch.isfinite(b)
        if not torch.equal(torch.isfinite(a), finite):
            return float("inf")
        a, b = a[finite], b[finite]
        scale = float(b.norm())
        difference = float((a - b).norm())
        if scale > 1e-6 * b.numel() ** 0.5:  # else it is rounding errors
            difference /= scale
        worst = max(worst, difference)
    return worst


def _in_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Undo what autocast did to a tensor; the runtime has its own precision."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.to(torch.float32)
    return tensor

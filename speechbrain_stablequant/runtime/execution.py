"""Reports of what really ran: layers and the precision of their kernels."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Optional

__all__ = ["LayerExecution", "RuntimeReport", "CompiledModuleReport"]


@dataclass
class LayerExecution:
    """How one quantized layer runs, read from the runtime's own graph.

    Arguments
    ---------
    name : str
        Qualified name of the layer.
    planned_int8 : bool
        Whether the plan quantizes weights and inputs to at most 8 bits.
    precision : str
        ``int8``, ``bf16``, ``f32``, ...: the type in which the kernel takes
        its input; ``reference`` when plain torch ran it; ``not run``.
    kernel : str
        The runtime's name of the kernel.
    weights : str
        How a weight-only layer keeps its weights: ``int4``, ``int8``
        (compressed) or ``expanded`` (float, at load).
    """

    name: str
    planned_int8: bool
    precision: str
    kernel: str = ""
    weights: str = ""


@dataclass
class CompiledModuleReport:
    """One compiled graph of a module, or why there is none.

    Arguments
    ---------
    name : str
        Qualified name of the module.
    seconds : float
        Time to trace, convert, compile and verify, or to load from the cache.
    cached : bool
        Whether it came from the cache on disk.
    difference : float, optional
        Relative difference of its output to reference execution.
    failure : str, optional
        Why it runs in parts, or on plain torch.
    """

    name: str
    seconds: float = 0.0
    cached: bool = False
    difference: Optional[float] = None
    failure: Optional[str] = None


@dataclass
class RuntimeReport:
    """How a runtime executes a model.

    Arguments
    ---------
    runtime : str
        ``openvino`` or ``onnx``.
    settings : dict
        Threads, precision of what is not int8, processor features.
    layers : list of LayerExecution
        One for each quantized layer.
    units : list of CompiledModuleReport
        One for each compiled graph, and for each module that could not be
        compiled. Called ``units`` in JSON reports, hence here.
    notes : list of str
        Notes, for example that weights run at 7 bits.
    """

    runtime: str
    settings: dict
    layers: list[LayerExecution] = field(default_factory=list)
    units: list[CompiledModuleReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_int8(self) -> int:
        """Number of planned layers that run on integer kernels."""
        return sum(
            r.planned_int8 and r.precision == "int8" for r in self.layers
        )

    @property
    def num_planned(self) -> int:
        """Number of layers whose weights and inputs the plan quantizes."""
        return sum(r.planned_int8 for r in self.layers)

    @property
    def num_run(self) -> int:
        """Number of planned layers that ran at all."""
        return sum(
            r.planned_int8 and r.precision != "not run" for r in self.layers
        )

    @property
    def seconds(self) -> float:
        """Seconds spent on compiling and loading."""
        return sum(unit.seconds for unit in self.units)

    def summary(self) -> str:
        """Return one line: how many layers run in which precision."""
        counts = Counter(
            row.precision
            for row in self.layers
            if row.planned_int8 and row.precision not in ("int8", "not run")
        )
        rest = "".join(f", {n} in {p}" for p, n in sorted(counts.items()))
        idle = self.num_planned - self.num_run
        if idle:
            rest += f", {idle} not run"
        others = Counter(
            row.weights or row.precision
            for row in self.layers
            if not row.planned_int8
        )
        text = (
            f"{self.num_int8} of {self.num_planned} layers executed in int8"
            + rest
        )
        if others:
            kinds = ", ".join(f"{n} {k}" for k, n in sorted(others.items()))
            text += f"; weight-only layers: {kinds}"
        return text

    def lines(self) -> list[str]:
        """Return text for the report's table."""
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items())
        lines = [f"runtime: {self.runtime} ({settings})", f"  {self.summary()}"]
        for unit in self.units:
            if unit.failure is not None:
                lines.append(f"  {unit.name or 'model'}: {unit.failure}")
        return lines + [f"  {note}" for note in self.notes]

    def to_dict(self) -> dict:
        """Return plain data."""
        return {
            **asdict(self),
            "num_int8": self.num_int8,
            "num_planned": self.num_planned,
            "num_run": self.num_run,
        }

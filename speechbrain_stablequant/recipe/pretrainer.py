"""Scripts without a Brain: quantize what a ``Pretrainer`` loads."""

import atexit
import dataclasses
import weakref
from itertools import chain, islice
from pathlib import Path
from typing import Optional

from speechbrain.utils.data_utils import recursive_to
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.core.options import check_names
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import KnobError, PlanError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.layers.modules import as_module_dict, evaluating
from speechbrain_stablequant.methods.pipeline import (
    Planned,
    given_plan,
    make_plan,
)
from speechbrain_stablequant.metrics.evaluator import DistanceEvaluator
from speechbrain_stablequant.report import Report
from speechbrain_stablequant.runtime import Acceleration, require_cpu

__all__ = ["watch_pretrainer"]

logger = get_logger(__name__)


def watch_pretrainer(pretrainer, quantizer) -> None:
    """Quantize what a pretrainer loads, right after it has loaded it.

    Arguments
    ---------
    pretrainer : speechbrain.utils.parameter_transfer.Pretrainer
        Its ``load_collected`` is wrapped, on the instance.
    quantizer : PostTrainingQuantizer
        The block of the hparams.
    """
    load_collected = pretrainer.load_collected

    def watched(*args, **kwargs):
        result = load_collected(*args, **kwargs)
        _quantize_loaded(pretrainer, quantizer)
        return result

    pretrainer.load_collected = watched


def _quantize_loaded(pretrainer, quantizer) -> None:
    """Quantize a pretrainer's modules: no metric, calibration data if given."""
    _check_method(quantizer.settings)
    root = _root(pretrainer, quantizer.modules)
    if quantizer.backend is not None:
        require_cpu(root)  # before calibration is spent
    conversion = Conversion(root)
    try:
        planned = _plan(conversion, quantizer)
        conversion.apply_plan(planned.plan, planned.weights)
    except BaseException:
        conversion.restore()
        raise
    quantizer.report = report = Report(quantizer.label, planned)
    folder = None
    if quantizer.output_folder is not None:
        folder = Path(quantizer.output_folder)
        quantizer.write_results(folder, root)  # all ranks must call it
        folder = folder if if_main_process() else None
    else:
        report.announce()
    if quantizer.backend is not None:
        acceleration = Acceleration(root, quantizer.backend)
        acceleration.install()
        quantizer.execution = ExecutionLog(acceleration, report, folder)


def _check_method(settings) -> None:
    """Refuse methods that need a metric, which a pretrainer does not have."""
    if settings.plan is None and settings.method in (
        "quantization_aware",
        "stablequant",
    ):
        raise KnobError(
            "Through a pretrainer there is neither a metric to search with "
            "nor a loop to train in: use method: uniform, method: "
            "mixed_precision with a target_size, or plan: path.json from an "
            "earlier run."
        )


def _root(pretrainer, modules) -> nn.ModuleDict:
    """Return the modules to quantize: given, named, or all loadables."""
    loadables = {
        name: obj
        for name, obj in pretrainer.loadables.items()
        if isinstance(obj, nn.Module)
    }
    if not modules:
        modules = loadables
    elif not isinstance(modules, dict):
        check_names(
            "modules: the pretrainer", modules, loadables, what="module"
        )
        modules = {name: loadables[name] for name in modules}
    return as_module_dict(modules)


def _plan(conversion: Conversion, quantizer) -> Planned:
    """Return the plan: given, or by the method of the block."""
    settings = quantizer.settings
    if settings.plan is None:
        run, batches = _calibration(conversion.root, quantizer)
        evaluator = None
        if settings.method == "mixed_precision" and batches is not None:
            evaluator = DistanceEvaluator(
                run, islice(batches, settings.search_utterances)
            )
        calibrate = None
        if batches is not None:
            limit = settings.calibration_utterances
            calibrate = lambda: [run(b) for b in islice(batches, limit)]  # noqa: E731
        with evaluating(conversion.root.values()):
            return make_plan(conversion, settings, calibrate, evaluator)
    plan = QuantizationPlan.load(settings.plan)
    plan = _loaded_part(plan, conversion.root, settings.plan)
    return given_plan(conversion, settings, plan)


def _loaded_part(plan: QuantizationPlan, root, path) -> QuantizationPlan:
    """Return the part of a plan whose modules this script loads.

    A script that computes embeddings loads no classifier, although the plan
    of the training recipe has one. A layer that is missing within a loaded
    module is still an error.
    """
    planned = {name.partition(".")[0] for name in plan.layers}
    absent = sorted(planned - set(root))
    if not absent:
        return plan
    layers = {
        name: layer
        for name, layer in plan.layers.items()
        if name.partition(".")[0] in root
    }
    if not layers:
        raise PlanError(
            f"{path} is a plan for {', '.join(absent)}; this script has "
            f"{', '.join(root)}. Where only names differ, give them in "
            "modules: {name in the plan: !ref <module>}."
        )
    logger.info(
        "%s: left out %d layers of %s, which this script does not load",
        path,
        len(plan.layers) - len(layers),
        ", ".join(absent),
    )
    return dataclasses.replace(plan, layers=layers)


def _calibration(root, quantizer):
    """Return what runs a batch and the block's batches, None without any."""
    batches, forward = quantizer.calibration
    if batches is not None and forward is None and len(root) != 1:
        raise KnobError(
            "calibration_forward is needed to run several modules "
            f"({', '.join(root)}), or choose one of them in modules."
        )
    return lambda batch: (forward or _call_only)(root, batch), batches


def _call_only(root, batch):
    """Call the only module: on the parts of a batch, if it has several."""
    module = next(iter(root.values()))
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    first = next(chain(module.parameters(), module.buffers()), None)
    if first is not None:
        parts = recursive_to(parts, first.device)
    return module(*parts)


class ExecutionLog:
    """Logs how many layers run in int8, as soon as that is known.

    A module is compiled when the script first calls it, after the block has
    done its work, and nothing tells the block when the script is done with
    the model. So a forward hook logs the state and writes ``report.json``
    each time that something was compiled; the rest is logged at exit.

    Arguments
    ---------
    acceleration : Acceleration
        The model, installed on its runtime.
    report : Report
        Gets the runtime's report.
    folder : Path, optional
        Where the report is written.
    """

    def __init__(
        self, acceleration: Acceleration, report: Report, folder: Optional[Path]
    ):
        self.acceleration, self.report = acceleration, report
        self.folder = folder
        self._logged = 0
        for module in acceleration.root.values():
            module.register_forward_pre_hook(_require_cpu)
            module.register_forward_hook(lambda *_: self.update())
        # Flushes at exit, unless the model was collected before.
        this = weakref.ref(self)
        atexit.register(lambda: this() and this().update())

    def update(self) -> None:
        """Log how the layers run, if something was compiled since."""
        compiled = sum(len(unit.reports) for unit in self.acceleration.modules)
        if compiled == self._logged:
            return
        self._logged = compiled
        self.report.runtime = self.acceleration.report()
        logger.info("%s", "\n".join(self.report.runtime.lines()))
        if self.folder is not None:
            self.report.save(self.folder)


def _require_cpu(module: nn.Module, _) -> None:
    """Refuse a call after the script has moved the model to another device."""
    first = next(chain(module.parameters(), module.buffers()), None)
    if first is not None and first.device.type != "cpu":
        require_cpu(module)

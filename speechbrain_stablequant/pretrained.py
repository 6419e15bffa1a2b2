"""Scripts without a Brain: quantize what a ``Pretrainer`` loads."""

from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.export import export_checkpoints, save_plan
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.pipeline import make_plan
from speechbrain_stablequant.report import Report
from speechbrain_stablequant.roots import roof
from speechbrain_stablequant.runtime import Acceleration

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
    settings, root = quantizer.settings, _root(pretrainer, quantizer.modules)
    if settings.plan is None and settings.method != "uniform":
        raise KnobError(
            "Through a pretrainer there is no metric to search with: use "
            "method: uniform, or plan: path.json from an earlier run."
        )
    conversion = Conversion(root)
    try:
        planned = make_plan(
            conversion, settings, _calibration(root, quantizer), None
        )
        conversion.apply_plan(planned.plan)
    except BaseException:
        conversion.restore()
        raise
    quantizer.report = report = Report(quantizer.label, planned)
    if quantizer.output_folder is not None and if_main_process():
        folder = Path(quantizer.output_folder)
        report.files = export_checkpoints(
            folder / "checkpoint", root, planned.plan, None
        )
        save_plan(planned.plan, folder / "plan.json")
        report.save(folder)
    logger.info("%s", report.table())
    if quantizer.backend is not None:
        Acceleration(root, quantizer.backend).install()


def _root(pretrainer, modules) -> nn.ModuleDict:
    """Return the modules to quantize: given, named, or all loadables."""
    if not modules:
        modules = {
            name: obj
            for name, obj in pretrainer.loadables.items()
            if isinstance(obj, nn.Module)
        }
    elif not isinstance(modules, dict):
        modules = {name: pretrainer.loadables[name] for name in modules}
    return roof(modules)


def _calibration(root, quantizer):
    """Return what runs the block's calibration data, or None without any."""
    batches, forward = quantizer.calibration
    if batches is None:
        return None
    if forward is None:
        if len(root) != 1:
            raise KnobError(
                "calibration_forward is needed to run several modules."
            )
        only = next(iter(root.values()))
        forward = lambda modules, batch: only(batch)  # noqa: E731

    def calibrate():
        limit = quantizer.settings.calibration_utterances
        # Fresh modules are in training mode: batch norm would learn.
        modes = {module: module.training for module in root.modules()}
        root.eval()
        try:
            for _, batch in zip(range(limit), batches):
                forward(root, batch)
        finally:
            for module, mode in modes.items():
                module.training = mode

    return calibrate

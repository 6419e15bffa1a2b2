"""`PostTrainingQuantizer`: the block that a user adds to a recipe."""

import dataclasses
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Optional, Union

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.artifacts.run_checkpoints import (
    export_checkpoints,
    save_plan,
)
from speechbrain_stablequant.errors import ExecutionError, KnobError, nearest
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.layers.modules import as_module_dict
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.methods.search import weights_digest
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.metrics.pass_measure import measured_pass
from speechbrain_stablequant.publishing.schedule import make_publisher
from speechbrain_stablequant.recipe.checkpoint_selection import (
    checkpoint_keys,
    chosen_key,
    kept_weights,
)
from speechbrain_stablequant.recipe.evaluator import find_metrics
from speechbrain_stablequant.recipe.isolation import (
    guarded,
    noted_start,
    test_name,
)
from speechbrain_stablequant.recipe.mixin import attach
from speechbrain_stablequant.recipe.passes import find_module
from speechbrain_stablequant.recipe.planner import Planner, shows_progress
from speechbrain_stablequant.recipe.pretrainer import watch_pretrainer
from speechbrain_stablequant.recipe.validation import (
    preserved,
    timed,
    validate,
    validation_loader,
)
from speechbrain_stablequant.report import Report, TestResult
from speechbrain_stablequant.runtime import make_backend, require_cpu, running

__all__ = ["PostTrainingQuantizer"]

logger = get_logger(__name__)


class PostTrainingQuantizer:
    """Quantizes a recipe's model after training and measures what that costs.

    Add it to the hparams of a recipe and run the recipe as usual::

        ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
            checkpointer: !ref <checkpointer>

    After each float test pass follows a quantized one over the same data. The
    result is a table in the log, ``report.json``, the plan and a checkpoint
    below ``<output_folder>/ptq``. Float weights and checkpoints stay as they
    are.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer, optional
        The recipe's; through it the block gets hold of the Brain. Not needed
        when the Brain has `PostTrainingQuantizationMixin`.
    pretrainer : speechbrain.utils.parameter_transfer.Pretrainer, optional
        For scripts without a Brain: quantizes what it loads.
    modules : dict or list of str, optional
        Modules to quantize, by name; by default all of the Brain's, or all
        loadables of the pretrainer.
    evaluate_float : bool
        Whether to run the float test pass too; without it there is nothing
        to compare with.
    when : str
        ``evaluate``, or ``fit`` for recipes that never call ``evaluate``: the
        checkpoint that the recipe keeps is quantized and scored on the
        validation set.
    output_folder : str, optional
        Where results go; by default ``<output_folder>/ptq``.
    suffix : str
        Put into the names of files that the quantized pass writes.
    calibration_batches : iterable, optional
        With ``pretrainer``: data to calibrate with, for example
        `WaveformBatches`.
    calibration_forward : callable, optional
        With ``pretrainer``: called as ``f(modules, batch)``, by default the
        only module is called on the batch, or on its parts if it is a tuple.
    runtime : str
        ``reference``: the quantized pass runs on plain torch, which is exact
        and slow. ``openvino`` or ``onnx``: it runs on integer kernels, and
        the report has its speed beside that of the float pass.
    runtime_threads : int, optional
        Threads of the runtime; by default those of torch.
    runtime_precision : str
        Of what is not int8: ``auto``, ``f32`` or ``bf16``.
    allow_float : list of str
        Layers (``*`` wildcards) that the runtime may run in float although
        the plan quantizes them; any other is an error.
    min_key, max_key : str, optional
        With ``when: fit``: quantize the checkpoint whose value of this key is
        the lowest (highest), as in ``evaluate``. With ``method:
        quantization_aware``: train from that one, and keep the best of the
        training by the same key. By default the key by which the recipe keeps
        its checkpoints, if that is one; else the weights stay as training has
        left them.
    plots : bool
        Whether to make ``report.html`` and ``plots`` beside ``report.json``.
    publish : dict, optional
        Make a folder for a model hub when the recipe has come to its end, and
        upload it: ``{repo: user/name}``. See
        `speechbrain_stablequant.publishing.PublishKnobs`.
    **knobs : dict
        See `speechbrain_stablequant.methods.settings.Settings`.

    Raises
    ------
    KnobError
        For an unknown option or a value out of range, when the YAML is loaded.
    """

    def __init__(
        self,
        checkpointer=None,
        pretrainer=None,
        modules: Union[dict, list, None] = None,
        evaluate_float: bool = True,
        when: str = "evaluate",
        output_folder: Optional[str] = None,
        suffix: str = "_ptq",
        calibration_batches=None,
        calibration_forward: Optional[Callable] = None,
        runtime: str = "reference",
        runtime_threads: Optional[int] = None,
        runtime_precision: str = "auto",
        allow_float: Union[str, list] = (),
        min_key: Optional[str] = None,
        max_key: Optional[str] = None,
        plots: bool = True,
        publish: Optional[dict] = None,
        **knobs: Any,
    ):
        if pretrainer is not None and knobs.get("plan") is None:
            knobs.setdefault("method", "uniform")  # there is no metric
        _check_names(knobs)
        self.planner = Planner(Settings.from_knobs(knobs, "ptq"), suffix)
        if when not in ("evaluate", "fit"):
            raise KnobError(
                f"when '{when}' is unknown."
                + nearest(when, ("evaluate", "fit"))
            )
        if not suffix:
            raise KnobError("suffix must not be empty: files would be lost.")
        self.modules, self.when, self.suffix = modules, when, suffix
        self.evaluate_float, self.plots = evaluate_float, plots
        self.publisher = make_publisher(publish)
        self.output_folder = output_folder
        self.calibration = (calibration_batches, calibration_forward)
        self.backend = make_backend(
            runtime, runtime_threads, runtime_precision, allow_float
        )
        self.keys = checkpoint_keys(
            min_key, max_key, when == "fit" or self.planner.trains
        )
        self._chosen: dict = {}  # the key that the next pass chooses by
        self.weights: Optional[dict] = None
        self.execution: Any = None
        self._planned: Optional[tuple[str, Planned]] = None
        self.report: Optional[Report] = None
        if checkpointer is not None:
            self._watch_checkpointer(checkpointer)
        if pretrainer is not None:
            watch_pretrainer(pretrainer, self)

    @property
    def settings(self) -> Settings:
        """The knobs."""
        return self.planner.settings

    @settings.setter
    def settings(self, value: Settings) -> None:
        self.planner.settings = value

    @property
    def label(self) -> str:
        """A few words that name the quantization in logs."""
        return self.planner.label

    # -- attaching ---------------------------------------------------------------

    def _watch_checkpointer(self, checkpointer) -> None:
        """Get hold of the Brain: it registers itself with its checkpointer."""
        add_recoverable = checkpointer.add_recoverable

        def watched(name, obj, *args, **kwargs):
            if name == "brain":
                attach(obj, self)
            return add_recoverable(name, obj, *args, **kwargs)

        checkpointer.add_recoverable = watched

    # -- what the mixin calls --------------------------------------------------------

    def remember_data(self, valid_set, loader_kwargs: dict) -> None:
        """Remember the recipe's validation data for calibration."""
        self.planner.data = (valid_set, dict(loader_kwargs))

    def after_fit(
        self,
        brain,
        keys: Iterable[tuple[str, str]] = (),
        fit: Optional[tuple[Callable, dict]] = None,
    ) -> None:
        """Do what follows ``fit``: training with quantized layers, scoring.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        keys : iterable
            By what the recipe keeps checkpoints, see
            `speechbrain_stablequant.recipe.checkpoint_selection`.
        fit : tuple, optional
            The recipe's own ``fit`` and the arguments of its call, for
            ``method: quantization_aware``.
        """
        trains = self.planner.trains and fit and not brain.test_only
        if self.when != "fit" and not trains:
            return
        folder = self._folder(brain)
        with kept_weights(brain, self.keys, keys, folder) as self.weights:
            if trains:
                with self._converting(brain) as conversion:
                    self.planner.train(brain, conversion, fit, folder)
            if self.when != "fit":
                return
            self._chosen = chosen_key(self.weights)
            if self.planner.data[0] is not None:
                self._validate(brain)
                return
            with self._converting(brain) as conversion:
                planned = self._plan(brain, conversion)
                conversion.apply_plan(planned.plan, planned.weights)
                self._finish(brain, conversion, planned, None)

    def _validate(self, brain) -> None:
        """Score on the whole validation set, in float and quantized."""
        loader = validation_loader(brain, *self.planner.data)
        seed, progress = self.settings.seed, shows_progress(brain)
        result, start = TestResult("validation"), {}

        def run() -> float:
            return validate(brain, loader, seed, progress)

        if self.backend is not None:
            require_cpu(self._root(brain))
        if self.evaluate_float:
            with preserved(brain), self._guarded(brain):
                start = self._run_float(brain, run, result)
        self.evaluate_quantized(brain, run, result, start)

    def evaluate(self, brain, run: Callable[[], float], keys: dict) -> float:
        """Run the float test pass, then the quantized one.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        run : callable
            The recipe's own ``evaluate`` with its arguments.
        keys : dict
            ``max_key`` and ``min_key`` of the call.

        Returns
        -------
        float
            The average test loss of the float pass, as the recipe expects;
            of the quantized pass when ``evaluate_float`` is False.
        """
        if self.backend is not None:
            require_cpu(self._root(brain))  # before the float pass is spent
        used = set() if self.report is None else set(self.report.names())
        result, start = TestResult(test_name(brain, used)), {}
        if self.evaluate_float:
            start = self._run_float(brain, run, result)
        else:
            brain.on_evaluate_start(**keys)
        self._chosen = keys
        self.evaluate_quantized(brain, run, result, start)
        return result.loss if result.float_loss is None else result.float_loss

    def _run_float(self, brain, run, result: TestResult) -> dict:
        """Score the float model; return what the pass started from."""
        with noted_start(brain) as start, measured_pass(brain) as measure:
            result.float_loss, result.float_seconds = timed(run)
        result.float_measure = measure
        result.float_metrics = find_metrics(brain)
        return start

    def evaluate_quantized(
        self, brain, run, result: TestResult, start: Optional[dict] = None
    ) -> None:
        """Quantize what the Brain holds now, score it and restore it.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain, its float weights loaded.
        run : callable
            The recipe's own ``evaluate`` with its arguments.
        result : TestResult
            Filled with the quantized scores, and added to the report.
        start : dict, optional
            What the float pass started from: its ``step`` and ``time``.
        """
        start = start or {}
        with self._converting(brain) as conversion:
            planned = self._plan(brain, conversion)
            conversion.apply_plan(planned.plan, planned.weights)
            try:
                with (
                    self._guarded(brain, start.get("time")),
                    running(conversion.root, self.backend) as runtime,
                ):
                    logger.info("Quantized test pass (%s)", self.label)
                    brain.step = start.get("step", brain.step)
                    with measured_pass(brain) as measure:
                        result.loss, result.seconds = timed(run)
                    result.measure_quantized(measure, runtime)
                    result.metrics = find_metrics(brain)
            except ExecutionError:
                # The plan and the checkpoint are fine: they are not lost.
                self._finish(brain, conversion, planned, None)
                raise
            self._finish(brain, conversion, planned, result)

    # -- the steps ---------------------------------------------------------------

    def _root(self, brain) -> nn.ModuleDict:
        """Return the modules to quantize, in one ModuleDict."""
        modules = self.modules
        if modules is None:
            modules = dict(brain.modules)
        elif not isinstance(modules, dict):
            modules = {name: find_module(brain, name) for name in modules}
        return as_module_dict(modules)

    def _converting(self, brain):
        """Return a context in which the layers of a Brain are converted."""
        return self.planner.converting(brain, self._root(brain))

    def _folder(self, brain) -> Path:
        if self.output_folder is not None:
            return Path(self.output_folder)
        return Path(getattr(brain.hparams, "output_folder", "results")) / "ptq"

    def _journal_folder(self, brain) -> Path:
        """Return the folder of searches and trainings."""
        return self._folder(brain)

    def _plan(self, brain, conversion: Conversion) -> Planned:
        """Return the plan for the weights as they are now."""
        digest = weights_digest(conversion.root)
        known = None
        if self._planned is not None and self._planned[0] == digest:
            known = self._planned[1]
        if known is not None and not self.planner.trains:
            return known
        keys = self.keys or self._chosen
        folder = self._journal_folder(brain)
        planned = self.planner.make(brain, conversion, keys, folder)
        if known is not None and known.search == planned.search:
            return known  # trained; its other values are loaded again
        if planned.unreached:
            logger.warning(
                "Validation never reaches %d layers; their inputs stay float: "
                "%s. Where they belong to one of several domains, validate "
                "with all of them: set_domain takes a list, one for each "
                "utterance.",
                len(planned.unreached),
                ", ".join(planned.unreached[:5]),
            )
        self._planned = (digest, planned)
        self.report = Report(self.label, planned)
        self.report.weights = self.weights
        return planned

    def _guarded(self, brain, since: Optional[float] = None):
        """Return the guard around whatever runs with quantized modules."""
        return guarded(
            brain, self.suffix, self.label, self._folder(brain), since
        )

    @main_process_only  # all ranks must call it: SpeechBrain's savers broadcast
    def _finish(self, brain, conversion, planned, result) -> None:
        """Write the checkpoint once, and the report after each test set."""
        folder = self._folder(brain)
        report = self.report
        if report.files is None:
            report.files = export_checkpoints(
                folder / "checkpoint",
                conversion.root,
                planned.plan,
                getattr(brain, "checkpointer", None),
            )
            save_plan(planned.plan, folder / "plan.json")
        if result is not None:
            report.add(result, self.settings.seed)
        train_logger = getattr(brain.hparams, "train_logger", None)
        report.publish(folder, train_logger, self.plots)
        if self.publisher is not None:
            self.publisher.schedule(folder)


def _check_names(knobs: dict) -> None:
    """Refuse unknown options, pointing to the nearest of all there are."""
    own = [*inspect.signature(PostTrainingQuantizer).parameters][:-1]
    known = [*own, *(f.name for f in dataclasses.fields(Settings))]
    for key in knobs:
        if key not in known:
            raise KnobError(f"ptq has no option '{key}'." + nearest(key, known))

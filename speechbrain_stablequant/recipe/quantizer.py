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
from speechbrain_stablequant.core.options import check_choice, check_names
from speechbrain_stablequant.errors import ExecutionError, KnobError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.publishing.schedule import make_publisher
from speechbrain_stablequant.recipe.block import RecipeBlock
from speechbrain_stablequant.recipe.checkpoint_selection import (
    checkpoint_keys,
    chosen_key,
    kept_weights,
)
from speechbrain_stablequant.recipe.isolation import (
    isolated,
    preserved,
    test_name,
)
from speechbrain_stablequant.recipe.mixin import attach
from speechbrain_stablequant.recipe.passes import float_pass, quantized_pass
from speechbrain_stablequant.recipe.planner import Planner
from speechbrain_stablequant.recipe.pretrainer import watch_pretrainer
from speechbrain_stablequant.recipe.run import RecipeRun
from speechbrain_stablequant.recipe.validation import (
    validate,
    validation_loader,
)
from speechbrain_stablequant.report import Report, TestResult
from speechbrain_stablequant.runtime import make_backend, require_cpu

__all__ = ["PostTrainingQuantizer"]

logger = get_logger(__name__)


class PostTrainingQuantizer(RecipeBlock):
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
        The recipe's; through it the block finds the Brain. Not needed
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
        `speechbrain_stablequant.publishing.PublishOptions`.
    **options : dict
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
        **options: Any,
    ):
        if pretrainer is not None and options.get("plan") is None:
            options.setdefault("method", "uniform")  # there is no metric
        _check_names(options)
        self.planner = Planner(Settings.from_options(options, "ptq"))
        check_choice("when", when, ("evaluate", "fit"))
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
        self.report: Optional[Report] = None
        if checkpointer is not None:
            self._watch_checkpointer(checkpointer)
        if pretrainer is not None:
            watch_pretrainer(pretrainer, self)

    @property
    def settings(self) -> Settings:
        """The options."""
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
        """Attach to the Brain, which registers itself with its checkpointer."""
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
        keys: Iterable[tuple[str, str]],
        fit: tuple[Callable, dict[str, Any]],
    ) -> None:
        """Do what follows ``fit``: training with quantized layers, scoring."""
        trains = self.planner.trains and not brain.test_only
        if self.when != "fit" and not trains:
            return
        run = self.run_of(brain)
        with kept_weights(brain, self.keys, keys, run.folder) as self.weights:
            if trains:
                with self.planner.converting(run) as conversion:
                    self.planner.train(run, conversion, fit)
            if self.when != "fit":
                return
            self._chosen = chosen_key(self.weights)
            if self.planner.data[0] is None:
                self.quantize(self.run_of(brain))  # nothing to score on
            else:
                self._validate(run)

    def _validate(self, run: RecipeRun) -> None:
        """Score on the whole validation set, in float and quantized."""
        brain = run.brain
        loader = validation_loader(brain, *self.planner.data)
        result, start = TestResult("validation"), {}

        def evaluate() -> float:
            seed = self.settings.seed
            return validate(brain, loader, seed, run.shows_progress)

        if self.backend is not None:
            require_cpu(run.root)
        if self.evaluate_float:
            with preserved(brain), isolated(run):
                start = float_pass(run, evaluate, result)
        self.quantize(self.run_of(brain), evaluate, result, start)

    def evaluate(
        self, brain, evaluate: Callable[[], float], keys: dict
    ) -> float:
        """Run the float test pass, then the quantized one.

        Returns
        -------
        float
            The average test loss of the float pass, as the recipe expects;
            of the quantized pass when ``evaluate_float`` is False.
        """
        run = self.run_of(brain)
        if self.backend is not None:
            require_cpu(run.root)  # before the float pass is spent
        used = set() if self.report is None else set(self.report.names())
        result, start = TestResult(test_name(brain, used)), {}
        if self.evaluate_float:
            start = float_pass(run, evaluate, result)
        else:
            brain.on_evaluate_start(**keys)
        self._chosen = keys
        self.quantize(self.run_of(brain), evaluate, result, start)
        return result.loss if result.float_loss is None else result.float_loss

    # -- the steps ---------------------------------------------------------------

    def run_of(self, brain) -> RecipeRun:
        """Return the run of a Brain's recipe, as the options name it.

        Asked for again before each pass: recipes replace modules of the Brain
        in their hooks.
        """
        return RecipeRun.of(
            brain, self.modules, self.output_folder, self.suffix, self.label
        )

    def quantize(
        self,
        run: RecipeRun,
        evaluate: Optional[Callable[[], float]] = None,
        result: Optional[TestResult] = None,
        start: Optional[dict] = None,
    ) -> None:
        """Quantize what a Brain holds now, score it, write it, restore it.

        Arguments
        ---------
        run : RecipeRun
            The run of the recipe.
        evaluate : callable, optional
            The test pass; returns the average loss.
        result : TestResult, optional
            Filled with the quantized scores, and added to the report.
        start : dict, optional
            What `float_pass` returned.
        """
        with self.planner.converting(run) as conversion:
            planned, is_new = self.plan(run, conversion)
            if is_new:
                self.report = Report(self.label, planned)
                self.report.weights = self.weights
            conversion.apply_plan(planned.plan, planned.weights)
            if evaluate is not None and result is not None:
                logger.info("Quantized test pass (%s)", self.label)
                try:
                    quantized_pass(
                        run,
                        run.root,
                        self.backend,
                        evaluate,
                        result,
                        start or {},
                    )
                except ExecutionError:
                    # The plan and the checkpoint are fine: they are not lost.
                    self.write_results(run.folder, run.root, run.brain)
                    raise
            self.write_results(run.folder, run.root, run.brain, result)

    def plan(
        self, run: RecipeRun, conversion: Conversion
    ) -> tuple[Planned, bool]:
        """Return the plan for a Brain's weights, and whether it is new."""
        keys = self.keys or self._chosen
        return self.planner.plan_for(run, conversion, keys)

    @main_process_only  # all ranks must call it: SpeechBrain's savers broadcast
    def write_results(
        self,
        folder: Path,
        root: nn.ModuleDict,
        brain=None,
        result: Optional[TestResult] = None,
    ) -> None:
        """Write the checkpoint once, and the report after each test set.

        Arguments
        ---------
        folder : Path
            Where to write.
        root : torch.nn.ModuleDict
            The quantized modules.
        brain : speechbrain.Brain, optional
            The Brain, where there is one: for its checkpointer and its logger.
        result : TestResult, optional
            Scores to add to the report.
        """
        report = self.report
        if report.files is None:
            checkpointer = getattr(brain, "checkpointer", None)
            plan = report.planned.plan
            report.files = export_checkpoints(
                folder / "checkpoint", root, plan, checkpointer
            )
            save_plan(plan, folder / "plan.json")
        if result is not None:
            report.add(result, self.settings.seed)
        hparams = getattr(brain, "hparams", None)
        train_logger = getattr(hparams, "train_logger", None)
        report.publish(folder, train_logger, self.plots)
        if self.publisher is not None:
            self.publisher.schedule(folder)


def _check_names(options: dict) -> None:
    """Refuse unknown options, pointing to the nearest of all there are."""
    own = [*inspect.signature(PostTrainingQuantizer).parameters][:-1]
    settings = [field.name for field in dataclasses.fields(Settings)]
    check_names("ptq", options, [*own, *settings])

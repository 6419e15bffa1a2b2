"""The two passes over a test set, float and quantized, measured alike."""

import time
from typing import Any, Callable

from torch import nn

from speechbrain_stablequant.metrics.pass_measure import measured_pass
from speechbrain_stablequant.recipe.evaluator import find_metrics
from speechbrain_stablequant.recipe.isolation import isolated, noted_start
from speechbrain_stablequant.recipe.run import RecipeRun
from speechbrain_stablequant.report import TestResult
from speechbrain_stablequant.runtime import running

__all__ = ["float_pass", "quantized_pass"]


def float_pass(
    run: RecipeRun, evaluate: Callable[[], float], result: TestResult
) -> dict[str, Any]:
    """Score the float model.

    Arguments
    ---------
    run : RecipeRun
        The run of the recipe.
    evaluate : callable
        The pass; returns the average loss.
    result : TestResult
        Filled with the float scores.

    Returns
    -------
    dict
        What the pass started from, for the quantized one: the ``step`` of the
        Brain, and the ``time`` in seconds since the epoch.
    """
    brain = run.brain
    with noted_start(brain) as start, measured_pass(brain) as measure:
        result.float_loss, result.float_seconds = _timed(evaluate)
    result.float_measure = measure
    result.float_metrics = find_metrics(brain)
    return start


def quantized_pass(
    run: RecipeRun,
    root: nn.Module,
    backend,
    evaluate: Callable[[], float],
    result: TestResult,
    start: dict[str, Any],
) -> None:
    """Score the quantized modules that a Brain holds.

    Arguments
    ---------
    run : RecipeRun
        The run of the recipe.
    root : torch.nn.Module
        The quantized modules.
    backend : Backend, optional
        The runtime that executes them; None is reference execution.
    evaluate : callable
        The pass; returns the average loss.
    result : TestResult
        Filled with the quantized scores.
    start : dict
        What `float_pass` returned; empty where there was none.

    Raises
    ------
    ExecutionError
        If the runtime executes a layer in float that the plan quantizes.
    """
    brain = run.brain
    with isolated(run, start.get("time")), running(root, backend) as runtime:
        brain.step = start.get("step", brain.step)
        with measured_pass(brain) as measure:
            result.loss, result.seconds = _timed(evaluate)
        result.measure_quantized(measure, runtime)
        result.metrics = find_metrics(brain)


def _timed(evaluate: Callable[[], float]) -> tuple[float, float]:
    """Return what a pass returns, and the seconds that it took."""
    start = time.perf_counter()
    loss = evaluate()
    return float(loss), time.perf_counter() - start

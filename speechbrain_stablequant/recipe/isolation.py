"""Keep passes with quantized modules from touching what the recipe owns.

Recipes save, prune and average checkpoints, reload weights and write result
files during ``evaluate``. Within `isolated` none of that reaches the float
checkpoints of the experiment folder or the files of the float pass; within
`preserved` the Brain itself is left as it was.
"""

import contextlib
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.recipe.evaluator import metrics_of
from speechbrain_stablequant.recipe.result_files import kept_files, with_suffix
from speechbrain_stablequant.recipe.run import RecipeRun

__all__ = ["isolated", "noted_start", "preserved", "result_paths", "test_name"]

logger = get_logger(__name__)

_CHECKPOINTER_METHODS = (
    "save_checkpoint",
    "save_and_keep_only",
    "delete_checkpoints",
    "recover_if_possible",
    "load_checkpoint",
    "load_if_possible",
)
_RESULT_KEY = re.compile(r"_file$")


@contextlib.contextmanager
def isolated(
    run: RecipeRun,
    since: Optional[float] = None,
    spared: Optional[Checkpointer] = None,
) -> Iterator[None]:
    """Keep a pass with quantized modules away from what the recipe owns.

    Arguments
    ---------
    run : RecipeRun
        The run of the recipe. What the pass writes gets its suffix, what it
        logs its label; its folder is not touched.
    since : float, optional
        When the float pass began, in seconds since the epoch.
    spared : Checkpointer, optional
        One that may save and load: that of the plugin's own training.
    """
    brain = run.brain
    folder = _output_folder(brain)
    # Another process may still be writing what its float pass has found.
    ddp_barrier()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_checkpointers_off(brain, spared))
        # It would load the float checkpoint over the quantized modules.
        stack.enter_context(
            _shadowed(brain, {"on_evaluate_start": _do_nothing})
        )
        stack.enter_context(_labelled_log(brain, run.label))
        if folder is not None and folder.is_dir():
            if if_main_process():  # several at once would move each other's
                skip = [*_checkpoint_folders(brain), run.folder.resolve()]
                stack.enter_context(kept_files(folder, skip, run.suffix, since))
            stack.enter_context(_redirected(brain, folder, run.suffix))
        yield
        ddp_barrier()


@contextlib.contextmanager
def preserved(brain: sb.Brain) -> Iterator[None]:
    """Leave no trace in a Brain: attributes, metrics, modes, random numbers.

    What follows (a script that reads the metrics, another epoch) then goes as
    if the block had not been there.
    """
    before = dict(vars(brain))
    metrics = [(m, dict(vars(m))) for m in metrics_of(brain).values()]
    modes = {m: m.training for m in brain.modules.modules()}
    python, numpy = random.getstate(), np.random.get_state()
    cuda = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if cuda else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        vars(brain).clear()
        vars(brain).update(before)
        for stats, attributes in metrics:
            vars(stats).clear()
            vars(stats).update(attributes)
        for module, mode in modes.items():
            module.training = mode


def _output_folder(brain) -> Optional[Path]:
    folder = getattr(brain.hparams, "output_folder", None)
    return None if folder is None else Path(folder)


def _do_nothing(*args, **kwargs) -> None:
    """Stand in for what must not happen during a quantized pass."""


@contextlib.contextmanager
def noted_start(brain) -> Iterator[dict]:
    """Note what a pass starts from: ``"step"``, and ``"time"`` in seconds.

    Loading a checkpoint sets ``brain.step``, not always to zero, and the
    average loss depends on it: two passes must start from the same one.
    """
    start = {"time": time.time()}
    on_evaluate_start = brain.on_evaluate_start

    def noting(*args, **kwargs):
        result = on_evaluate_start(*args, **kwargs)
        start["step"] = brain.step
        return result

    with _shadowed(brain, {"on_evaluate_start": noting}):
        yield start


@contextlib.contextmanager
def _shadowed(target, methods) -> Iterator[None]:
    """Put functions in front of an object's methods, on the instance."""
    before = {name: vars(target).get(name) for name in methods}
    vars(target).update(methods)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                vars(target).pop(name, None)
            else:
                vars(target)[name] = value


@contextlib.contextmanager
def _checkpointers_off(brain, spared) -> Iterator[None]:
    """Neither save, delete nor load checkpoints."""
    found = [c for c in _checkpointers(brain) if c is not spared]
    before = {c: _fingerprint(Path(c.checkpoints_dir)) for c in found}
    with contextlib.ExitStack() as stack:
        for checkpointer in found:
            off = {
                name: _do_nothing
                for name in _CHECKPOINTER_METHODS
                if hasattr(checkpointer, name)
            }
            stack.enter_context(_shadowed(checkpointer, off))
        yield
    for checkpointer, state in before.items():
        if _fingerprint(Path(checkpointer.checkpoints_dir)) != state:
            logger.error(
                "The recipe changed files in %s during the quantized pass "
                "without the checkpointer. They may hold quantized weights: "
                "check them before you resume from them.",
                checkpointer.checkpoints_dir,
            )


def _checkpointers(brain) -> list[Checkpointer]:
    candidates = [brain.checkpointer, *vars(brain.hparams).values()]
    unique = {id(c): c for c in candidates if isinstance(c, Checkpointer)}
    return list(unique.values())


def _fingerprint(folder: Path) -> dict:
    """Return size and time of each file, to notice changes."""
    if not folder.is_dir():
        return {}
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def _labelled_log(brain, label: str) -> Iterator[None]:
    """Mark the lines that the pass writes to the train log."""
    train_logger = getattr(brain.hparams, "train_logger", None)
    if not hasattr(train_logger, "log_stats"):
        yield
        return
    log_stats = train_logger.log_stats

    # Importing it warns of a missing torchvision: only where it is in use.
    from speechbrain.utils.train_logger import TensorboardLogger

    def labelled(stats_meta, *args, **kwargs):
        return log_stats({"ptq": label, **stats_meta}, *args, **kwargs)

    def apart(stats_meta, *stats, **named):
        """Log beside the float curves: TensorBoard takes numbers only."""
        return log_stats(
            _apart(stats_meta), *map(_apart, stats),
            **{key: _apart(value) for key, value in named.items()},
        )  # fmt: skip

    is_tensorboard = isinstance(train_logger, TensorboardLogger)
    mine = apart if is_tensorboard else labelled
    with _shadowed(train_logger, {"log_stats": mine}):
        yield


def _apart(stats):
    """Return the values of a quantized pass under names of their own."""
    if not isinstance(stats, dict):
        return stats  # verbose, or None
    return {f"ptq/{key}": value for key, value in stats.items()}


def result_paths(brain, folder: Path) -> dict[str, Path]:
    """Return the result files that hparams name: below ``folder``, by key."""
    save = _checkpoint_folders(brain)
    found = {}
    for key, value in vars(brain.hparams).items():
        if not (_RESULT_KEY.search(key) and isinstance(value, (str, Path))):
            continue
        path = Path(value)
        inside = folder.resolve() in path.resolve().parents
        if inside and not any(s in path.resolve().parents for s in save):
            found[key] = path
    return found


def test_name(brain, used: set) -> str:
    """Name a test set after the file that the recipe scores into.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    used : set of str
        Names of the test sets before.
    """
    folder = Path(getattr(brain.hparams, "output_folder", "."))
    stems = {k: path.stem for k, path in result_paths(brain, folder).items()}
    for key in sorted(stems, key=lambda k: ("wer" not in k, k)):
        name = stems[key]
        for prefix in ("wer_", "cer_", "scores_"):
            name = name.removeprefix(prefix)
        if name not in used and name != "scores":
            return name
    return f"test {len(used) + 1}"


test_name.__test__ = False  # not a test, whatever pytest makes of the name


def _checkpoint_folders(brain) -> list[Path]:
    folders = [Path(c.checkpoints_dir) for c in _checkpointers(brain)]
    save = getattr(brain.hparams, "save_folder", None)
    if save is not None:
        folders.append(Path(save))
    return [f.resolve() for f in folders]


@contextlib.contextmanager
def _redirected(brain, folder: Path, suffix: str) -> Iterator[None]:
    """Point the recipe's result files elsewhere."""
    before, copies = {}, {}
    for key, path in result_paths(brain, folder).items():
        before[key] = getattr(brain.hparams, key)
        # A file may be an input as well: copy it, so that reading works.
        target = with_suffix(path, suffix)
        if path.is_file() and not target.exists() and if_main_process():
            target.write_bytes(path.read_bytes())
            copies[target] = target.stat().st_mtime_ns
        setattr(brain.hparams, key, str(target))
    try:
        yield
    finally:
        vars(brain.hparams).update(before)
        for target, written in copies.items():
            if target.is_file() and target.stat().st_mtime_ns == written:
                target.unlink()

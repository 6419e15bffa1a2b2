"""Keep a quantized test pass from touching what belongs to the float one.

Recipes save, prune and average checkpoints, reload weights and write result
files during ``evaluate``. While the guard is up, none of that reaches the
experiment folder's float checkpoints or the float pass's files.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

__all__ = ["guarded", "result_paths", "with_suffix"]

logger = get_logger(__name__)

_CHECKPOINTER_METHODS = (
    "save_checkpoint",
    "save_and_keep_only",
    "delete_checkpoints",
    "recover_if_possible",
    "load_checkpoint",
    "load_if_possible",
)
_LOGS = {"log.txt", "env.log", "train_log.txt", "hyperparams.yaml"}
_MAX_KEPT_BYTES = 16 << 20
_RESULT_KEY = re.compile(r"_file$")


def with_suffix(path: Path, suffix: str) -> Path:
    """Put a suffix before the extension.

    Example
    -------
    >>> with_suffix(Path("wer_test-clean.txt"), "_ptq").name
    'wer_test-clean_ptq.txt'
    """
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


@contextlib.contextmanager
def guarded(
    brain, suffix: str, label: str, ours: Optional[Path] = None
) -> Iterator[None]:
    """Guard a Brain's folder and checkpoints while the block runs.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain whose modules are quantized.
    suffix : str
        Put into the names of files that the pass writes.
    label : str
        Added to what the pass logs, so that a line in ``train_log.txt`` can
        be told from the float one.
    ours : Path, optional
        Folder of the plugin's own results, which are not the pass's.
    """
    folder = _output_folder(brain)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_checkpointers_off(brain))
        stack.enter_context(
            _shadowed(brain, {"on_evaluate_start": _do_nothing})
        )
        stack.enter_context(_labelled_log(brain, label))
        if folder is not None and folder.is_dir():
            if if_main_process():  # several at once would move each other's
                stack.enter_context(_kept_files(brain, folder, suffix, ours))
            stack.enter_context(_redirected(brain, folder, suffix))
        yield


def _output_folder(brain) -> Optional[Path]:
    folder = getattr(brain.hparams, "output_folder", None)
    return None if folder is None else Path(folder)


def _do_nothing(*args, **kwargs) -> None:
    """Stand in for what must not happen during a quantized pass."""


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
def _checkpointers_off(brain) -> Iterator[None]:
    """Neither save, delete nor load checkpoints."""
    found = _checkpointers(brain)
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

    def labelled(stats_meta, *args, **kwargs):
        return log_stats({"ptq": label, **stats_meta}, *args, **kwargs)

    with _shadowed(train_logger, {"log_stats": labelled}):
        yield


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
            copies[target] = path.read_bytes()
            target.write_bytes(copies[target])
        setattr(brain.hparams, key, str(target))
    try:
        yield
    finally:
        vars(brain.hparams).update(before)
        for target, data in copies.items():
            if target.is_file() and target.read_bytes() == data:
                target.unlink()


@contextlib.contextmanager
def _kept_files(brain, folder: Path, suffix: str, ours) -> Iterator[None]:
    """Set aside under a suffix whatever else the pass writes.

    This catches files whose names no hyperparameter holds.
    """
    skip = _checkpoint_folders(brain)
    if ours is not None:
        skip.append(ours.resolve())
    before = {
        path: (path.read_bytes(), path.stat())
        for path in _small_files(folder, skip)
    }
    try:
        yield
    finally:
        for path in _small_files(folder, skip):
            if not path.stem.endswith(suffix):
                _set_aside(path, suffix, *before.get(path, (None, None)))
        for path, (data, _) in before.items():
            if not path.exists():
                path.write_bytes(data)


def _set_aside(path: Path, suffix: str, before, stat) -> None:
    """Move what the pass has written to another name; bring the old back."""
    if stat is not None and path.stat().st_mtime_ns == stat.st_mtime_ns:
        return
    data = path.read_bytes()
    if before is None:
        path.replace(with_suffix(path, suffix))
    elif data == before or not data.startswith(before):
        with_suffix(path, suffix).write_bytes(data)
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # else a log that has grown; its writer has it open


def _small_files(folder: Path, skip) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in _LOGS
        and not any(s in path.resolve().parents for s in skip)
        and path.stat().st_size <= _MAX_KEPT_BYTES
    ]

"""Keep the files of a float pass from the quantized pass that follows.

The quantized pass runs the same code over the same data, so it writes where
the float pass has written. Those files are kept, and what it writes moves to
names with a suffix.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger

__all__ = ["kept_files", "with_suffix"]

logger = get_logger(__name__)

_LOGS = {"log.txt", "env.log", "train_log.txt", "hyperparams.yaml"}
_TEXT = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".stm", ".ctm", ".trn"}
_MAX_KEPT_BYTES = 64 << 20
_CLOCK_SECONDS = 2.0  # what a file system's clock may be coarse by


def with_suffix(path: Path, suffix: str) -> Path:
    """Put a suffix before the extension.

    Example
    -------
    >>> with_suffix(Path("wer_test-clean.txt"), "_ptq").name
    'wer_test-clean_ptq.txt'
    """
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


@contextlib.contextmanager
def kept_files(
    folder: Path, skip: Iterable[Path], suffix: str, since: Optional[float]
) -> Iterator[None]:
    """Set aside under a suffix what the block writes below a folder.

    Arguments
    ---------
    folder : Path
        The experiment folder.
    skip : list of Path
        Folders that are looked after elsewhere, resolved.
    suffix : str
        Put into the names of new and changed files.
    since : float, optional
        When the float pass began, in seconds since the epoch: what it has
        written is kept. An experiment folder may hold gigabytes of data, which
        are not read. With None (no float pass) the text files are kept.
    """
    before = {path: path.stat() for path in _files(folder, skip)}
    kept = {
        path: path.read_bytes()
        for path, stat in before.items()
        if stat.st_size <= _MAX_KEPT_BYTES and _worth_keeping(path, stat, since)
    }
    try:
        yield
    finally:
        for path in _files(folder, skip):
            if not path.stem.endswith(suffix):
                _set_aside(path, suffix, before.get(path), kept.get(path))
        for path, data in kept.items():
            if not path.exists():
                path.write_bytes(data)


def _files(folder: Path, skip: Iterable[Path]) -> list[Path]:
    skip = {str(path) for path in skip}
    found = []
    for top, folders, names in os.walk(folder.resolve()):
        folders[:] = [f for f in folders if os.path.join(top, f) not in skip]
        found += [Path(top, name) for name in names if name not in _LOGS]
    return [path for path in found if path.is_file()]


def _worth_keeping(path: Path, stat, since: Optional[float]) -> bool:
    if since is None:
        return path.suffix in _TEXT
    return stat.st_mtime >= since - _CLOCK_SECONDS


def _set_aside(path: Path, suffix: str, stat, data: Optional[bytes]) -> None:
    """Move what the pass has written to another name; bring the old back."""
    if stat is None:
        path.replace(with_suffix(path, suffix))
        return
    if path.stat().st_mtime_ns == stat.st_mtime_ns:
        return
    if data is None:
        logger.error(
            "The quantized pass changed %s, which the float pass had not "
            "written. It was left as it is now.",
            path,
        )
        return
    written = path.read_bytes()
    if written != data and written.startswith(data):
        if path.suffix not in _TEXT:
            return  # a log that has grown; its writer has it open
        written = written[len(data) :]  # lines that were appended
    with_suffix(path, suffix).write_bytes(written)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

"""Write files and folders completely or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional, Union

from speechbrain_stablequant.errors import OutputError

__all__ = ["check_output", "filled", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under another name and move it into place at the end.

    A process that is killed on the way leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}."
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_output(
    output: Union[str, Path], overwrite: Optional[bool] = None
) -> Path:
    """Refuse an output folder that has files in it, before anything takes long.

    Arguments
    ---------
    output : str or Path
        The folder to write.
    overwrite : bool, optional
        Whether the user allows to replace files; None where a command has no
        such option.

    Raises
    ------
    OutputError
        If it is a file, or a folder that is not empty.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file: give a folder to --output.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        way = "remove it" if overwrite is None else "give --overwrite"
        raise OutputError(
            f"{output} is not empty: choose another --output, or {way}."
        )
    return output


@contextlib.contextmanager
def filled(
    output: Path, overwrite: Optional[bool] = None, old: Iterable[str] = ()
) -> Iterator[Path]:
    """Give a temporary folder to fill, which becomes the output at the end.

    If the block fails, the output is as it was before. In an existing output,
    files of the same names are replaced and ``old`` ones removed; others stay.

    Arguments
    ---------
    output : Path
        The folder.
    overwrite : bool, optional
        Whether to replace files in it.
    old : iterable of str
        Names of files that an earlier run of the command wrote.
    """
    check_output(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent)
    try:
        yield Path(work)
        # Not renamed: mkdtemp makes a folder that others cannot read.
        output.mkdir(exist_ok=True)
        made = sorted(Path(work).iterdir())
        for path in made:
            target = output / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        for name in set(old) - {path.name for path in made}:
            (output / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)

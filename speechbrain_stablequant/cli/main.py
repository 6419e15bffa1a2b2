"""Run a command: streams, exit codes, and errors in one line."""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Optional

from speechbrain_stablequant.cli.parser import parse
from speechbrain_stablequant.core.format import printable, to_json
from speechbrain_stablequant.errors import StableQuantError

__all__ = ["main"]

OK, FAILED, MISTAKE, BUG, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return its exit code.

    Arguments
    ---------
    argv : sequence of str, optional
        What follows ``stablequant``; by default the process's own.

    Returns
    -------
    int
        0: done, 1: a check failed, 2: wrong arguments or files, 3: an error of
        this package, 130: interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    try:
        with _quiet():
            return _run(argv)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, as_json)
    except (StableQuantError, OSError) as err:
        if _was_interrupted(err):
            return _fail("interrupted", INTERRUPTED, as_json)
        return _fail(_reason(err), MISTAKE, as_json)
    except SystemExit as leaving:  # --help and --version of argparse
        return leaving.code if isinstance(leaving.code, int) else MISTAKE
    except Exception as err:  # even then the user sees one line
        text = (
            f"unexpected {type(err).__name__}: {_reason(err)} This is an error "
            "of this package: run again with STABLEQUANT_DEBUG=1 and report "
            "the traceback, with the command and the versions in use."
        )
        return _fail(text, BUG, as_json)


def _run(argv: list[str]) -> int:
    """Run a command and print its result."""
    arguments = parse(argv)
    if arguments is None:
        return MISTAKE
    # Libraries that print must not mix with the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = arguments.module.run(arguments)
    if arguments.json:
        text = _json(result)
    else:
        shown = "\n".join(arguments.module.lines(result))
        text = printable(shown, kept="\n")
    _print(text)
    return OK if result.get("ok", True) else FAILED


def _json(result: dict) -> str:
    return to_json(result, indent=1, default=str)  # paths become text


def _print(text: str) -> None:
    """Print to stdout; a reader that has closed the pipe is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Otherwise the interpreter complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(err: BaseException) -> str:
    """Return the message of an error, ended with a full stop."""
    if isinstance(err, OSError) and err.filename is not None:
        text = f"{err.filename}: {err.strerror}"
    else:
        text = str(err).strip() or "(no message)"
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _fail(message: str, code: int, as_json: bool) -> int:
    """Print an error on stderr, and as JSON if that was asked for."""
    if _debugging() and code != INTERRUPTED:
        traceback.print_exc()
    shown = printable(message, kept="\n")
    print(f"stablequant: error: {shown}", file=sys.stderr)
    if as_json:
        _print(_json({"ok": False, "error": message}))
    return code


def _was_interrupted(err: Optional[BaseException]) -> bool:
    """Whether an error was caused by Ctrl-C.

    SpeechBrain's YAML imports classes with `pydoc`, which turns anything that
    is raised on the way into an error of its own.
    """
    while err is not None:
        if isinstance(err, KeyboardInterrupt):
            return True
        err = err.__cause__ or err.__context__
    return False


def _debugging() -> bool:
    return os.environ.get("STABLEQUANT_DEBUG", "") not in ("", "0")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and warnings of libraries, unless debugging."""
    if _debugging():
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    before = logging.root.manager.disable
    # SpeechBrain sets the level of each of its loggers as it is imported
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

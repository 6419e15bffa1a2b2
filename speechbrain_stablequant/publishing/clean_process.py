"""A process of its own, as on another machine: load a model there, and run it.

In this process the recipe's own modules are importable and its objects exist,
so that a model might load here and nowhere else.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import speechbrain_stablequant
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces import Interface

__all__ = ["run_clean"]

_PROGRAM = "speechbrain_stablequant.publishing.run_published"


def run_clean(
    source: str,
    interface: Interface,
    items: list[dict[str, Any]],
    name: str = "",
) -> dict[str, Any]:
    """Load and run a model in a process of its own.

    Arguments
    ---------
    source : str
        Folder or hub name.
    interface : Interface
        What loads it.
    items : list of dict
        What to run it on: a ``key``, and ``text``, or ``path`` (with ``start``
        and ``stop`` in samples), or seconds of ``noise``; ``path2`` and
        ``part2`` of a second utterance; ``text`` and ``label`` are also the
        reference that errors are counted against.
    name : str
        What to call it in errors; by default the source.

    Returns
    -------
    dict
        ``results`` by key, ``num_parameters``, ``quantized_layers``.

    Raises
    ------
    PublishError
        If that fails, with the reason, or parameters get no value.
    """
    folder = Path(source)
    name = name or source
    if folder.is_dir():
        source = str(folder.resolve())
    try:
        found = _started(source, interface, items)
    except ChildProcessError as err:
        raise PublishError(
            f"{interface.name}.from_hparams cannot load or run {name} in a "
            f"clean process: {str(err).replace(source, name)[:800]}"
        ) from None
    if found["unloaded"]:
        names = ", ".join(found["unloaded"][:3])
        raise PublishError(
            f"{name} loads, but no file has values for "
            f"{len(found['unloaded'])} parameters ({names}, ...): they would be "
            "random. Name their module among the loadables of the pretrainer."
        )
    return found


def _started(
    source: str, interface: Interface, items: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the process found; raise ``ChildProcessError`` if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        task = {
            "source": source,
            "interface": interface.name,
            "savedir": str(Path(scratch) / "loaded"),
            "items": items,
            "seed": 1986,
        }
        files = [Path(scratch) / file for file in ("task.json", "result.json")]
        files[0].write_text(json.dumps(task), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", _PROGRAM, *map(str, files)],
            cwd=scratch,  # the recipe's modules are not importable from here
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ChildProcessError(_reason(done))
        return json.loads(files[1].read_text(encoding="utf-8"))


def _environment() -> dict[str, str]:
    """Return the environment, without paths to the user's own modules."""
    found = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    paths = found.pop("PYTHONPATH", "").split(os.pathsep)
    # But this package itself may be importable by no other way.
    home = Path(speechbrain_stablequant.__file__).resolve().parents[1]
    if any(path and Path(path).resolve() == home for path in paths):
        found["PYTHONPATH"] = str(home)
    return found


def _reason(done: subprocess.CompletedProcess) -> str:
    """Say why a process failed: the message of its traceback."""
    if done.returncode < 0:
        return f"the process was killed (signal {-done.returncode})."
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    # The last line of the form ``package.SomeError: message``, and what follows
    error = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
    starts = [i for i, line in enumerate(lines) if error.match(line)]
    return " ".join(lines[starts[-1] :] if starts else lines[-1:])

"""Which commands there are.

A command is a module of this folder with

- ``NAME``, ``HELP`` (one line) and ``EXAMPLES`` (lines, without indentation),
- ``add_arguments(parser)``,
- ``run(arguments) -> dict``: plain data, what ``--json`` prints; ``"ok": False``
  says that a check failed,
- ``lines(result) -> list of str``: the same for people.

Such a module imports what is heavy (torch, the toolkit) inside ``run``, so
that ``--help`` answers at once. A new command is one file and one line here.
"""

import importlib
from types import ModuleType

__all__ = ["COMMANDS", "commands"]

COMMANDS = (
    "publish",
    "load_test",
    "inspect",
    "compare",
    "apply",
    "export",
    "bench",
    "report",
)


def commands() -> dict[str, ModuleType]:
    """Return the modules of all commands by the name that users type.

    Example
    -------
    >>> "report" in commands()
    True
    """
    modules = (
        importlib.import_module(f"speechbrain_stablequant.cli.{name}")
        for name in COMMANDS
    )
    return {module.NAME: module for module in modules}

"""Arguments of the command line; errors suggest the nearest name."""

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Optional

import speechbrain_stablequant
from speechbrain_stablequant.errors import StableQuantError, nearest

__all__ = ["COMMANDS", "UsageError", "build_parser", "commands", "parse"]

EPILOG = """\
exit codes: 0 done, 1 a check failed, 2 wrong arguments or files,
3 an error of this package, 130 interrupted
"""


class UsageError(StableQuantError):
    """The arguments of the command line are wrong."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, and accepts no abbreviated options."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, **kwargs)

    def error(self, message):
        raise UsageError(f"{message}. See '{self.prog} --help'.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``stablequant`` with all its commands.

    Example
    -------
    >>> build_parser().parse_args(["report", "exp", "--json"]).json
    True
    """
    return _build()[0]


def _build():
    """Return the parser, and the parsers of its commands by name."""
    parser = _Parser(
        prog="stablequant",
        description="Inspect, compare, apply, publish and run quantized "
        "SpeechBrain models.",
        epilog=EPILOG,
    )
    version = f"%(prog)s {speechbrain_stablequant.__version__}"
    parser.add_argument("--version", action="version", version=version)
    _add_json(parser, default=False)
    found = {}
    children = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands"
    )
    for name, module in commands().items():
        child = found[name] = children.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=_epilog(module.EXAMPLES),
        )
        module.add_arguments(child)
        # Otherwise its default would undo a --json before the command
        _add_json(child, default=argparse.SUPPRESS)
        child.set_defaults(module=module)
    return parser, found


def _add_json(parser: argparse.ArgumentParser, default) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        default=default,
        help="print the result as JSON, and nothing else, to stdout",
    )


def _epilog(examples: str) -> str:
    """Return the examples, indented below a title."""
    rows = examples.strip().splitlines()
    return "\n".join(["examples:", *(f"  {row}" for row in rows)])


def parse(argv: Sequence[str]) -> Optional[argparse.Namespace]:
    """Return the arguments of a command, or None when there are none at all.

    Arguments
    ---------
    argv : sequence of str
        What follows ``stablequant``.

    Raises
    ------
    UsageError
        If the command or an option is unknown, or an argument is missing.
    """
    parser, children = _build()
    _check_command(argv, children)
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        child = children.get(arguments.command, parser)
        _refuse(rest, child)
    if arguments.command is None:
        parser.print_help()
        return None
    return arguments


def _check_command(argv: Sequence[str], children) -> None:
    """Refuse an unknown command, suggesting the nearest."""
    for word in argv:
        if word.startswith("-"):
            continue
        if word not in children:
            raise UsageError(
                f"There is no command '{word}'." + nearest(word, children)
            )
        return


def _refuse(rest: Sequence[str], child) -> None:
    """Refuse unknown arguments, suggesting the nearest option."""
    unknown = next((w for w in rest if w.startswith("-")), None)
    if unknown is None:
        raise UsageError(
            f"{rest[0]!r} is one argument too many. See '{child.prog} --help'."
        )
    options = [o for o in child._option_string_actions if o.startswith("--")]
    name = unknown.partition("=")[0]
    raise UsageError(
        f"'{child.prog}' has no option {name}." + nearest(name, options)
    )


# A module for each: NAME, HELP, EXAMPLES, add_arguments, run and lines
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

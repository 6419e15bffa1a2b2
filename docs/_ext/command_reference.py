"""``commands``: the command line, out of its argparse parsers."""

import argparse
import importlib
import inspect

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

__all__ = ["setup", "subparsers"]


def subparsers(parser):
    """Return the parsers of the subcommands, by name.

    Arguments
    ---------
    parser : argparse.ArgumentParser
        The parser of the program.

    Returns
    -------
    dict
        Parser and one line of help by name.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {a.dest: a.help for a in action._choices_actions}
            return {
                name: (sub, helps.get(name) or sub.description)
                for name, sub in action.choices.items()
            }
    return {}


class CommandsDirective(SphinxDirective):
    """``{commands} package.module.build_parser``: a section a subcommand."""

    required_arguments = 1

    def run(self):
        """Return the sections."""
        module, _, name = self.arguments[0].rpartition(".")
        build_parser = getattr(importlib.import_module(module), name)
        self.env.note_dependency(inspect.getsourcefile(build_parser))
        sections = []
        for command, (parser, line) in subparsers(build_parser()).items():
            section = nodes.section(ids=[command], names=[command])
            section += nodes.title("", command)
            section += self._text(parser.description or line or "")
            usage = parser.format_usage()
            section += nodes.literal_block(usage, usage, language="text")
            section += self._arguments(command, parser)
            if parser.epilog:
                section += nodes.literal_block(
                    parser.epilog, parser.epilog, language="text"
                )
            sections.append(section)
        return sections

    def _text(self, text):
        holder = nodes.Element()
        source, _ = self.get_source_info()
        lines = StringList(inspect.cleandoc(text).splitlines(), source)
        self.state.nested_parse(lines, 0, holder)
        return holder.children

    def _arguments(self, command, parser):
        """Return a definition list of arguments and options."""
        items = nodes.definition_list()
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            if not action.help:
                raise ExtensionError(
                    f"stablequant {command}: '{action.dest}' has no help."
                )
            term = nodes.term("", "", nodes.literal("", _written(action)))
            definition = nodes.definition()
            fields = {**vars(action), "prog": parser.prog}
            definition += self._text(action.help % fields)
            items += nodes.definition_list_item("", term, definition)
        return items


def _written(action):
    """Return an argument as one types it."""
    value = action.metavar or (action.dest if action.option_strings else None)
    if isinstance(value, tuple):
        value = " ".join(value)
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return str(value or action.dest)
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value.upper()}"


def setup(app):
    """Register the directive."""
    app.add_directive("commands", CommandsDirective)
    return {"parallel_read_safe": True}

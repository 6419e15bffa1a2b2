"""``options``: a list of options with defaults and descriptions, out of the code.

An option that its docstring does not describe stops the build.
"""

import dataclasses
import importlib
import inspect

from argument_sections import read_arguments
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

__all__ = ["read_options", "setup"]

_LONGEST_DEFAULT = 60


def read_options(owner):
    """Return the options of a class: name, type, default and description.

    Arguments
    ---------
    owner : type
        A dataclass, or a class whose constructor takes the options.

    Returns
    -------
    list of tuple
        In the order of the code.

    Raises
    ------
    ExtensionError
        If the docstring does not describe an option, or describes one that does
        not exist.
    """
    described = read_arguments(owner.__doc__)
    defaults = _defaults(owner)
    for name in set(described) - set(defaults) - _variadic(owner):
        raise ExtensionError(
            f"{owner.__name__} describes no option of its own: {name}."
        )
    options = []
    for name, default in defaults.items():
        kind, text = described.get(name, ("", ""))
        if not text:
            raise ExtensionError(
                f"The option '{name}' of {owner.__name__} has no description: "
                "add it to the Arguments of its docstring."
            )
        options.append((name, kind, default, text))
    return options


def _variadic(owner):
    """Return the name of ``**options``, which a docstring describes too."""
    parameters = inspect.signature(owner).parameters.values()
    kind = inspect.Parameter.VAR_KEYWORD
    return {p.name for p in parameters if p.kind is kind}


def _defaults(owner):
    """Return the default of each option as it is written in a YAML."""
    if dataclasses.is_dataclass(owner):
        instance = owner()
        fields = dataclasses.fields(owner)
        return {f.name: _written(getattr(instance, f.name)) for f in fields}
    parameters = inspect.signature(owner).parameters.values()
    return {
        p.name: _written(p.default)
        for p in parameters
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    }


def _written(value):
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_written, value)) + "]"
    return str(value)


class OptionsDirective(SphinxDirective):
    """``{options} package.module.Class``: its options as a definition list."""

    required_arguments = 1
    option_spec = {}

    def run(self):
        """Return the list."""
        module, _, name = self.arguments[0].rpartition(".")
        owner = getattr(importlib.import_module(module), name)
        source, _ = self.get_source_info()
        self.env.note_dependency(inspect.getsourcefile(owner))
        items = nodes.definition_list(classes=["options"])
        for option in read_options(owner):
            items += self._item(*option, source)
        return [items]

    def _anchor(self, name):
        owner = self.arguments[0].rpartition(".")[2]
        return f"{owner}-{name}".lower().replace("_", "-")

    def _item(self, name, kind, default, text, source):
        term = nodes.term(ids=[self._anchor(name)])
        term += nodes.strong("", name)
        term += nodes.Text(f" ({kind}), default ")
        if len(default) > _LONGEST_DEFAULT:
            default = default[:_LONGEST_DEFAULT] + " ..."
        term += nodes.literal("", default)
        definition = nodes.definition()
        lines = StringList(text.splitlines(), source)
        self.state.nested_parse(lines, 0, definition)
        return nodes.definition_list_item("", term, definition)


def setup(app):
    """Register the directive."""
    app.add_directive("options", OptionsDirective)
    return {"parallel_read_safe": True}

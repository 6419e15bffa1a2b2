"""The ``hyperparams.yaml`` of an experiment, read as text and not executed.

SpeechBrain keeps a copy of each experiment's YAML with its references resolved:
an object that several places refer to is an anchor there. An inference YAML
needs a part of it, the modules without data, optimizers and paths. Here the
copy is a graph of YAML nodes, in which one object is one node; definitions are
taken from it, changed, and written with references again.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, Union

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from speechbrain_stablequant.errors import PublishError, nearest

__all__ = [
    "Definitions",
    "Selection",
    "arguments",
    "class_name",
    "descendants",
    "inline",
    "is_class",
    "new",
    "plain",
    "reference",
    "refers_to",
    "to_text",
]

_TEXT = "tag:yaml.org,2002:str"
_MAP = "tag:yaml.org,2002:map"
_SEQUENCE = "tag:yaml.org,2002:seq"
_INDENT = 3


class Definitions:
    """The top level of an experiment's YAML: a node for each name.

    Arguments
    ---------
    text : str
        The YAML.
    source : str
        Names it in errors.

    Raises
    ------
    PublishError
        If it is not valid YAML, or not a mapping.

    Example
    -------
    >>> text = "lin: &a !new:torch.nn.Linear [2, 3]\\nmodules: {lin: *a}"
    >>> found = Definitions(text)
    >>> found.name_of(found["modules"].value[0][1]), "enc" in found
    ('lin', False)
    """

    def __init__(self, text: str, source: str = "the YAML"):
        self.source = source
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as err:
            raise PublishError(f"{source} is not valid YAML: {err}.") from err
        if not isinstance(root, MappingNode):
            raise PublishError(f"{source} is not a mapping of names to values.")
        self.nodes = {key.value: value for key, value in root.value}
        self._names = {
            id(value): key
            for key, value in self.nodes.items()
            if not isinstance(value, ScalarNode)
            or value.tag.startswith("!")  # an object, if one without arguments
        }
        for key, node in _shared_objects(root):
            self.give_name(key, node)

    def give_name(self, name: str, node: Node) -> None:
        """Define a node at the top level, so that all places refer to it.

        Arguments
        ---------
        name : str
            Its name; a number is appended if that is taken.
        node : yaml.Node
            A node; if it has a name already, it keeps it.
        """
        if id(node) in self._names:
            return
        free, number = name, 2
        while free in self.nodes:
            free, number = f"{name}_{number}", number + 1
        self.nodes[free] = node
        self._names[id(node)] = free

    @classmethod
    def load(cls, path: Union[str, Path]) -> "Definitions":
        """Read a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise PublishError(f"Cannot read {path}: {err}.") from err
        return cls(text, str(path))

    def __contains__(self, name: str) -> bool:
        return name in self.nodes

    def __getitem__(self, name: str) -> Node:
        if name not in self.nodes:
            raise PublishError(
                f"{self.source} has no '{name}'." + nearest(name, self.nodes)
            )
        return self.nodes[name]

    def get(self, name: str) -> Optional[Node]:
        """Return the node of a name, or None."""
        return self.nodes.get(name)

    def name_of(self, node: Node) -> Optional[str]:
        """Return the name of a node at the top level, or None."""
        return self._names.get(id(node))

    def value(self, name: str, default: Any = None) -> Any:
        """Return plain data: numbers, texts, lists, dictionaries."""
        node = self.nodes.get(name)
        return default if node is None else plain(node)

    def values(self) -> Iterator[tuple[str, Node]]:
        """Yield names and nodes in the order of the file."""
        yield from self.nodes.items()

    def entries(self, name: str) -> dict[str, Node]:
        """Return the nodes of a mapping by name; empty if there is none."""
        return arguments(self.nodes.get(name))


def _shared_objects(root: Node) -> Iterator[tuple[str, Node]]:
    """Yield nodes that several places share, with the key of one place."""
    seen: dict[int, int] = {}
    todo = [("object", root)]
    while todo:
        key, node = todo.pop(0)
        seen[id(node)] = seen.get(id(node), 0) + 1
        if seen[id(node)] > 1:
            if seen[id(node)] == 2 and node.tag.startswith("!new:"):
                yield key, node
            continue
        children = node.value if isinstance(node.value, list) else ()
        for child in children:
            if isinstance(child, tuple):
                todo.append((str(child[0].value), child[1]))
            else:
                todo.append((key, child))


# -- nodes -------------------------------------------------------------------


def plain(node: Node) -> Any:
    """Return a node as plain data; objects are not created.

    Example
    -------
    >>> plain(yaml.compose("{a: [1, 2.5], b: !new:torch.nn.ReLU {}}"))
    {'a': [1, 2.5], 'b': {}}
    """
    if isinstance(node, MappingNode):
        return {plain(key): plain(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.value]
    if node.tag.startswith("!"):
        return node.value
    return yaml.SafeLoader("").construct_object(
        ScalarNode(node.tag, node.value), deep=True
    )


def class_name(node: Optional[Node]) -> str:
    """Return the dotted name of a node's class or function, or ``""``.

    Example
    -------
    >>> class_name(yaml.compose("!new:torch.nn.ReLU"))
    'torch.nn.ReLU'
    """
    kind, _, name = (node.tag if node is not None else "").partition(":")
    return name if kind in ("!new", "!apply", "!name") else ""


def is_class(node: Optional[Node], *names: str) -> bool:
    """Whether a node makes one of some classes, by the last part."""
    return class_name(node).rpartition(".")[2] in names


def descendants(node: Node) -> Iterator[Node]:
    """Yield a node and all that are in it, each once: anchors make circles."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if not isinstance(node, ScalarNode):
            for child in node.value:
                todo += child if isinstance(child, tuple) else [child]


def arguments(node: Optional[Node]) -> dict[str, Node]:
    """Return the entries of a mapping, such as the arguments of a class."""
    if not isinstance(node, MappingNode):
        return {}
    return {key.value: value for key, value in node.value}


def reference(name: str) -> Node:
    """Return ``!ref <name>``."""
    return ScalarNode("!ref", f"<{name}>")


def refers_to(node: Node, name: str) -> bool:
    """Whether a node is nothing but a reference to a name."""
    return node.tag == "!ref" and node.value == f"<{name}>"


def inline(value: Any) -> Node:
    """Return a node for plain data; nodes in it stay as they are.

    Example
    -------
    >>> print(to_text("x", inline({"a": 1, "b": [reference("y"), True]})))
    x:
       a: 1
       b:
       - !ref <y>
       - true
    """
    if isinstance(value, Node):
        return value
    if isinstance(value, dict):
        pairs = [(inline(k), inline(v)) for k, v in value.items()]
        return MappingNode(_MAP, pairs, flow_style=not pairs)
    if isinstance(value, (list, tuple)):
        items = [inline(item) for item in value]
        # Short lists of numbers, as people write them
        flow = all(not isinstance(item, (Node, dict, list)) for item in value)
        return SequenceNode(_SEQUENCE, items, flow_style=flow)
    return yaml.compose(yaml.safe_dump(value, explicit_end=False))


def new(name: str, /, **arguments: Any) -> Node:
    """Return ``!new:name`` with keyword arguments.

    Example
    -------
    >>> print(to_text("lin", new("torch.nn.Linear", in_features=2)))
    lin: !new:torch.nn.Linear
       in_features: 2
    """
    node = inline(arguments)
    node.tag = f"!new:{name}"
    node.flow_style = not arguments
    return node


def to_text(name: str, node: Node) -> str:
    """Return ``name: node`` as YAML.

    Example
    -------
    >>> to_text("n", inline(3))
    'n: 3'
    """
    pair = MappingNode(
        _MAP, [(ScalarNode(_TEXT, name), node)], flow_style=False
    )
    text = yaml.serialize(
        pair,
        Dumper=yaml.SafeDumper,
        indent=_INDENT,
        width=80,
        allow_unicode=True,
    )
    # PyYAML quotes what HyperPyYAML reads plain, and writes empty arguments.
    text = re.sub(r"!ref '(<[^'>]+>)'", r"!ref \1", text)
    text = re.sub(
        r"(!(?:new|name|apply):\S+) (?:''|\{\})$", r"\1", text, flags=re.M
    )
    return text.rstrip("\n")


# -- a part of the graph -------------------------------------------------------


class Selection:
    """Definitions for an inference YAML, with all that they refer to.

    Arguments
    ---------
    definitions : Definitions
        Where they come from.
    changes : dict
        Nodes by name that replace those of the experiment, or are added.
    """

    def __init__(self, definitions: Definitions, changes: dict[str, Node]):
        self.definitions, self.changes = definitions, changes
        self.blocks: dict[str, str] = {}

    def add(self, names: Iterable[str]) -> None:
        """Add definitions, each after those that it refers to."""
        for name in names:
            self._add(name, ())

    def _add(self, name: str, above: tuple[str, ...]) -> None:
        if name in self.blocks or name in above:
            return
        node = self.changes.get(name)
        node = self.definitions[name] if node is None else node
        refers: list[str] = []
        copy = self._copied(node, name, refers, {})
        for other in refers:
            self._add(other, (*above, name))
        self.blocks[name] = to_text(name, copy)

    def _copied(self, node: Node, owner: str, refers: list, done: dict) -> Node:
        """Return a copy that refers to other definitions by their names."""
        name = self.definitions.name_of(node)
        if name is not None and name != owner:
            refers.append(name)
            return reference(name)
        if isinstance(node, ScalarNode):
            if node.tag == "!ref" and node.value.startswith("<"):
                refers.append(node.value.strip("<>"))
            return node
        if id(node) in done:
            return done[id(node)]
        children: list = []
        copy = type(node)(node.tag, children, flow_style=node.flow_style)
        done[id(node)] = copy
        for child in node.value:
            if isinstance(node, MappingNode):
                key, value = child
                children.append((key, self._copied(value, owner, refers, done)))
            else:
                children.append(self._copied(child, owner, refers, done))
        return copy

    def text(self) -> str:
        """Return the definitions as YAML, in an order in which it can be read."""
        return "\n\n".join(self.blocks.values()) + "\n"

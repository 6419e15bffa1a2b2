"""What an inference interface is, and what it takes from an experiment."""

from dataclasses import dataclass, field
from typing import Callable, Optional

from yaml import MappingNode, Node

from speechbrain_stablequant.artifacts.hyperparams import class_name, inline
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["Interface", "Needs"]


@dataclass
class Needs:
    """What an interface takes from an experiment.

    Arguments
    ---------
    nodes : dict
        Top-level names of the YAML with their nodes, in the order to write;
        None: as in the experiment.
    modules : dict
        What goes under ``modules``.
    loadables : dict
        Nodes by the name of a file, beside those that the modules need.
    """

    nodes: dict[str, Optional[Node]]
    modules: dict[str, Node]
    loadables: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Interface:
    """One of SpeechBrain's inference interfaces.

    Arguments
    ---------
    name : str
        Its class.
    module : str
        Where that is imported from.
    task : str
        Task of the hub (``pipeline_tag``).
    title : str
        What such a model is, in words.
    fits : callable
        Whether the experiment (`Recipe`) looks like this one.
    needs : callable
        Returns the `Needs` of an experiment.
    """

    name: str
    module: str
    task: str
    title: str
    fits: Callable[[Recipe], bool]
    needs: Callable[[Recipe], Needs]


def name_node(name: str, **arguments) -> Node:
    """Return ``!name:name`` with keyword arguments."""
    node = inline(arguments)
    assert isinstance(node, MappingNode)
    node.tag = f"!name:{name}"
    return node


def is_class(node: Optional[Node], *names: str) -> bool:
    """Whether a node makes one of some classes, by the last part."""
    return class_name(node).rpartition(".")[2] in names

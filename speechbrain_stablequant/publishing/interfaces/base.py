"""What an inference interface is, and what it takes from an experiment."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import torch
from yaml import Node

from speechbrain_stablequant.artifacts.hyperparams import new
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["Interface", "Needs", "audio", "name_node"]


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
    """One of SpeechBrain's inference interfaces: all that is said of it.

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
    run : callable
        Runs a loaded model on an item of the check (see `run_clean`) and
        returns what came out: errors and weight by metric, and values to show.
    call : str
        The line of Python on the card that uses ``model``; ``{audio}`` stands
        for the example.
    modules, names : sequence of str
        Modules, and other top-level names, by which a published YAML is
        recognized.
    metrics : sequence of str
        What the check compares with the recipe's test, the best one first.
    no_metric : str
        Why there is none.
    by_trials : bool
        Whether the recipe may have recorded scores of pairs of utterances.
    labels : str, optional
        Loadable with the names of the classes.
    left_out : callable
        Returns steps of the recipe's test that the interface does not do: the
        recipe's results are then not those of what is published.
    """

    name: str
    module: str
    task: str
    title: str
    fits: Callable[[Recipe], bool]
    needs: Callable[[Recipe], Needs]
    run: Callable[[Any, dict[str, Any]], dict[str, Any]]
    call: str
    modules: Sequence[str]
    names: Sequence[str] = ()
    metrics: Sequence[str] = ()
    no_metric: str = ""
    by_trials: bool = False
    labels: Optional[str] = None
    left_out: Callable[[Recipe], list[str]] = lambda recipe: []

    @property
    def takes_text(self) -> bool:
        """Whether the model takes text, and no audio."""
        return self.task == "text-generation"


def name_node(name: str, **arguments) -> Node:
    """Return ``!name:name`` with keyword arguments."""
    node = new(name, **arguments)
    node.tag = f"!name:{name}"
    return node


def audio(model: Any, item: dict[str, Any]) -> torch.Tensor:
    """Return an utterance at the model's sampling rate, (1, samples).

    Arguments
    ---------
    model : Pretrained
        The loaded model.
    item : dict
        ``path``, with ``start`` and ``stop`` of a part of it in samples; or
        ``noise``, a number of seconds.
    """
    from speechbrain.dataio import audio_io

    if "noise" in item:
        rate = model.audio_normalizer.sample_rate
        return 0.05 * torch.randn(1, int(item["noise"] * rate))
    start, stop = item.get("start") or 0, item.get("stop")
    signal, rate = audio_io.load(
        item["path"],
        frame_offset=start,
        num_frames=-1 if stop is None else stop - start,
        channels_first=False,
    )
    return model.audio_normalizer(signal, rate).unsqueeze(0)

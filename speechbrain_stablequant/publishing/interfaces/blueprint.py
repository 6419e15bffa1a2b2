"""The inference YAML that an interface is given, and its files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

from yaml import Node

from speechbrain_stablequant.artifacts.hyperparams import (
    Selection,
    inline,
    new,
    reference,
    refers_to,
)
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import (
    Interface,
    Needs,
    name_node,
)
from speechbrain_stablequant.publishing.interfaces.encoder import (
    without_weights,
)
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["Blueprint", "make_blueprint"]

LOAD_HOOK = "speechbrain_stablequant.load_quantized"
# Switches that recipes read in Python, and the value that interfaces imply
_SWITCHES = {"amp_to_db": False, "normalize": True, "upsampling": False}
HEADER = """\
# ################################
# {title}, quantized
# > from {module} import {interface}
# > {interface}.from_hparams(source="this folder, or its name on the hub")
# It needs the package speechbrain_stablequant: no float weights are fetched,
# and the pretrainer's hooks read the quantized files.
# ################################

"""


@dataclass(frozen=True)
class Blueprint:
    """An inference YAML, and the files that it loads.

    Arguments
    ---------
    interface : Interface
        What loads it.
    text : str
        The YAML.
    files : sequence of str
        Names of the loadables whose files belong into the folder.
    elsewhere : dict
        Loadables that come from a hub repository of others, by name.
    base_model : str, optional
        Name of the pretrained encoder that training began with.
    left_out : list of str
        Steps of the recipe's test that the interface does not do.
    pretrained : list of str
        Files that the recipe's pretrainer loads and its checkpointer does not
        keep: they were not trained in it.
    """

    interface: Interface
    text: str
    files: Sequence[str]
    elsewhere: dict[str, str] = field(default_factory=dict)
    base_model: Optional[str] = None
    left_out: Sequence[str] = ()
    pretrained: Sequence[str] = ()


def make_blueprint(interface: Interface, recipe: Recipe) -> Blueprint:
    """Put together what `Interface.needs` asks for.

    Raises
    ------
    PublishError
        If the experiment lacks something that the interface needs.
    """
    _refuse_switches(recipe)
    needs = interface.needs(recipe)
    nodes = dict(needs.nodes)
    rate = recipe.number("sample_rate", 16000)
    if rate != 16000 and not interface.takes_text:
        name = "speechbrain.dataio.preprocess.AudioNormalizer"
        nodes["audio_normalizer"] = new(name, sample_rate=rate)
    changes, base_model = without_weights(recipe)
    changes.update(
        {
            name: node
            for name, node in nodes.items()
            if node is not None and not refers_to(node, name)
        }
    )
    changes["modules"] = inline(needs.modules)
    selection = Selection(recipe.definitions, changes)
    selection.add([*nodes, "modules"])
    loadables = _loadables(recipe, selection, needs)
    files, elsewhere = _sources(recipe, loadables)
    changes["pretrainer"] = _pretrainer(loadables, recipe, elsewhere)
    selection.add(["pretrainer"])
    header = HEADER.format(
        title=interface.title, module=interface.module, interface=interface.name
    )
    return Blueprint(
        interface,
        header + selection.text(),
        files,
        elsewhere,
        base_model,
        interface.left_out(recipe),
        [name for name in files if recipe.is_pretrained(name)],
    )


def _refuse_switches(recipe: Recipe) -> None:
    """Refuse recipes that compute features in a way that no interface does."""
    for name, implied in _SWITCHES.items():
        value = recipe.definitions.value(name)
        if isinstance(value, bool) and value is not implied:
            raise PublishError(
                f"{recipe.definitions.source} has {name}: {value}, which the "
                "recipe obeys in its compute_forward and the interface does "
                "not know: the model would get other features. Give an "
                "inference YAML with --hyperparams."
            )


def _loadables(
    recipe: Recipe, selection: Selection, needs: Needs
) -> dict[str, Node]:
    """Return what is loaded: files whose modules the YAML has, and more."""
    found = {}
    chosen = set(selection.blocks)
    named = {
        recipe.definitions.name_of(node) for node in recipe.modules.values()
    }
    for name in recipe.files:
        node = recipe.object(name)
        if node is None:
            continue
        parts = recipe.names_within(node)
        if parts & chosen & named or recipe.definitions.name_of(node) in chosen:
            known = recipe.definitions.name_of(node)
            if known is None:  # it is defined where it is used: give it a name
                known = name
                selection.changes.setdefault(name, node)
            found[name] = reference(known)
    found.update(needs.loadables)
    lacking = recipe.quantized & set(needs.modules) - set(found)
    if lacking:
        raise PublishError(f"Nothing loads {sorted(lacking)}.")
    return found


def _sources(recipe: Recipe, loadables) -> tuple[list[str], dict[str, str]]:
    """Return names of files to copy, and hub paths of others' files."""
    files, elsewhere = [], {}
    for name in loadables:
        if name in recipe.files:
            files.append(name)
            continue
        path = recipe.pretrained_path(name)
        local = None if path is None else recipe.locate(path)
        if local is not None:
            recipe.files[name] = local
            files.append(name)
        elif path and path[0] not in "/.~" and path.count("/") >= 2:
            elsewhere[name] = path  # user/name/file, on the hub
        else:
            raise PublishError(
                f"The file of '{name}' was not found"
                + (f" at {path}" if path else "")
                + f": put it into {recipe.experiment.ptq / 'checkpoint'} as "
                f"{name}.ckpt."
            )
    return files, elsewhere


def _pretrainer(loadables, recipe: Recipe, elsewhere) -> Node:
    """Return the pretrainer: quantized files go through our hook."""
    given: dict = {"loadables": dict(loadables)}
    hooks = {
        n: name_node(LOAD_HOOK) for n in loadables if n in recipe.quantized
    }
    if hooks:
        given["custom_hooks"] = hooks
    if elsewhere:
        given["paths"] = dict(elsewhere)
    return new("speechbrain.utils.parameter_transfer.Pretrainer", **given)

"""The float model of an experiment, without running its recipe."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from torch import nn

from speechbrain_stablequant.artifacts.hyperparams import (
    Definitions,
    Selection,
    arguments,
    class_name,
    inline,
    plain,
)
from speechbrain_stablequant.errors import FloatModelError, nearest
from speechbrain_stablequant.layers.modules import as_module_dict

__all__ = ["FloatModel", "load_float_model", "origin"]

# Recoverables that only training needs are not built
_TRAINING = (
    "speechbrain.nnet.schedulers.",
    "speechbrain.utils.epoch_loop.",
    "torch.optim.",
)
_ORIGIN = re.compile(r"^# Generated .* from:\s*\n# (.+)$", re.MULTILINE)


@dataclass
class FloatModel:
    """Modules with the float weights of a checkpoint.

    Arguments
    ---------
    root : torch.nn.ModuleDict
        The modules to quantize, by the names that a plan uses.
    checkpointer : Checkpointer
        With what was recovered: modules, tokenizers.
    checkpoint : Checkpoint
        What was loaded.
    others : int
        How many more checkpoints there are.
    """

    root: nn.ModuleDict
    checkpointer: Checkpointer
    checkpoint: Checkpoint
    others: int


def load_float_model(
    folder: Path,
    recipe: Optional[Path] = None,
    checkpoint: Optional[str] = None,
    min_key: Optional[str] = None,
    max_key: Optional[str] = None,
) -> FloatModel:
    """Build the modules of an experiment and load their float weights.

    Of ``hyperparams.yaml`` only the modules, what the checkpointer recovers
    and what these refer to are made: no data, no optimizers, no loggers.

    Arguments
    ---------
    folder : Path
        Output folder of the recipe.
    recipe : Path, optional
        Folder of the recipe, for classes that it defines; by default where
        ``hyperparams.yaml`` says that it came from.
    checkpoint : str, optional
        A checkpoint folder, or its name; by default the best by a key, or the
        most recent one.
    min_key, max_key : str, optional
        Take the checkpoint with the lowest (highest) value of this key.

    Returns
    -------
    FloatModel
        The model, in evaluation mode.

    Raises
    ------
    FloatModelError
        If something cannot be built or loaded: what, and what to do.
    """
    definitions = Definitions.load(folder / "hyperparams.yaml")
    saver = _checkpointer_node(definitions)
    modules, recoverables = _build(definitions, saver, folder, recipe)
    checkpointer = Checkpointer(
        _save_folder(definitions, saver, folder, checkpoint), recoverables
    )
    chosen = _chosen(checkpointer, checkpoint, min_key, max_key)
    root = as_module_dict(modules)
    _check_loaded(root, recoverables)
    try:
        checkpointer.load_checkpoint(chosen)
    except (RuntimeError, KeyError, OSError, ValueError) as err:
        raise FloatModelError(
            f"The checkpoint {chosen.path} does not fit the modules of "
            f"{definitions.source}: {_first_lines(err)}"
        ) from err
    others = len(checkpointer.list_checkpoints()) - 1
    return FloatModel(root.eval(), checkpointer, chosen, others)


# -- building ----------------------------------------------------------------


def _checkpointer_node(definitions: Definitions):
    for _, node in definitions.values():
        if class_name(node).rpartition(".")[2] == "Checkpointer":
            return node
    raise FloatModelError(
        f"{definitions.source} has no Checkpointer, so there is no float "
        "checkpoint to quantize."
    )


def _build(definitions: Definitions, saver, folder: Path, recipe):
    """Build modules and recoverables from a part of the YAML."""
    recovered = arguments(saver).get("recoverables")
    wanted = {
        name: node
        for name, node in (arguments(recovered) if recovered else {}).items()
        if not class_name(node).startswith(_TRAINING)
    }
    quantized = _modules_node(definitions)
    selection = Selection(
        definitions,
        {"recoverables": inline(wanted), "quantized_modules": quantized},
    )
    selection.add(["quantized_modules", "recoverables"])
    with _importable(_recipe_folders(definitions, folder, recipe)):
        try:
            made = load_hyperpyyaml(selection.text())
        except Exception as err:  # of any class that the YAML names
            raise FloatModelError(
                f"The modules of {definitions.source} cannot be built without "
                f"their recipe: {type(err).__name__}: {_first_lines(err)} If a "
                "class is the recipe's own, give the folder of its train.py: "
                "--recipe DIR."
            ) from err
    return dict(made["quantized_modules"]), dict(made["recoverables"])


def _modules_node(definitions: Definitions):
    """Return the modules to quantize: those of the block, or of the Brain."""
    named = None
    for _, node in definitions.values():
        if class_name(node).endswith(".PostTrainingQuantizer"):
            named = arguments(node).get("modules")
    if named is None or plain(named) is None:
        return inline(definitions.entries("modules"))
    if isinstance(plain(named), dict):
        return inline(arguments(named))
    own = definitions.entries("modules")
    return inline(
        {n: own[n] if n in own else definitions[n] for n in plain(named)}
    )


def _recipe_folders(definitions: Definitions, folder: Path, recipe):
    """Return folders that may define the recipe's classes, likeliest first."""
    if recipe is not None:
        recipe = Path(recipe)
        if not recipe.is_dir():
            raise FloatModelError(f"--recipe {recipe} is not a folder.")
        return [recipe, folder]
    source = origin(definitions)
    near = [] if source is None else [source.parent.parent, source.parent]
    return [*(f for f in near if f.is_dir()), folder]


def origin(definitions: Definitions) -> Optional[Path]:
    """Return the recipe's YAML that an experiment was made from.

    Arguments
    ---------
    definitions : Definitions
        The ``hyperparams.yaml`` of the experiment.

    Returns
    -------
    Path or None
        None where the experiment does not say. The file may be gone.
    """
    found = _ORIGIN.search(Path(definitions.source).read_text(encoding="utf-8"))
    return Path(found.group(1)) if found else None


@contextlib.contextmanager
def _importable(folders) -> Iterator[None]:
    """Let classes of a recipe be imported, as when its script runs."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


# -- loading -----------------------------------------------------------------


def _save_folder(definitions, saver, folder: Path, checkpoint) -> Path:
    """Return where checkpoints are; the experiment may have been moved."""
    if checkpoint is not None and Path(checkpoint).is_dir():
        return Path(checkpoint).resolve().parent
    node = arguments(saver).get("checkpoints_dir")
    if node is None:
        raise FloatModelError(
            f"The Checkpointer of {definitions.source} has no checkpoints_dir."
        )
    said = Path(str(plain(node)))
    found = next((f for f in (folder / said.name, said) if f.is_dir()), None)
    if found is None:
        raise FloatModelError(
            f"{folder} has no {said.name}/ with float checkpoints."
        )
    return found


def _chosen(checkpointer, name, min_key, max_key) -> Checkpoint:
    """Return the checkpoint that was asked for."""
    known = checkpointer.list_checkpoints()
    where = checkpointer.checkpoints_dir
    if not known:
        raise FloatModelError(f"{where} has no checkpoint (CKPT+...).")
    if name is not None:
        wanted, named = Path(name).name, {c.path.name: c for c in known}
        if wanted not in named:
            raise FloatModelError(
                f"{where} has no checkpoint '{wanted}'."
                + nearest(wanted, named)
            )
        return named[wanted]
    key = min_key or max_key
    keys = {k for each in known for k in each.meta}
    if key is not None and key not in keys:
        raise FloatModelError(
            f"No checkpoint in {where} has '{key}' in its metadata."
            + nearest(key, keys)
        )
    return checkpointer.find_checkpoint(min_key=min_key, max_key=max_key)


def _check_loaded(root: nn.ModuleDict, recoverables: Mapping) -> None:
    """Refuse modules with weights in no checkpoint: these would be random.

    Pretrained encoders load theirs when they are built.
    """
    held = {
        id(parameter)
        for obj in recoverables.values()
        if isinstance(obj, nn.Module)
        for parameter in obj.parameters()
    }
    for name, module in root.items():
        if hasattr(module, "_from_pretrained"):
            continue
        if any(id(p) not in held for p in module.parameters()):
            raise FloatModelError(
                f"Module '{name}' has weights that no checkpoint holds (the "
                "recipe loads them in another way), so its float model cannot "
                "be built without the recipe. Run the recipe with the plan "
                "instead (ptq: {plan: plan.json})."
            )


def _first_lines(err: Exception) -> str:
    """Return the start of a message, in one line."""
    text = " ".join(str(err).split())[:300] or "(no message)"
    return text if text.endswith((".", "?", "!")) else f"{text}."

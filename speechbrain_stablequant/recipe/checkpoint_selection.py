"""Which weights ``when: fit`` quantizes: the checkpoint that a recipe keeps.

Recipes without a test stage say in training which checkpoint is the best:
``save_and_keep_only(meta={"ErrorRate": ...}, min_keys=["ErrorRate"])``. The
same key chooses here. Nothing is guessed: without a key, or with several,
the weights stay as training has left them.
"""

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.errors import KnobError, nearest
from speechbrain_stablequant.layers.snapshot import unchanged

__all__ = [
    "checkpoint_keys",
    "chosen_key",
    "held_modules",
    "kept_weights",
    "noted_keys",
]

logger = get_logger(__name__)

_FILE = "checkpoint_key.json"
Keys = dict[str, str]  # {"min_key": name} or {"max_key": name}


def checkpoint_keys(
    min_key: Optional[str], max_key: Optional[str], used: bool
) -> Keys:
    """Return the key that the user gave to choose a checkpoint by, or none."""
    keys = {"min_key": min_key, "max_key": max_key}
    keys = {kind: name for kind, name in keys.items() if name is not None}
    if len(keys) > 1:
        raise KnobError("min_key and max_key exclude each other: give one.")
    if keys and not used:
        raise KnobError(
            f"{next(iter(keys))} goes with when: fit and with method: "
            "quantization_aware; evaluate loads the checkpoint that the recipe "
            "tells it to."
        )
    return keys


@contextlib.contextmanager
def noted_keys(checkpointer: Optional[Checkpointer]) -> Iterator[set]:
    """Note by which keys checkpoints are kept while the block runs.

    Arguments
    ---------
    checkpointer : Checkpointer, optional
        Its ``delete_checkpoints``, which ``save_and_keep_only`` calls, is
        wrapped on the instance.

    Yields
    ------
    set
        ``("min_key", name)`` and ``("max_key", name)``.
    """
    found: set = set()
    if checkpointer is None:
        yield found
        return
    before = vars(checkpointer).get("delete_checkpoints")
    delete_checkpoints = checkpointer.delete_checkpoints

    def watched(*args, **kwargs):
        for kind in ("min_key", "max_key"):
            found.update((kind, key) for key in kwargs.get(f"{kind}s") or ())
        return delete_checkpoints(*args, **kwargs)

    checkpointer.delete_checkpoints = watched
    try:
        yield found
    finally:
        if before is None:
            del checkpointer.delete_checkpoints
        else:
            checkpointer.delete_checkpoints = before


@contextlib.contextmanager
def kept_weights(
    brain, asked: Keys, noted: Iterable[tuple[str, str]], folder: Path
) -> Iterator[Optional[dict]]:
    """Load the weights of the checkpoint that a recipe keeps, for the block.

    Only modules are loaded; optimizers, schedulers and counters are not
    touched, and the weights from before come back bit for bit. With
    ``--test_only`` the checkpoint is recovered as ``evaluate`` would.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain after ``fit``.
    asked : dict
        ``min_key`` or ``max_key``, where the user gave one.
    noted : iterable
        What `noted_keys` has noted in this run.
    folder : Path
        Where a key is remembered: another run may have nothing left to train.

    Yields
    ------
    dict or None
        For the report: checkpoint, key, choice and value; None for a Brain
        without checkpointer.
    """
    checkpointer = brain.checkpointer
    if checkpointer is None:
        yield None
        return
    keys = asked or _known_keys(set(noted), folder)
    checkpoint = checkpointer.find_checkpoint(**keys)
    if checkpoint is None and asked:
        _refuse(checkpointer, keys)
    if checkpoint is None or not (keys or brain.test_only):
        yield _describe(None, {})
        return
    logger.info("Quantizing the weights of %s", checkpoint.path)
    if brain.test_only:  # nothing is loaded yet, and nothing goes on
        checkpointer.load_checkpoint(checkpoint)
        yield _describe(checkpoint, keys)
        return
    modules = {
        name: obj
        for name, obj in checkpointer.recoverables.items()
        if isinstance(obj, nn.Module)
    }
    with unchanged(modules.values()):
        # A copy with fewer recoverables keeps SpeechBrain's rules of loading.
        loader = copy.copy(checkpointer)
        loader.recoverables = modules
        loader.load_checkpoint(checkpoint)
        yield _describe(checkpoint, keys)


def _known_keys(noted: set, folder: Path) -> Keys:
    """Return the one key that the recipe uses, now or in an earlier run."""
    path = folder / _FILE
    if not noted and path.is_file():
        noted = {tuple(pair) for pair in json.loads(path.read_text())}
    elif noted and if_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sorted(noted)) + "\n")
    if len(noted) == 1:
        return dict(noted)
    names = ", ".join(f"{kind} {name}" for kind, name in sorted(noted))
    logger.warning(
        "Quantizing the weights that fit left, not those of a checkpoint: the "
        "recipe keeps checkpoints by %s. To choose one, give min_key or "
        "max_key in the ptq block.",
        f"several keys ({names})" if noted else "no key that is known",
    )
    return {}


def _refuse(checkpointer: Checkpointer, keys: Keys) -> None:
    """Raise a `KnobError`: no checkpoint has the key that the user gave."""
    ((kind, name),) = keys.items()
    known = {k for c in checkpointer.list_checkpoints() for k in c.meta}
    raise KnobError(
        f"{kind} '{name}': no checkpoint in {checkpointer.checkpoints_dir} "
        "has such a value." + (nearest(name, known) if known else "")
    )


def _describe(checkpoint: Optional[Checkpoint], keys: Keys) -> dict[str, Any]:
    kind, name = next(iter(keys.items()), (None, None))
    choices = {"min_key": "lowest", "max_key": "highest", None: "most recent"}
    return {
        "checkpoint": None if checkpoint is None else checkpoint.path.name,
        "key": name,
        "choice": None if checkpoint is None else choices[kind],
        "value": None if name is None else checkpoint.meta[name],
    }


def chosen_key(weights: Optional[dict]) -> Keys:
    """Return the key that `kept_weights` chose by, from its description."""
    kinds = {"lowest": "min_key", "highest": "max_key"}
    kind = kinds.get((weights or {}).get("choice"))
    return {} if kind is None else {kind: weights["key"]}


def held_modules(brain) -> list[nn.Module]:
    """Return all modules that a Brain and its checkpointer hold."""
    checkpointer = brain.checkpointer
    held = [] if checkpointer is None else checkpointer.recoverables.values()
    return [brain.modules, *(obj for obj in held if isinstance(obj, nn.Module))]

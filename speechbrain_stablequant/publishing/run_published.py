"""What runs in the clean process: load a published model, and run it.

> python -m speechbrain_stablequant.publishing.run_published task.json result.json

`speechbrain_stablequant.publishing.clean_process` starts it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.publishing.interfaces import interface
from speechbrain_stablequant.publishing.load import load_published

__all__ = ["run", "unloaded_parameters"]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Load and run the model of a task.

    Arguments
    ---------
    task : dict
        ``source``, the name of its ``interface``, ``savedir``, ``items`` and
        ``seed``.

    Returns
    -------
    dict
        ``unloaded``: parameters without a value, ``results`` by key,
        ``num_parameters`` and ``quantized_layers``.
    """
    torch.manual_seed(task["seed"])
    known = interface(task["interface"])
    model = load_published(task["source"], task["savedir"], known)
    model.eval()
    names = unloaded_parameters(model)
    with torch.no_grad():
        results = {i["key"]: known.run(model, i) for i in task["items"]}
    return {
        "unloaded": names,
        "results": results,
        "num_parameters": _num_values(model),
        "quantized_layers": sum(
            isinstance(module, QuantizedModule)
            for module in model.mods.modules()
        ),
    }


def _num_values(model) -> int:
    """Return how many weights and biases there are, packed or not."""
    packed = sum(
        torch.Size(shape).numel()
        for module in model.mods.modules()
        if isinstance(module, QuantizedModule)
        for shape in module._weight_shapes.values()
    )
    return packed + sum(p.numel() for p in model.mods.parameters())


def unloaded_parameters(model) -> list[str]:
    """Return names of tensors that no file has given a value.

    Nothing else would show it: SpeechBrain's pretrainer loads what it lists and
    says nothing of the rest, which stays random. Buffers count too (statistics
    of a batch norm), and so do modules that only a searcher or scorer holds.

    Arguments
    ---------
    model : Pretrained
        One of SpeechBrain's interfaces.

    Returns
    -------
    list of str
        Also normalizations over a corpus that have no statistics.
    """
    pretrainer = getattr(model.hparams, "pretrainer", None)
    loadables = getattr(pretrainer, "loadables", {}).values()
    loaded = {
        id(tensor)
        for loadable in loadables
        if isinstance(loadable, torch.nn.Module)
        for tensor in loadable.state_dict(keep_vars=True).values()
    }
    lacking = []
    for name, module in _reachable_modules(model):
        for key, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in loaded:
                loaded.add(id(tensor))  # named once
                lacking.append(f"{name}.{key}")
        lacking += [
            f"{name}: no statistics of a corpus"
            for part in module.modules()
            if getattr(part, "norm_type", "") == "global"
            and not getattr(part, "count", 1)
        ]
    # Filters and windows are computed from the YAML, not trained.
    constant = {"compute_features", "audio_normalizer"}
    return [name for name in lacking if not constant & {*name.split(".")}]


def _reachable_modules(model) -> list[tuple[str, torch.nn.Module]]:
    """Return the outermost modules that an interface can reach, by name.

    Searchers and scorers are plain objects, of which torch knows nothing, so
    their attributes are searched as well.
    """
    found: list[tuple[str, torch.nn.Module]] = []
    seen: set[int] = set()
    todo = [(name, module) for name, module in model.mods.items()]
    todo += [
        (n, v) for n, v in vars(model.hparams).items() if n != "pretrainer"
    ]
    while todo:
        name, value = todo.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            found.append((name, value))
            # Its parts count as found, but what they hold may be new.
            seen.update(id(part) for part in value.modules())
            held = [each for part in value.modules() for each in _held(part)]
        else:
            held = _held(value)
        todo += [(f"{name}.{key}", each) for key, each in held]
    return found


def _held(value: Any) -> list[tuple[str, Any]]:
    """Return what an object holds beside what torch knows of."""
    if isinstance(value, dict):
        held = value.items()
    elif isinstance(value, (list, tuple)):
        held = ((str(i), item) for i, item in enumerate(value))
    elif type(value).__module__.startswith(("speechbrain", "torch.nn")):
        held = getattr(value, "__dict__", {}).items()
    else:
        return []
    return [(str(k), v) for k, v in held if not str(k).startswith("__")]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(run(given)), encoding="utf-8")

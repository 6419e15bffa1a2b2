"""Run in a process of its own: load a folder as a stranger would, and score.

> python -m speechbrain_stablequant.publishing.clean_process task.json result.json

The task is what `speechbrain_stablequant.publishing.clean_process` writes.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

import torch
from speechbrain.utils.metric_stats import ErrorRateStats

import speechbrain_stablequant
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.publishing.interfaces import Interface

__all__ = ["load", "run", "run_clean", "unloaded_parameters"]


def load(source: str, interface: dict[str, str], savedir: str):
    """Load a model through SpeechBrain's interface.

    Arguments
    ---------
    source : str
        Folder or hub name.
    interface : dict
        ``module`` and ``name`` of the class.
    savedir : str
        Where SpeechBrain puts links to the files.
    """
    module = importlib.import_module(interface["module"])
    cls = getattr(module, interface["name"])
    return cls.from_hparams(source=source, savedir=savedir)


def unloaded_parameters(model) -> list[str]:
    """Return names of tensors that no file has given a value.

    They would have random values, and nothing else would show it. Searchers and
    scorers are no modules, but hold some: these are found too. So are buffers
    (the statistics of a batch norm), and normalizations over a corpus whose
    statistics are none.
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
    for name, module in reachable_modules(model):
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
    return [name for name in lacking if not _is_constant(name)]


# Filters and windows are computed from the YAML, not trained.
_CONSTANTS = ("compute_features", "audio_normalizer")


def _is_constant(name: str) -> bool:
    return any(part in _CONSTANTS for part in name.split("."))


def reachable_modules(model) -> list[tuple[str, torch.nn.Module]]:
    """Return the outermost modules that an interface can reach, by name.

    Arguments
    ---------
    model : Pretrained
        One of SpeechBrain's interfaces, whose searchers hold modules too.
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
            # Parts of it are no finds, but what they hold may be.
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


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Load and score what a task names.

    Returns
    -------
    dict
        ``unloaded``: parameters without a value, ``results`` by key,
        ``num_parameters`` and ``quantized_layers``.
    """
    torch.manual_seed(task["seed"])
    model = load(task["source"], task["interface"], task["savedir"])
    model.eval()
    names = unloaded_parameters(model)
    runner = _RUNNERS[task["interface"]["name"]]
    results = {}
    with torch.no_grad():
        for item in task["items"]:
            results[item["key"]] = runner(model, item)
    modules = list(model.mods.modules())
    return {
        "unloaded": names,
        "results": results,
        "num_parameters": _num_values(model),
        "quantized_layers": sum(
            isinstance(m, QuantizedModule) for m in modules
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


def _audio(model, item: dict[str, Any]) -> torch.Tensor:
    """Return an utterance at the model's sampling rate, (1, samples)."""
    from speechbrain.dataio import audio_io

    if "noise" in item:
        rate = model.audio_normalizer.sample_rate
        return 0.05 * torch.randn(1, int(item["noise"] * rate))

    start, stop = item.get("start"), item.get("stop")
    part = {}
    if start is not None and stop is not None:
        part = {"frame_offset": start, "num_frames": stop - start}
    signal, rate = audio_io.load(item["path"], channels_first=False, **part)
    return model.audio_normalizer(signal, rate).unsqueeze(0)


def _words(model, item) -> dict[str, Any]:
    words, _ = model.transcribe_batch(_audio(model, item), torch.ones(1))
    text = words[0] if isinstance(words[0], str) else " ".join(words[0])
    found = {"text": text}
    if item.get("text"):
        for name, split in (("WER", False), ("CER", True)):
            stats = ErrorRateStats(split_tokens=split)
            stats.append([item["key"]], [text.split()], [item["text"].split()])
            counts = stats.scores[0]
            found[name] = [
                sum(
                    counts[k]
                    for k in ("insertions", "deletions", "substitutions")
                ),
                counts["num_ref_tokens"],
            ]
    return found


def _embedding(model, item) -> dict[str, Any]:
    if "path2" not in item:
        vector = model.encode_batch(_audio(model, item))
        return {"size": vector.shape[-1], "norm": float(vector.norm())}
    first = _audio(model, item)
    second = _audio(model, {"path": item["path2"], **item["part2"]})
    score, _ = model.verify_batch(first, second)
    return {"score": [float(score), 1.0]}


def _label(model, item) -> dict[str, Any]:
    try:
        _, score, _, label = model.classify_batch(_audio(model, item))
    except KeyError as err:
        raise ValueError(
            f"The classifier has a class {err} that label_encoder.ckpt has no "
            f"name for ({len(model.hparams.label_encoder)} labels): it is of "
            "another run."
        ) from err
    found = {"label": label[0], "score": float(score)}
    if item.get("label"):
        found["error"] = [float(label[0] != item["label"]), 1.0]
    return found


def _states(model, item) -> dict[str, Any]:
    states = model.encode_batch(_audio(model, item), torch.ones(1))
    return {"shape": list(states.shape), "norm": float(states.norm())}


def _nats(model, item) -> dict[str, Any]:
    score = model.score_sentences([item["text"]])[0]
    return {"PPL": [score.nats, score.num_tokens]}


_RUNNERS: dict[str, Callable] = {
    "EncoderASR": _words,
    "EncoderDecoderASR": _words,
    "SpeakerRecognition": _embedding,
    "EncoderClassifier": _label,
    "WaveformEncoder": _states,
    "LanguageModel": _nats,
}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(run(given)), encoding="utf-8")


def run_clean(
    source: str,
    interface: Interface,
    items: list[dict[str, Any]],
    name: str = "",
) -> dict[str, Any]:
    """Load and run a model in a process of its own.

    Arguments
    ---------
    source : str
        Folder or hub name.
    interface : Interface
        What loads it.
    items : list of dict
        See `speechbrain_stablequant.publishing.clean_process`.
    name : str
        What to call it in errors; by default the source.

    Returns
    -------
    dict
        ``results`` by key, ``num_parameters``, ``quantized_layers``.

    Raises
    ------
    PublishError
        If that fails, with the reason, or parameters get no value.
    """
    folder = Path(source)
    name = name or source
    with tempfile.TemporaryDirectory() as scratch:
        task = {
            "source": str(folder.resolve()) if folder.is_dir() else source,
            "interface": {"module": interface.module, "name": interface.name},
            "savedir": str(Path(scratch) / "loaded"),
            "items": items,
            "seed": 1986,
        }
        files = [Path(scratch) / file for file in ("task.json", "result.json")]
        files[0].write_text(json.dumps(task), encoding="utf-8")
        module = "speechbrain_stablequant.publishing.clean_process"
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, files)],
            cwd=scratch,  # the recipe's modules are not importable from here
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            why = _reason(done).replace(str(folder.resolve()), name)
            raise PublishError(
                f"{interface.name}.from_hparams cannot load or run {name} in a "
                f"clean process: {why[:800]}"
            )
        found = json.loads(files[1].read_text(encoding="utf-8"))
    if found["unloaded"]:
        names = ", ".join(found["unloaded"][:3])
        raise PublishError(
            f"{name} loads, but no file has values for "
            f"{len(found['unloaded'])} parameters ({names}, ...): they would be "
            "random. Name their module among the loadables of the pretrainer."
        )
    return found


def _environment() -> dict[str, str]:
    """Return the environment, without paths to the user's own modules."""
    found = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    paths = found.pop("PYTHONPATH", "").split(os.pathsep)
    # This package itself may be found by it.
    home = Path(speechbrain_stablequant.__file__).resolve().parents[1]
    if any(path and Path(path).resolve() == home for path in paths):
        found["PYTHONPATH"] = str(home)
    return found


def _reason(done: subprocess.CompletedProcess) -> str:
    """Say why a process failed: the message of its traceback."""
    if done.returncode < 0:
        return f"the process was killed (signal {-done.returncode})."
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if _names_error(line)]
    return " ".join(lines[starts[-1] :] if starts else lines[-1:])


def _names_error(line: str) -> bool:
    """Whether a line is ``package.SomeError: message``."""
    return bool(re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line))

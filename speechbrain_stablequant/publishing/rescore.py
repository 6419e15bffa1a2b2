"""Run in a process of its own: load a folder as a stranger would, and score.

> python -m speechbrain_stablequant.publishing.rescore task.json result.json

The task is what `speechbrain_stablequant.publishing.check` writes.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any, Callable

import torch

from speechbrain_stablequant.layers import QuantizedModule

__all__ = ["load", "run", "unloaded_parameters"]


def load(source: str, interface: dict[str, str], savedir: str):
    """Load a model through the toolkit's interface.

    Arguments
    ---------
    source : str
        Folder or hub name.
    interface : dict
        ``module`` and ``name`` of the class.
    savedir : str
        Where the toolkit puts links to the files.
    """
    module = importlib.import_module(interface["module"])
    cls = getattr(module, interface["name"])
    return cls.from_hparams(source=source, savedir=savedir)


def unloaded_parameters(model) -> list[str]:
    """Return names of parameters that no file has given a value.

    They would have random values, and nothing else would show it.
    """
    pretrainer = getattr(model.hparams, "pretrainer", None)
    loadables = getattr(pretrainer, "loadables", {}).values()
    given = set()
    for loadable in loadables:
        if isinstance(loadable, torch.nn.Module):
            tensors = [*loadable.parameters(), *loadable.buffers()]
            given.update(id(tensor) for tensor in tensors)
    return [
        name
        for name, tensor in model.mods.named_parameters()
        if id(tensor) not in given
    ]


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
        from speechbrain.utils.edit_distance import wer_details_for_batch

        reference = item["text"].split()
        details = wer_details_for_batch(
            [item["key"]], [reference], [text.split()]
        )[0]
        errors = details["insertions"] + details["deletions"]
        found["errors"] = errors + details["substitutions"]
        found["weight"] = len(reference)
    return found


def _embedding(model, item) -> dict[str, Any]:
    if "path2" not in item:
        vector = model.encode_batch(_audio(model, item))
        return {"size": vector.shape[-1], "norm": float(vector.norm())}
    first = _audio(model, item)
    second = _audio(model, {"path": item["path2"], **item["part2"]})
    score, _ = model.verify_batch(first, second)
    return {"score": float(score)}


def _label(model, item) -> dict[str, Any]:
    _, score, _, label = model.classify_batch(_audio(model, item))
    return {"label": label[0], "score": float(score)}


def _states(model, item) -> dict[str, Any]:
    states = model.encode_batch(_audio(model, item), torch.ones(1))
    return {"shape": list(states.shape), "norm": float(states.norm())}


def _nats(model, item) -> dict[str, Any]:
    score = model.score_sentences([item["text"]])[0]
    return {"errors": score.nats, "weight": score.num_tokens}


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

"""Load a published folder in a clean process, and score some of the test again.

That is what a stranger will do with it: without the recipe, its folder on the
path or anything that this process has in memory.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.examples import (
    Utterance,
    recorded_items,
    recorded_scores,
    utterances,
)
from speechbrain_stablequant.publishing.interfaces import Interface
from speechbrain_stablequant.publishing.recipe import Recipe
from speechbrain_stablequant.verification.trials import canonical_id

__all__ = ["Check", "check_folder", "run_clean", "task_items"]

_ITEMS = 12  # utterances or trials that are scored again
# A published model decodes one utterance at a time, the recipe padded batches,
# perhaps on integer kernels: some results differ, and by so much may the mean.
_TOLERANCES = {"WER": 5.0, "score": 0.05, "NLL": 0.02}
_UNITS = {"WER": "points", "score": "of cosine", "NLL": "nats per token"}


@dataclass
class Check:
    """What a clean process found.

    Arguments
    ---------
    interface : str
        What it loaded the folder with.
    metric : str, optional
        What was compared: ``WER`` (points), ``score`` (cosine), ``NLL`` (nats
        per token); None if nothing could be.
    published, recorded : float, optional
        That metric of the folder, and of the recipe's own quantized test.
    same : int
        How many items gave exactly the same result (scores: within 0.01).
    items : int
        How many were scored.
    note : str
        Why nothing was compared.
    results : dict
        What came out, by ID.
    """

    interface: str
    metric: Optional[str] = None
    published: Optional[float] = None
    recorded: Optional[float] = None
    same: int = 0
    items: int = 0
    note: str = ""
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        if self.metric is None:
            return True
        worse = self.published - self.recorded
        if self.metric == "score":
            worse = abs(worse)
        return worse <= _TOLERANCES[self.metric]

    def to_dict(self) -> dict:
        """Return plain data."""
        return {"ok": self.ok, **asdict(self)}

    def line(self) -> str:
        """Say it in one line."""
        if self.metric is None:
            ran = f"; ran on {self.items} inputs" if self.items else ""
            return f"{self.interface} loads it{ran}; not scored: {self.note}"
        name = (
            "mean difference of scores"
            if self.metric == "score"
            else (f"{self.metric} {self.published:.2f}, in the recipe")
        )
        value = self.published if self.metric == "score" else self.recorded
        digits = 4 if self.metric == "score" else 2
        return (
            f"{self.interface} loads it; {name} {value:.{digits}f}; "
            f"{self.same} of {self.items} results the same"
        )


def check_folder(folder: Path, interface: Interface, recipe: Recipe) -> Check:
    """Load a folder as a stranger would, and compare with the recipe's test.

    Arguments
    ---------
    folder : Path
        What is to be published.
    interface : Interface
        What loads it.
    recipe : Recipe
        The experiment, for its test set and what it recorded.

    Raises
    ------
    PublishError
        If it does not load, parameters get no value, or results differ by more
        than rounding explains.
    """
    items = task_items(recipe, interface.name)
    found = run_clean(str(folder), interface, [item for item, _ in items])
    check = _compared(interface.name, items, found["results"])
    if not check.ok:
        raise PublishError(
            f"The model loads from {folder}, but it is not what was measured: "
            f"{check.line()} (at most {_TOLERANCES[check.metric]} "
            f"{_UNITS[check.metric]} worse is accepted). The inference YAML may "
            "leave out a step of the recipe's compute_forward: write one and "
            "give it with --hyperparams."
        )
    return check


def run_clean(
    source: str, interface: Interface, items: list[dict[str, Any]]
) -> dict[str, Any]:
    """Load and run a model in a process of its own.

    Arguments
    ---------
    source : str
        Folder or hub name.
    interface : Interface
        What loads it.
    items : list of dict
        See `speechbrain_stablequant.publishing.rescore`.

    Returns
    -------
    dict
        ``results`` by key.

    Raises
    ------
    PublishError
        If that fails, with the reason.
    """
    with tempfile.TemporaryDirectory() as scratch:
        task = {
            "source": str(Path(source).resolve())
            if Path(source).is_dir()
            else source,
            "interface": {"module": interface.module, "name": interface.name},
            "savedir": str(Path(scratch) / "loaded"),
            "items": items,
            "seed": 1986,
        }
        files = [Path(scratch) / name for name in ("task.json", "result.json")]
        files[0].write_text(json.dumps(task), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.rescore", *map(str, files)],
            cwd=scratch,  # the recipe's modules are not importable from here
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise PublishError(_reason(source, interface, done))
        found = json.loads(files[1].read_text(encoding="utf-8"))
    if found["unloaded"]:
        names = ", ".join(found["unloaded"][:3])
        raise PublishError(
            f"{source} loads, but no file has values for "
            f"{len(found['unloaded'])} parameters ({names}, ...): they would be "
            "random. Name their module among the loadables of the pretrainer."
        )
    return found


def _reason(source: str, interface: Interface, done) -> str:
    """Say why a process failed: the last line of its traceback."""
    if done.returncode < 0:
        why = f"the process was killed (signal {-done.returncode})"
    else:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        # The message may have several lines, each but the first indented or not.
        starts = [i for i, line in enumerate(lines) if _names_error(line)]
        why = " ".join(lines[starts[-1] :] if starts else lines[-1:])
    return (
        f"{interface.name}.from_hparams cannot load or run {source} in a clean "
        f"process: {why[:800]}"
    )


def _names_error(line: str) -> bool:
    """Whether a line is ``package.SomeError: message``."""
    return bool(re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line))


# -- what is scored ------------------------------------------------------------

Items = list[tuple[dict[str, Any], Optional[list[float]]]]


def task_items(recipe: Recipe, interface: str) -> Items:
    """Return what to run, each with what the recipe recorded for it."""
    found = utterances(recipe)
    if interface == "LanguageModel":
        known = recorded_items(recipe, "PPL")
        chosen = _spread([found[k] for k in sorted(known) if k in found])
        return [
            ({"key": u.key, "text": u.text}, known[u.key])
            for u in chosen
            if u.text
        ]
    with_audio = {k: u for k, u in found.items() if u.path is not None}
    if interface == "SpeakerRecognition":
        return _trials(recipe, with_audio)
    known = recorded_items(recipe, "WER") if "ASR" in interface else {}
    keys = [key for key in sorted(with_audio) if key in known or not known]
    return [
        (_audio_item(u), known.get(u.key))
        for u in _spread([with_audio[key] for key in keys])
    ]


def _spread(found: list, count: int = _ITEMS) -> list:
    """Return some, from the whole length of a list."""
    step = max(1, len(found) // count)
    return found[::step][:count]


def _audio_item(utterance: Utterance) -> dict[str, Any]:
    return {
        "key": utterance.key,
        "path": str(utterance.path.resolve()),
        "start": utterance.start,
        "stop": utterance.stop,
        "text": utterance.text,
    }


def _trials(recipe: Recipe, known: dict[str, Utterance]) -> Items:
    """Return trials of both kinds, of utterances that are there."""
    # Lists of trials name files with or without their ending.
    known = {canonical_id(key): u for key, u in known.items()}
    trials = [t for t in recorded_scores(recipe) if {*t[:2]} <= set(known)]
    chosen = []
    for label in (1, 0):
        of_kind = [t for t in trials if t[2] == label]
        chosen += _spread(of_kind, _ITEMS // 2)
    if not chosen:
        return [(_audio_item(u), None) for u in _spread(list(known.values()))]
    items: Items = []
    for first, second, _, score in chosen:
        other = known[second]
        item = {
            **_audio_item(known[first]),
            "key": f"{first} {second}",
            "path2": str(other.path.resolve()),
            "part2": {"start": other.start, "stop": other.stop},
        }
        items.append((item, [score, 1.0]))
    return items


def _compared(interface: str, items: Items, results: dict) -> Check:
    """Compare what came out with what was recorded."""
    check = Check(interface, items=len(items), results=results)
    pairs = [
        (results[item["key"]], recorded)
        for item, recorded in items
        if recorded is not None
    ]
    if not items:
        check.note = "no utterance of a test set was found"
    elif not pairs:
        check.note = "the recipe recorded nothing to compare with"
    elif "score" in pairs[0][0]:
        differences = [abs(new["score"] - old[0]) for new, old in pairs]
        check.metric, check.recorded = "score", 0.0
        check.published = sum(differences) / len(differences)
        check.same = sum(d <= 0.01 for d in differences)
    elif any(new.get("weight") != old[1] for new, old in pairs):
        check.note = "the recipe counts words or tokens in another way"
    else:
        factor = 1.0 if interface == "LanguageModel" else 100.0
        check.metric = "NLL" if interface == "LanguageModel" else "WER"
        weight = sum(old[1] for _, old in pairs)
        new_sum = sum(new["errors"] for new, _ in pairs)
        check.published = factor * new_sum / weight
        check.recorded = factor * sum(old[0] for _, old in pairs) / weight
        check.same = sum(
            abs(new["errors"] - old[0]) <= 1e-3 * max(1.0, old[0])
            for new, old in pairs
        )
    return check

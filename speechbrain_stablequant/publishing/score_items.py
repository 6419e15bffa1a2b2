"""Utterances of the test sets, for the check and for the example."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from speechbrain.dataio.dataio import load_data_csv, load_data_json
from yaml import ScalarNode

from speechbrain_stablequant.artifacts.hyperparams import descendants
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = [
    "Utterance",
    "example_audio",
    "label_column",
    "recorded_items",
    "recorded_scores",
    "utterances",
]

_TEXTS = ("wrd", "words", "text", "transcript", "transcription", "sentence")
_SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class Utterance:
    """One line of a test set's manifest.

    Arguments
    ---------
    key : str
        Its ID.
    path : Path, optional
        The audio file; None for a sentence without audio.
    start, stop : int, optional
        Part of the file, in samples.
    seconds : float
        Duration, as the manifest says; 0 if it does not.
    fields : dict
        All columns.
    """

    key: str
    path: Optional[Path] = None
    start: Optional[int] = None
    stop: Optional[int] = None
    seconds: float = 0.0
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> Optional[str]:
        """The reference text, by the usual names of its column."""
        found = (self.fields.get(name) for name in _TEXTS)
        value = next((v for v in found if v), None)
        return " ".join(value) if isinstance(value, list) else value


def utterances(recipe: Recipe) -> dict[str, Utterance]:
    """Return the utterances of the test sets by ID, of all manifests found.

    Without a test set they are of the validation set; there may be none.
    """
    return _of_sets(recipe, ("test",)) or _of_sets(recipe, ("valid", "dev"))


def _of_sets(recipe: Recipe, kinds: tuple[str, ...]) -> dict[str, Utterance]:
    """Return the utterances of the manifests of some sets."""
    found: dict[str, Utterance] = {}
    folder = recipe.definitions.value("data_folder", "")
    replacements = {"data_root": str(folder), "ROOT": str(folder)}
    for path in _manifests(recipe, kinds):
        load = load_data_json if path.suffix == ".json" else load_data_csv
        try:
            rows = load(str(path), replacements)
        except (OSError, ValueError, KeyError):
            continue  # a table of something else
        for key, row in rows.items():
            found.setdefault(key, _utterance(recipe, key, row))
    return found


def _manifests(recipe: Recipe, kinds: tuple[str, ...]) -> list[Path]:
    """Return the manifests of some sets that the YAML names."""
    found = []
    for name, node in recipe.definitions.values():
        if any(kind in name for kind in kinds) and not node.tag.startswith("!"):
            found += [
                recipe.locate(part.value)
                for part in descendants(node)
                if isinstance(part, ScalarNode)
                and part.value.endswith(_SUFFIXES)
            ]
    return list(dict.fromkeys(p for p in found if p and p.is_file()))


def _utterance(recipe: Recipe, key: str, row: dict) -> Utterance:
    audio = row.get("wav") or row.get("path") or row.get("file_path")
    limits = row
    if isinstance(audio, dict):
        limits, audio = audio, audio.get("file")
    path = recipe.locate(audio) if isinstance(audio, str) else None
    return Utterance(
        key,
        path,
        _whole(limits.get("start")),
        _whole(limits.get("stop")),
        _seconds(row),
        row,
    )


def _whole(value: Any) -> Optional[int]:
    text = str(value)
    return int(text) if text.isdigit() else None


def _seconds(row: dict) -> float:
    try:
        return float(row.get("duration") or row.get("length") or 0)
    except (TypeError, ValueError):
        return 0.0


def label_column(
    found: dict[str, Utterance], labels: set[str]
) -> Optional[str]:
    """Return the column whose values are all labels of the classifier."""
    rows = [u.fields for u in found.values()]
    for name in rows[0] if rows else ():
        if {str(row.get(name)) for row in rows} <= labels:
            return name
    return None


def example_audio(found: dict[str, Utterance]) -> Optional[Utterance]:
    """Return the utterance of 1 to 12 s that is nearest to four seconds."""
    return min(
        (u for u in found.values() if u.path and 1.0 <= u.seconds <= 12.0),
        key=lambda u: (abs(u.seconds - 4.0), u.key),
        default=None,
    )


# -- what the recipe's own test has recorded of them ----------------------------


def recorded_items(recipe: Recipe, metric: str) -> dict[str, list[float]]:
    """Return errors and weight by ID, of the quantized pass.

    Arguments
    ---------
    recipe : Recipe
        The experiment.
    metric : str
        Name of a metric: ``WER``, ``PPL``.
    """
    try:
        text = (recipe.experiment.ptq / "items.json").read_text("utf-8")
        tests = json.loads(text)
    except (OSError, ValueError):
        return {}
    found: dict[str, list[float]] = {}
    for test in tests.values():
        rows = (test.get(metric) or {}).get("quantized") or []
        found.update({key: [errors, weight] for key, errors, weight in rows})
    return found


def recorded_scores(recipe: Recipe) -> list[tuple[str, str, int, float]]:
    """Return trials of the quantized pass: two IDs, the label, the score.

    They are in a file of the recipe, as SpeechBrain's speaker recipe writes it.
    """
    found = []
    # A script without a Brain has one pass, over the quantized model.
    has_brain = "modules" in recipe.definitions
    pattern = "*scores*_ptq*.txt" if has_brain else "*scores*.txt"
    for path in sorted(recipe.experiment.folder.glob(pattern)):
        for line in path.read_text(encoding="utf-8").splitlines():
            parts = line.split()
            if len(parts) == 4 and parts[2] in ("0", "1"):
                with_score = (*parts[:2], int(parts[2]), float(parts[3]))
                found.append(with_score)
    return found

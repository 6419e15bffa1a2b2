"""Load a folder in a clean process, and score some of the test with it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from speechbrain_stablequant.artifacts.checkpoint_reader import read_header
from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.core.plan import LayerPlan
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.metrics.verification.trials import canonical_id
from speechbrain_stablequant.publishing.clean_process import run_clean
from speechbrain_stablequant.publishing.interfaces import Interface
from speechbrain_stablequant.publishing.inventory import Recipe
from speechbrain_stablequant.publishing.score_items import (
    Utterance,
    label_column,
    recorded_items,
    recorded_scores,
    utterances,
)

__all__ = ["Check", "check_folder", "require_one_run"]

_ITEMS = 12  # utterances or trials that are scored again
# Where there is no test utterance
_TEXT = {"key": "text", "text": "A"}
_NOISE = {"key": "noise", "noise": 2.0}  # seconds


@dataclass(frozen=True)
class Rule:
    """How a metric is compared.

    Arguments
    ---------
    name : str
        For people.
    factor : float
        From errors over weight to what is shown.
    tolerance : float
        By how much the published model may be worse: it scores one utterance at
        a time, while the recipe scores padded batches, perhaps on integer
        kernels.
    """

    name: str
    factor: float
    tolerance: float


_RULES = {
    "WER": Rule("WER", 100.0, 5.0),
    "CER": Rule("CER", 100.0, 3.0),
    "error": Rule("classification error in percent", 100.0, 10.0),
    "PPL": Rule("nats per token", 1.0, 0.02),
    "score": Rule("mean difference of scores", 1.0, 0.05),
}


@dataclass
class Check:
    """What a clean process found.

    Arguments
    ---------
    interface : str
        What it loaded the folder with.
    metric : str, optional
        What was compared: ``WER``, ``CER``, ``error`` (percent), ``PPL`` (as
        nats per token), ``score`` (difference of cosines); None if nothing
        could be.
    published, recorded : float, optional
        That metric of the folder, and of the recipe's own quantized test.
    same : int
        How many items gave the same result (scores: within 0.01).
    items : int
        How many were compared.
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
        return worse <= _RULES[self.metric].tolerance

    def to_dict(self) -> dict:
        """Return plain data."""
        return {"ok": self.ok, **asdict(self)}

    def line(self) -> str:
        """Return the result in one line."""
        loads = f"{self.interface} loads it"
        if self.metric is None:
            return (
                f"{loads} and runs on {len(self.results)} inputs; NOT SCORED: "
                f"{self.note}"
            )
        name = _RULES[self.metric].name
        same = f"{self.same} of {self.items} results the same"
        if self.metric == "score":
            return f"{loads}; {name} {self.published:.4f}; {same}"
        return (
            f"{loads}; on {self.items} test utterances {name} "
            f"{self.published:.2f}, in the recipe {self.recorded:.2f}; {same}"
        )


def check_folder(
    folder: Path, interface: Interface, recipe: Recipe, name: str = ""
) -> Check:
    """Load a folder in a clean process, and compare with the recipe's test.

    Arguments
    ---------
    folder : Path
        What is to be published.
    interface : Interface
        What loads it.
    recipe : Recipe
        The experiment, for its test set and what it recorded.
    name : str
        What to call the folder in errors.

    Raises
    ------
    PublishError
        If it does not load, parameters get no value, or results differ by more
        than rounding explains.
    """
    items = _items_of(recipe, interface)
    plain = [item for item, _ in items]
    plain = plain or [_TEXT if interface.takes_text else _NOISE]
    found = run_clean(str(folder), interface, plain, name)
    check = _compared(interface, items, found["results"])
    if not check.ok:
        rule = _RULES[check.metric]
        raise PublishError(
            "The model loads, but it is not what was measured: "
            f"{check.line()} (at most {rule.tolerance:g} worse is accepted). "
            "The inference YAML may leave out a step of the recipe's "
            "compute_forward: write one and give it with --hyperparams."
        )
    return check


# -- what is scored ------------------------------------------------------------

# What to run, with errors and weight by metric as the recipe recorded them
Items = list[tuple[dict[str, Any], dict[str, Sequence[float]]]]


def _items_of(recipe: Recipe, interface: Interface) -> Items:
    """Return what to run, each with what the recipe recorded for it."""
    found = utterances(recipe)
    usable = {
        key: utterance
        for key, utterance in found.items()
        if (utterance.text if interface.takes_text else utterance.path)
    }
    if interface.by_trials:
        return _trials(recipe, usable)
    recorded = {
        metric: recorded_items(recipe, metric) for metric in interface.metrics
    }
    known = {key for items in recorded.values() for key in items}
    keys = sorted(known & set(usable)) or sorted(usable)
    column = _label_column(recipe, interface, found)
    items: Items = []
    for key in _spread(keys):
        item = _item(usable[key])
        if column is not None:
            item["label"] = str(usable[key].fields[column])
        mine = {m: v[key] for m, v in recorded.items() if key in v}
        items.append((item, mine))
    return items


def _label_column(recipe: Recipe, interface: Interface, found) -> Optional[str]:
    """Return the column of the manifest with the class of an utterance."""
    path = recipe.files.get(interface.labels or "")
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    labels = {
        line.split(" => ")[0].strip("'") for line in lines if " => " in line
    }
    return label_column(found, labels)


def _spread(found: list, count: int = _ITEMS) -> list:
    """Return some, from the whole length of a list."""
    step = max(1, len(found) // count)
    return found[::step][:count]


def _item(utterance: Utterance) -> dict[str, Any]:
    path = utterance.path
    return {
        "key": utterance.key,
        "path": None if path is None else str(path.resolve()),
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
    if not chosen or recipe.score_normalization:
        return [(_item(u), {}) for u in _spread(list(known.values()))]
    items: Items = []
    for first, second, _, score in chosen:
        other = known[second]
        item = {
            **_item(known[first]),
            "key": f"{first} {second}",
            "path2": str(other.path.resolve()),
            "part2": {"start": other.start, "stop": other.stop},
        }
        items.append((item, {"score": [score, 1.0]}))
    return items


# -- the comparison ------------------------------------------------------------


def _compared(interface: Interface, items: Items, results: dict) -> Check:
    """Compare what came out with what was recorded."""
    check = Check(interface.name, results=results)
    check.note = "no test utterance was found on this machine"
    if not items:
        return check
    check.note = (
        interface.no_metric
        or "the recipe recorded nothing that can be compared with"
    )
    for metric in interface.metrics:
        pairs = [
            (results[item["key"]].get(metric), recorded[metric])
            for item, recorded in items
            if metric in recorded
        ]
        both = [(new, old) for new, old in pairs if new is not None]
        if pairs and not both:
            check.note = "the manifest has no column with the reference"
            continue
        # Equal weights mean that both counted errors against the same reference;
        # the recipe may have normalized some texts of the manifest.
        alike = [(new, old) for new, old in both if new[1] == old[1]]
        if len(alike) < max(1, len(pairs) / 2):
            if pairs:
                check.note = f"the recipe counts {metric} in another way"
            continue
        return _scored(check, metric, alike)
    return check


def _scored(check: Check, metric: str, pairs) -> Check:
    """Fill in a metric of both sides."""
    check.metric, check.items, check.note = metric, len(pairs), ""
    margin = 1e-3
    if metric == "score":  # no error by itself: what differs is
        pairs = [([abs(new[0] - old[0])], [0.0, 1.0]) for new, old in pairs]
        margin = 0.01
    factor, weight = _RULES[metric].factor, sum(old[1] for _, old in pairs)
    check.published = factor * sum(new[0] for new, _ in pairs) / weight
    check.recorded = factor * sum(old[0] for _, old in pairs) / weight
    check.same = sum(
        abs(new[0] - old[0]) <= margin * max(1.0, old[0]) for new, old in pairs
    )
    return check


# -- are all parts of one run ------------------------------------------------

_AGAIN = "Run the recipe once more (--test_only), so that all are of one run."


def require_one_run(experiment: Experiment) -> None:
    """Refuse an experiment whose parts are of different runs.

    Raises
    ------
    PublishError
        If the plan is another than that of the packed files, or the report is
        about files of other sizes.
    """
    packed = {
        _text(layer)
        for path in experiment.checkpoints.values()
        for layer in read_header(path)["plan"].layers.values()
    }
    planned = {_text(layer) for layer in experiment.plan.layers.values()}
    if packed - planned:
        raise PublishError(
            f"{experiment.ptq / 'plan.json'} is not the plan that the files in "
            f"{experiment.ptq / 'checkpoint'} were packed with: it was edited, "
            f"or is of another run. {_AGAIN}"
        )
    for file in experiment.report["files"]:
        path = experiment.checkpoints.get(file["name"])
        if path is None or path.stat().st_size != file["num_bytes"]:
            raise PublishError(
                f"{experiment.ptq / 'report.json'} is about a {file['name']}.ckpt "
                f"of {file['num_bytes']} bytes, which is not in "
                f"{experiment.ptq / 'checkpoint'}. {_AGAIN}"
            )


def _text(layer: LayerPlan) -> str:
    """Return a layer's plan in a form to compare.

    Its search block (``unit``) is left out, which differs between layers that
    are quantized alike.
    """
    fields = {**asdict(layer), "unit": ""}
    return json.dumps(fields, sort_keys=True)

"""The folder that is published: its files, and putting it in place."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces import Blueprint
from speechbrain_stablequant.publishing.inventory import Recipe
from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    file_names,
    hash_file,
    read_manifest,
    write_manifest,
)
from speechbrain_stablequant.publishing.options import PublishOptions
from speechbrain_stablequant.publishing.privacy import without_paths
from speechbrain_stablequant.publishing.score_items import (
    Utterance,
    example_audio,
    utterances,
)
from speechbrain_stablequant.report.page import render_page

__all__ = [
    "HubFolder",
    "fill_folder",
    "put_in_place",
    "staging",
]

EXAMPLE = "example.wav"


@dataclass
class HubFolder:
    """A folder to publish.

    Arguments
    ---------
    path : Path
        Where it is.
    example : str, optional
        Name of the audio file in it.
    notes : list of str
        What the user should know: what was left out, and why.
    """

    path: Path
    example: Optional[str] = None
    notes: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        """Return the names of all files below the folder but the manifest."""
        return file_names(self.path)

    def sizes(self) -> dict[str, int]:
        """Return bytes by name."""
        return {n: (self.path / n).stat().st_size for n in self.files()}


def fill_folder(
    path: Path,
    recipe: Recipe,
    blueprint: Blueprint,
    options: PublishOptions,
) -> HubFolder:
    """Copy and write all that the model needs.

    Arguments
    ---------
    path : Path
        A folder that is not there yet.
    recipe : Recipe
        The experiment.
    blueprint : Blueprint
        Its inference YAML.
    options : PublishOptions
        Whether there is audio to show the model with, and which.

    Returns
    -------
    HubFolder
        Without a card: that tells of a check of the folder.
    """
    path.mkdir(parents=True)
    folder = HubFolder(path)
    for name in blueprint.files:
        data = recipe.files[name].read_bytes()
        if name not in recipe.quantized:
            data = without_paths(data)
        (path / f"{name}.ckpt").write_bytes(data)
    _write_results(path, recipe.experiment)
    folder.notes += _notes(recipe, blueprint)
    if not (options.no_example or blueprint.interface.takes_text):
        _add_example(folder, recipe, options.example)
    # Last: a folder with it is complete.
    (path / "hyperparams.yaml").write_text(blueprint.text, encoding="utf-8")
    return folder


def _notes(recipe: Recipe, blueprint: Blueprint) -> list[str]:
    """Return what the user should know of the files of the model."""
    found = [
        f"{name} is not part of it: loaded from {source}"
        for name, source in blueprint.elsewhere.items()
    ]
    found += [
        f"{name} was not trained in this recipe but loaded by its "
        f"pretrainer: --include {name} uploads it, if you may"
        for name in blueprint.pretrained
    ]
    found += blueprint.left_out
    unused = sorted(recipe.quantized - set(blueprint.files))
    if unused:
        found.append(
            f"{blueprint.interface.name} does not use {', '.join(unused)}: "
            "not part of it"
        )
    return found


def _write_results(path: Path, experiment: Experiment) -> None:
    """Write the plan, the report, and its page if the experiment has one."""
    plan = experiment.plan.to_json() + "\n"
    (path / "plan.json").write_text(plan, encoding="utf-8")
    report = public_report(experiment.report)
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (path / "report.json").write_text(text, encoding="utf-8")
    if (experiment.ptq / "report.html").is_file():
        histograms = []  # what calibration saw; nothing if the plan was given
        with contextlib.suppress(FileNotFoundError):
            text = (experiment.ptq / "histograms.json").read_text("utf-8")
            histograms = json.loads(text)
        page = render_page(report, histograms, published=True)
        (path / "report.html").write_text(page, encoding="utf-8")


def public_report(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without the paths of this machine."""
    files = [
        {**file, "path": f"{file['name']}.ckpt"} for file in report["files"]
    ]
    weights = report.get("weights")
    if isinstance(weights, dict) and weights.get("checkpoint"):
        name = Path(str(weights["checkpoint"])).name
        weights = {**weights, "checkpoint": name}
    return {**report, "files": files, "weights": weights}


def _add_example(folder: HubFolder, recipe: Recipe, given: Optional[str]):
    """Copy an utterance, as a WAV file of the part that the test reads."""
    from speechbrain.dataio import audio_io

    if given is not None:
        utterance = Utterance(given, Path(given))
    else:
        utterance = example_audio(utterances(recipe))
    if utterance is None:
        folder.notes.append(
            "no example audio: no test utterance of 1 to 12 s was found "
            "(--example FILE adds one)"
        )
        return
    start, stop = utterance.start or 0, utterance.stop
    length = -1 if stop is None else stop - start
    try:
        signal, rate = audio_io.load(
            str(utterance.path), frame_offset=start, num_frames=length
        )
    except Exception as err:  # soundfile's are of many kinds
        raise PublishError(
            f"Cannot read the example audio {utterance.path}: {err}."
        ) from err
    audio_io.save(str(folder.path / EXAMPLE), signal, rate)
    folder.example = EXAMPLE
    if given is None:
        folder.notes.append(
            f"{EXAMPLE} is {utterance.key} of the test set: --no-example leaves "
            "it out if you may not share it"
        )


# -- replacing an earlier one ---------------------------------------------------


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Return a place beside the target, on the same file system.

    What killed processes have left there is removed.

    Raises
    ------
    PublishError
        If there is something at the target that publishing has not made, or
        nothing can be written there.
    """
    if target.exists() and not _is_ours(target):
        raise PublishError(
            f"{target} is there already and was not made by publishing: give "
            "another folder with --output."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(".hub-*-*"):
            if not _is_running(left.name.split("-")[1]):
                shutil.rmtree(left, ignore_errors=True)
        scratch = tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".hub-{os.getpid()}-"
        )
    except OSError as err:
        raise PublishError(
            f"Nothing can be written to {target.parent} ({err.strerror}): give "
            "another folder with --output."
        ) from err
    with scratch as folder:
        yield Path(folder)


def _is_running(pid: str) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


def _is_ours(target: Path) -> bool:
    if not target.is_dir():
        return False
    return not any(target.iterdir()) or (target / MANIFEST).is_file()


def put_in_place(folder: HubFolder, target: Path) -> None:
    """Move a folder to its place, instead of an earlier one of ours.

    Raises
    ------
    PublishError
        If people have edited or added files there: they would be lost.
    """
    write_manifest(folder.path)
    if target.is_dir():
        path = target / MANIFEST
        known = read_manifest(path.read_bytes()) if path.is_file() else None
        for name in file_names(target):
            if (known or {}).get(name) != hash_file(target / name):
                raise PublishError(
                    f"{target / name} was changed or added by hand: move it "
                    "away, or give another folder with --output."
                )
        shutil.rmtree(target)
    shutil.move(str(folder.path), str(target))
    folder.path = target

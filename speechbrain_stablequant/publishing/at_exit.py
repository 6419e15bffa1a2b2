"""Publish when a recipe has come to its end: the ``publish`` knob of the block.

A recipe may have any number of test sets, and only its end tells which was the
last. So the command line does it, in a process of its own, as the interpreter
exits.
"""

import atexit
import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.errors import KnobError, nearest

__all__ = ["PublishKnobs", "Publisher", "make_publisher"]

logger = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class PublishKnobs:
    """The knobs below ``publish``: options of ``stablequant publish``.

    Arguments
    ---------
    repo : str, optional
        ``user/name`` on the hub; without it the folder is made and not
        uploaded.
    dry_run : bool
        Make and check the folder, upload nothing.
    private : bool, optional
        Who may see it; by default the hub's choice.
    revision : str, optional
        Branch.
    overwrite : bool
        Replace what others have put into the repository.
    output : str, optional
        The folder to make; by default ``ptq/hub``.
    interface, hyperparams, example : str, optional
        Interface, inference YAML and audio file, where those found are wrong.
    no_example : bool
        Put no audio into it.
    openvino, onnx : bool
        Add models for these runtimes.
    language, license, dataset, base_model, trained_with : str, optional
        For the model card.

    Raises
    ------
    KnobError
        If a value is of another kind; `of` also names unknown knobs.
    """

    repo: Optional[str] = None
    dry_run: bool = False
    private: Optional[bool] = None
    revision: Optional[str] = None
    overwrite: bool = False
    output: Optional[str] = None
    interface: Optional[str] = None
    hyperparams: Optional[str] = None
    example: Optional[str] = None
    no_example: bool = False
    openvino: bool = False
    onnx: bool = False
    language: Optional[str] = None
    license: Optional[str] = None
    dataset: Optional[str] = None
    base_model: Optional[str] = None
    trained_with: Optional[str] = None

    @classmethod
    def of(cls, knobs: Any) -> Optional["PublishKnobs"]:
        """Read the block's ``publish``; nothing of it, nothing to publish.

        Example
        -------
        >>> PublishKnobs.of({"repo": "me/digits", "private": True}).arguments()
        ['--repo', 'me/digits', '--private']
        >>> PublishKnobs.of(None) is None
        True
        """
        if not knobs:
            return None
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(knobs, Mapping):
            raise KnobError(
                f"publish is {knobs!r}: write its knobs, such as "
                "publish: {repo: user/name}."
            )
        for key in knobs:
            if key not in known:
                raise KnobError(
                    f"publish has no knob '{key}'." + nearest(key, known)
                )
        return cls(**knobs)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wants_bool = field.type in (bool, Optional[bool])
            if value is None or isinstance(value, bool if wants_bool else str):
                continue
            kind = "True or False" if wants_bool else "a text"
            raise KnobError(
                f"publish: {field.name} is {value!r}: {kind} is needed."
            )
        if self.repo is not None and self.repo.count("/") != 1:
            raise KnobError(f"publish: repo is {self.repo!r}: write user/name.")

    def arguments(self) -> list[str]:
        """Return them as options of the command."""
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            option = "--" + field.name.replace("_", "-")
            if value is True:
                found.append(option)
            elif value is False and field.name == "private":
                found.append("--public")
            elif isinstance(value, str):
                found += [option, value]
        return found


def make_publisher(knobs: Any) -> Optional["Publisher"]:
    """Return what publishes at the end, or None if nothing is to be.

    Arguments
    ---------
    knobs : dict, optional
        The block's ``publish``.
    """
    found = PublishKnobs.of(knobs)
    return None if found is None else Publisher(found)


class Publisher:
    """Runs ``stablequant publish`` once, when the interpreter exits.

    Not if the recipe ended with an exception: what it has measured may then be
    half of what it was to measure.

    Arguments
    ---------
    knobs : PublishKnobs
        What to do.
    """

    def __init__(self, knobs: PublishKnobs):
        self.knobs = knobs
        self.folder: Optional[Path] = None
        self._failed = False

    def schedule(self, folder: Path) -> None:
        """Publish a folder of results at the end; called after each test set."""
        first = self.folder is None
        self.folder = Path(folder).resolve()
        if not first:
            return
        atexit.register(self._publish)
        before = sys.excepthook

        def noted(kind, value, traceback):
            self._failed = True
            before(kind, value, traceback)

        sys.excepthook = noted

    def command(self) -> list[str]:
        """Return the command."""
        module = [sys.executable, "-m", "speechbrain_stablequant", "publish"]
        return [*module, str(self.folder), *self.knobs.arguments()]

    def _publish(self) -> None:
        again = " ".join(["stablequant", *self.command()[3:]])
        if self._failed:
            logger.warning("Not published: the recipe failed. Later: %s", again)
            return
        logger.info("Publishing %s", self.folder)
        done = subprocess.run(self.command(), check=False)
        if done.returncode != 0:
            logger.error(
                "Not published (exit code %d). The results are complete; "
                "repeat it with: %s",
                done.returncode,
                again,
            )

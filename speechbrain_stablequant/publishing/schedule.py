"""Publish when a recipe has come to its end: the ``publish`` option of the block.

A recipe may have any number of test sets, and only its end tells which was the
last. So the command line does it, in a process of its own, as the interpreter
exits.
"""

import atexit
import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.errors import KnobError, PublishError, nearest
from speechbrain_stablequant.publishing.destination import check_names

__all__ = ["PublishKnobs", "Publisher", "make_publisher"]

logger = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class PublishKnobs:
    """The options below ``publish``: options of ``stablequant publish``.

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
    include : list of str
        Files of the recipe's pretrainer that may be published.
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
    include: Sequence[str] = ()
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
                f"publish is {knobs!r}: write its options, such as "
                "publish: {repo: user/name}."
            )
        for key in knobs:
            if key not in known:
                raise KnobError(
                    f"publish has no option '{key}'." + nearest(key, known)
                )
        return cls(**knobs)

    def __post_init__(self):
        if isinstance(self.include, str):
            object.__setattr__(self, "include", (self.include,))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wants_bool = field.type in (bool, Optional[bool])
            if field.name == "include" or value is None:
                continue
            if isinstance(value, bool if wants_bool else str):
                continue
            kind = "True or False" if wants_bool else "a text"
            raise KnobError(
                f"publish: {field.name} is {value!r}: {kind} is needed."
            )
        try:
            self._check_values()
        except PublishError as err:
            raise KnobError(f"publish: {err}") from None

    def _check_values(self):
        """Refuse before training what would be refused after it."""
        about_repo = self.private is not None or self.revision or self.overwrite
        if self.repo is not None:
            check_names(self.repo, self.revision)
        elif about_repo:
            raise PublishError(
                "private, revision and overwrite are about a repository: name "
                "it with repo: user/name."
            )
        if self.interface is not None:
            from speechbrain_stablequant.publishing.interfaces import interface

            interface(self.interface)
        for name in ("hyperparams", "example"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise PublishError(f"{name}: {path} is not there.")

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
            elif field.name == "include":
                found += [part for name in value for part in (option, name)]
        return found


def make_publisher(knobs: Any) -> Optional["Publisher"]:
    """Return what publishes at the end, or None if nothing is to be.

    Arguments
    ---------
    options : dict, optional
        The block's ``publish``.
    """
    found = PublishKnobs.of(knobs)
    return None if found is None else Publisher(found)


class Publisher:
    """Runs ``stablequant publish`` once, when the interpreter exits.

    Not if the recipe ended with an exception or an exit code: what it has
    measured may then be half of what it was to measure. And not within tests
    and notebooks, whose end says nothing of the recipe's.

    Arguments
    ---------
    options : PublishKnobs
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
        if "PYTEST_CURRENT_TEST" in os.environ or hasattr(sys, "ps1"):
            logger.info("To publish it: %s", self._again())
            return
        atexit.register(self._publish)
        sys.excepthook = self._noting(sys.excepthook, lambda *_: True)
        sys.exit = self._noting(
            sys.exit, lambda code=None, *_: code not in (None, 0)
        )

    def _noting(self, function, is_failure):
        """Return a function that also notes whether the recipe fails."""

        def noting(*arguments):
            self._failed = self._failed or is_failure(*arguments)
            return function(*arguments)

        return noting

    def command(self) -> list[str]:
        """Return the command."""
        module = [sys.executable, "-m", "speechbrain_stablequant", "publish"]
        return [*module, str(self.folder), *self.knobs.arguments()]

    def _again(self) -> str:
        return shlex.join(["stablequant", *self.command()[3:]])

    def _publish(self) -> None:
        if self._failed:
            logger.warning(
                "Not published: the recipe failed. Later: %s", self._again()
            )
            return
        logger.info("Publishing %s", self.folder)
        # A process of its own, also where this one is a rank of several.
        ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        env = {k: v for k, v in os.environ.items() if k not in ranks}
        done = subprocess.run(self.command(), env=env, check=False)
        if done.returncode != 0:
            logger.error(
                "Not published (exit code %d). The results are complete; "
                "repeat it with: %s",
                done.returncode,
                self._again(),
            )

"""Publish when a recipe ends: the ``publish`` option of the block.

A recipe may have any number of test sets, and only its end tells which was the
last. So ``stablequant publish`` runs in a process of its own as the interpreter
exits.
"""

import atexit
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.publishing.options import PublishOptions

__all__ = ["Publisher", "make_publisher"]

logger = get_logger(__name__)


def make_publisher(given: Any) -> Optional["Publisher"]:
    """Return what publishes at the end, or None without the option.

    Arguments
    ---------
    given : dict, optional
        The block's ``publish``.
    """
    options = PublishOptions.of(given)
    return None if options is None else Publisher(options)


class Publisher:
    """Runs ``stablequant publish`` once, when the interpreter exits.

    It does not publish if the recipe ended with an exception or an exit code,
    as some test sets may then be missing, nor within tests and notebooks, whose
    interpreter outlives the recipe.

    Arguments
    ---------
    options : PublishOptions
        What to publish, and where.
    """

    def __init__(self, options: PublishOptions):
        self.options = options
        self.folder: Optional[Path] = None
        self._failed = False

    def schedule(self, folder: Path) -> None:
        """Publish an experiment at the end; called after each test set."""
        first = self.folder is None
        self.folder = Path(folder).resolve()
        if not first:
            return
        if "PYTEST_CURRENT_TEST" in os.environ or hasattr(sys, "ps1"):
            logger.info("To publish it: %s", self._again())
            return
        atexit.register(self._publish)
        # atexit does not tell whether the interpreter ends by an error.
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
        return [*module, str(self.folder), *self.options.arguments()]

    def _again(self) -> str:
        return shlex.join(["stablequant", *self.command()[3:]])

    def _publish(self) -> None:
        if self._failed:
            logger.warning(
                "Not published: the recipe failed. Later: %s", self._again()
            )
            return
        logger.info("Publishing %s", self.folder)
        # The new process is not one of several ranks, even if this one is.
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

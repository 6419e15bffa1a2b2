"""The output folder of a recipe that was run with the block."""

from functools import cached_property
from pathlib import Path
from typing import Union

from speechbrain_stablequant.artifacts.report_schema import read_run_file
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import ExperimentError

__all__ = ["Experiment", "is_published", "is_quantized"]

RUN = "Run the recipe with the ptq block, to its end"


class Experiment:
    """The output folder of a recipe that was run with the block; read only.

    Arguments
    ---------
    folder : str or Path
        Output folder of the recipe, its ``ptq`` folder, or whatever the
        block's ``output_folder`` was.

    Attributes
    ----------
    folder : Path
        Output folder of the recipe.
    ptq : Path
        Folder with the results of the block.

    Raises
    ------
    ExperimentError
        If there is no such folder, or no results of the block in it.
    """

    def __init__(self, folder: Union[str, Path]):
        folder = Path(folder)
        if not folder.is_dir():
            raise ExperimentError(
                f"{folder} is {'a file' if folder.exists() else 'not there'}: "
                "give the output folder of a recipe."
            )
        ptq = next((f for f in (folder, folder / "ptq") if _ours(f)), None)
        if ptq is None:
            raise ExperimentError(
                f"{folder} has no results of quantization: no report.json, "
                f"plan.json or checkpoint/, there or in ptq/. {RUN}."
            )
        self.ptq, self.folder = ptq, _recipe_folder(folder, ptq)

    @property
    def hyperparams(self) -> Path:
        """Path of the recipe's ``hyperparams.yaml``."""
        return self._need(
            self.folder / "hyperparams.yaml",
            "The recipe writes it when it begins (create_experiment_directory)"
            "; give the output folder of the recipe.",
        )

    @cached_property
    def report(self) -> dict:
        """The report of the test passes, plain data."""
        return read_run_file(
            self._need(self.ptq / "report.json", f"{RUN}."), "report"
        )

    @cached_property
    def plan(self) -> QuantizationPlan:
        """What is quantized, and how."""
        return QuantizationPlan.load(
            self._need(self.ptq / "plan.json", f"{RUN}.")
        )

    @cached_property
    def checkpoints(self) -> dict[str, Path]:
        """Paths of the quantized files by the name of their loadable."""
        from speechbrain_stablequant.artifacts.checkpoint_reader import (
            read_header,
        )

        found = {p.stem: p for p in self._files() if is_quantized(p)}
        for path in found.values():
            read_header(path)
        if not found:
            raise ExperimentError(
                f"{self.ptq / 'checkpoint'} has no quantized checkpoint "
                f"(*.ckpt). {RUN}."
            )
        return found

    @property
    def other_files(self) -> dict[str, Path]:
        """Paths of other files there by file name: tokenizers, normalizers."""
        quantized = set(self.checkpoints.values())
        return {
            path.name: path for path in self._files() if path not in quantized
        }

    def _files(self) -> list[Path]:
        folder = self.ptq / "checkpoint"
        if not folder.is_dir():
            raise ExperimentError(f"{folder} is not there. {RUN}.")
        return sorted(path for path in folder.iterdir() if path.is_file())

    def _need(self, path: Path, advice: str) -> Path:
        if not path.is_file():
            raise ExperimentError(f"{path} is not there. {advice}")
        return path


def _ours(folder: Path) -> bool:
    """Whether a folder itself has results of the block."""
    checkpoint = folder / "checkpoint"
    if checkpoint.is_dir() and any(map(is_quantized, checkpoint.iterdir())):
        return True
    report, plan = folder / "report.json", folder / "plan.json"
    return report.is_file() or plan.is_file()


def _recipe_folder(given: Path, ptq: Path) -> Path:
    """Return the output folder of the recipe that a results folder is in.

    The block's ``output_folder`` may lie deeper than ``ptq``.
    """
    if given != ptq:
        return given
    near = (ptq, *list(ptq.resolve().parents)[:3])
    with_yaml = (f for f in near if (f / "hyperparams.yaml").is_file())
    return next(with_yaml, ptq.parent)


def is_quantized(path: Path) -> bool:
    """Whether a file claims to be quantized: safetensors with metadata.

    SpeechBrain's own ``*.ckpt`` are pickles or text. The file is not verified
    here: a damaged one must not pass for a tokenizer, but fail when it is read.
    """
    if path.suffix != ".ckpt" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(23)[8:] == b'{"__metadata__"'


def is_published(folder: Path) -> bool:
    """Whether a folder is a published one: a YAML and quantized weights."""
    return (folder / "hyperparams.yaml").is_file() and any(
        map(is_quantized, folder.glob("*.ckpt"))
    )

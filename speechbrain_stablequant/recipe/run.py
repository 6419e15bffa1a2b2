"""A run of a recipe with the block: the one object that its steps share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process
from torch import nn

from speechbrain_stablequant.errors import KnobError, nearest
from speechbrain_stablequant.layers.modules import as_module_dict

__all__ = ["RecipeRun"]


@dataclass(frozen=True)
class RecipeRun:
    """The Brain of a recipe, and how results of its quantization are named.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    root : torch.nn.ModuleDict
        Its modules to quantize, by name.
    folder : Path
        Folder of the block's results, ``<output_folder>/ptq`` by default.
    suffix : str
        Put into the names of files that runs with quantized layers write.
    label : str
        A few words that name the quantization in logs.
    """

    brain: sb.Brain
    root: nn.ModuleDict
    folder: Path
    suffix: str
    label: str

    @classmethod
    def of(
        cls,
        brain: sb.Brain,
        modules: Union[Mapping, list, None],
        folder: Optional[str],
        suffix: str,
        label: str,
    ) -> "RecipeRun":
        """Return the run of a Brain, from options of the block.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        modules : dict or list of str, optional
            What to quantize; by default all modules of the Brain.
        folder : str, optional
            Where results go.
        suffix, label : str
            See the class.

        Raises
        ------
        KnobError
            If there is no module of a name in ``modules``.
        """
        if modules is None:
            modules = dict(brain.modules)
        elif not isinstance(modules, Mapping):
            modules = {name: _find_module(brain, name) for name in modules}
        if folder is None:
            output = getattr(brain.hparams, "output_folder", "results")
            folder = Path(output) / "ptq"
        return cls(brain, as_module_dict(modules), Path(folder), suffix, label)

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return if_main_process() and not self.brain.noprogressbar


def _find_module(brain: sb.Brain, name: str) -> nn.Module:
    """Return a module of the Brain or of its hparams by name."""
    found = {
        key: value
        for key, value in vars(brain.hparams).items()
        if isinstance(value, nn.Module)
    }
    found.update(brain.modules)
    if name not in found:
        raise KnobError(
            f"modules: there is no '{name}'." + nearest(name, found)
        )
    return found[name]

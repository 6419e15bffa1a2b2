"""The recipe's validation data, and its VALID stage without its end.

``on_stage_end`` is never called: there recipes anneal learning rates and
save checkpoints.
"""

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import numpy as np
import speechbrain as sb
import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from speechbrain_stablequant.core import distributed
from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.recipe.isolation import preserved

__all__ = [
    "BatchSample",
    "calibrate",
    "validate",
    "validation_loader",
    "validation_stage",
]


class BatchSample:
    """A random sample of a loader's batches, the same each time.

    Validation sets are sorted by duration, so the first batches would be the
    shortest utterances.

    Arguments
    ---------
    loader : DataLoader
        The recipe's validation loader.
    utterances : int
        About how many utterances to take, whole batches.
    seed : int
        Seed of the choice.
    """

    def __init__(self, loader, utterances: int, seed: int):
        self.loader, self.chosen, self._kept = loader, None, None
        sampler = getattr(loader, "batch_sampler", None)
        iterable = isinstance(getattr(loader, "dataset", None), IterableDataset)
        if sampler is None or iterable:
            self._keep_first(utterances)
            return
        batches = [list(indices) for indices in sampler]
        order = np.random.default_rng(seed).permutation(len(batches))
        self.chosen = []
        for index in order:
            if utterances <= 0:
                break
            self.chosen.append(batches[index])
            utterances -= len(batches[index])

    def _keep_first(self, utterances: int) -> None:
        """Keep batches of a stream, which cannot be indexed."""
        self._kept = []
        for batch in self.loader:
            self._kept.append(batch)
            utterances -= len(getattr(batch, "id", None) or [batch])
            if utterances <= 0:
                break

    def __len__(self) -> int:
        return len(self._kept if self.chosen is None else self.chosen)

    def load(self, indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield batches by index, through the recipe's own collation."""
        indices = list(indices)
        if self.chosen is None:
            yield from ((i, self._kept[i]) for i in indices)
            return
        loader = DataLoader(
            self.loader.dataset,
            batch_sampler=[self.chosen[i] for i in indices],
            collate_fn=self.loader.collate_fn,
            num_workers=self.loader.num_workers,
        )
        yield from zip(indices, loader)

    def fingerprint(self) -> Any:
        """Return plain data that says which utterances are in."""
        if self.chosen is None:
            return ["stream", len(self._kept)]
        ids = getattr(self.loader.dataset, "data_ids", None)
        if ids is None:
            return [len(self.loader.dataset), self.chosen]
        return [[ids[i] for i in batch] for batch in self.chosen]


def validation_loader(brain: sb.Brain, valid_set, loader_kwargs) -> Any:
    """Return the recipe's validation loader.

    Raises
    ------
    CalibrationError
        If the recipe has no validation data.
    """
    if valid_set is None:
        raise CalibrationError(
            "Calibration needs the recipe's validation data, but fit() was "
            "not called with a valid_set. Call fit() before evaluate() (with "
            "--test_only it returns at once), or give a plan (plan: path.json)."
        )
    if isinstance(valid_set, (DataLoader, sb.dataio.dataloader.LoopedLoader)):
        return valid_set
    kwargs = {k: v for k, v in loader_kwargs.items() if k != "ckpt_prefix"}
    return brain.make_dataloader(
        valid_set, stage=sb.Stage.VALID, ckpt_prefix=None, **kwargs
    )


def _start(brain: sb.Brain) -> None:
    """Begin the VALID stage, as ``fit`` does after each epoch."""
    counter = getattr(brain.hparams, "epoch_counter", None)
    brain.on_stage_start(sb.Stage.VALID, getattr(counter, "current", 1))
    brain.modules.eval()


@contextlib.contextmanager
def validation_stage(brain: sb.Brain) -> Iterator[None]:
    """Put a Brain into its VALID stage, and back as it was."""
    with preserved(brain):
        _start(brain)
        yield


def calibrate(brain: sb.Brain, sample: BatchSample, progress: bool) -> None:
    """Run this rank's share of a sample, so that observers see it."""
    mine = range(distributed.rank(), len(sample), distributed.world_size())
    batches = _bar(sample.load(mine), "Calibration", len(mine), progress)
    for _, batch in batches:
        with brain.evaluation_ctx:  # the precision that tests run in
            brain.compute_forward(batch, sb.Stage.VALID)


def validate(brain: sb.Brain, loader, seed: int, progress: bool) -> float:
    """Run the recipe's validation; the metrics of the Brain hold the result.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain; what this changes in it is for the caller to bring back.
    loader : DataLoader
        The recipe's validation loader.
    seed : int
        Each pass starts from it: recipes shuffle and cut random chunks in
        validation too, and two passes are compared.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    float
        The average loss.
    """
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)
    _start(brain)
    count = len(loader) if hasattr(loader, "__len__") else None
    if brain.debug:
        count = brain.debug_batches
    losses = []
    with torch.no_grad():
        batches = itertools.islice(loader, count)
        for batch in _bar(batches, "Validation", count, progress):
            loss = brain.evaluate_batch(batch, stage=sb.Stage.VALID)
            losses.append(float(loss))
    return sum(losses) / len(losses) if losses else float("nan")


def _bar(batches, title: str, total: Optional[int], progress: bool):
    return tqdm(
        batches,
        total=total,
        desc=title,
        unit="batch",
        dynamic_ncols=True,
        disable=not progress,
    )

"""Score candidates batch by batch, computing nothing twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

import torch
from tqdm import tqdm

from speechbrain_stablequant.core import distributed
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.methods.search.context import SearchContext
from speechbrain_stablequant.methods.search.distance import OutputDistance
from speechbrain_stablequant.methods.search.journal import fingerprint
from speechbrain_stablequant.methods.search.prefix import PrefixCache
from speechbrain_stablequant.metrics.metric import Interval, Item

__all__ = ["Candidate", "CandidateRunner", "Cost"]

FLOAT = "float"
DISTANCE = "distance"
_OUTPUTS = 1 << 28  # bytes of outputs kept for comparison


@dataclass(frozen=True)
class Candidate:
    """A way to quantize some layers while the rest stays float.

    Arguments
    ---------
    name : str
        Key in the journal; says which block and which rule.
    block : str, optional
        The block concerned; None when all of the model is quantized.
    layers : dict
        `LayerPlan` by layer name.
    """

    name: str
    block: Optional[str]
    layers: Mapping[str, LayerPlan]

    @classmethod
    def joint(cls, layers: Mapping[str, LayerPlan]) -> "Candidate":
        """Return a plan as a whole, named by its content for the journal."""
        digest = fingerprint(QuantizationPlan(layers).to_dict())
        return cls(f"joint {digest}", None, layers)


@dataclass
class Cost:
    """What a search has cost.

    Arguments
    ---------
    evaluations : int
        Candidates times batches that were run, in all processes.
    forward_passes : float
        The same in passes over the search set, had nothing been reused.
    computed_passes : float
        Passes really computed, after reuse of what precedes a block.
    resumed : int
        Evaluations taken from the journal of an earlier, interrupted search.
    """

    evaluations: int = 0
    forward_passes: float = 0.0
    computed_passes: float = 0.0
    resumed: int = 0


@dataclass
class CandidateRunner:
    """Runs candidates over batches: the batch outside, candidates inside.

    In that order the float pass over a batch is done once and each candidate
    only computes what follows its block. Under ``torch.distributed`` the
    candidates are dealt out to the ranks and all ranks see all results.

    Arguments
    ---------
    context : SearchContext
        Model, data and journal.
    cost : Cost
        Counts what was run.
    distances : bool
        Whether to compare outputs with those of the float model too.
    """

    context: SearchContext
    cost: Cost = field(default_factory=Cost)
    distances: bool = False

    def run(
        self, title: str, candidates: list[Candidate], indices: list[int]
    ) -> dict[str, list[Item]]:
        """Score candidates, and the float model, on some batches.

        Arguments
        ---------
        title : str
            For the progress bar.
        candidates : list of Candidate
            What to try; may be empty.
        indices : list of int
            Batches of the evaluator.

        Returns
        -------
        dict
            Items by candidate name, and under ``"float"``.
        """
        journal = self.context.journal
        rank, size = distributed.rank(), distributed.world_size()
        # Dealt out in turns: neighbours cost about the same, since they share
        # what precedes their block.
        mine = candidates[rank::size]
        todo = {
            index: [c for c in mine if journal.get(_key(c.name, index)) is None]
            for index in indices
        }
        self.cost.resumed += len(mine) * len(indices) - sum(
            map(len, todo.values())
        )
        needed = [
            i for i in indices if todo[i] or journal.get(_key(FLOAT, i)) is None
        ]
        with tqdm(
            total=sum(len(todo[i]) + 1 for i in needed),
            desc=title,
            unit="pass",
            dynamic_ncols=True,
            disable=not (self.context.progress and rank == 0),
        ) as bar:
            for index, batch in self.context.evaluator.batches(needed):
                self._run_batch(index, batch, todo[index], bar)
        self._share()
        names = [FLOAT, *(c.name for c in candidates)]
        return {
            name: [it for i in indices for it in journal.get(_key(name, i))]
            for name in names
        }

    def distance(self, name: str, indices: list[int]) -> float:
        """Return how far the output was from the float model's.

        Arguments
        ---------
        name : str
            A candidate that was run with ``distances``.
        indices : list of int
            The batches it was run on.

        Returns
        -------
        float
            Squared distance over squared length; nan without any output.
        """
        journal = self.context.journal
        found = [journal.get(_key(f"{DISTANCE} {name}", i)) for i in indices]
        sums = [item for items in found for item in items or ()]
        power = sum(item.weight for item in sums)
        error = sum(item.errors for item in sums)
        return error / power if power else float("nan")

    def change(
        self,
        items: Mapping[str, list[Item]],
        name: str,
        confidence: float = 0.95,
        samples: int = 2000,
    ) -> Optional[Interval]:
        """Return how the metric changes from float; None without a metric.

        Arguments
        ---------
        items : dict
            What `run` has returned.
        name : str
            A candidate that was run.
        confidence, samples : float, int
            See `Metric.compare`.
        """
        metric, seed = self.context.evaluator.metric, self.context.settings.seed
        if metric is None:
            return None
        return metric.compare(
            items[FLOAT], items[name], confidence, samples, seed
        )

    def _run_batch(self, index, batch, candidates, bar):
        context, evaluator = self.context, self.context.evaluator
        batches = evaluator.num_batches
        known = context.journal.get(_key(FLOAT, index)) is not None
        reusable = any(c.block is not None for c in candidates)
        reusable = reusable or (self.distances and candidates)
        blocks = list(context.blocks)
        with (
            torch.no_grad(),
            PrefixCache(
                context.conversion.root,
                blocks,
                context.settings.search_num_bytes,
            ) as cache,
            OutputDistance(
                context.conversion.root, _OUTPUTS if self.distances else 0
            ) as distance,
        ):
            if reusable or not known:
                with cache.record(), distance.record():
                    items = evaluator.evaluate(batch)
                context.journal.put(_key(FLOAT, index), items)
                self._count(1 / batches, 1.0)
            bar.update()
            for candidate in candidates:
                bar.set_postfix_str(candidate.name, refresh=False)
                with distance.compare():
                    items = self._evaluate(candidate, batch, cache)
                if self.distances:
                    context.journal.put(
                        _key(f"{DISTANCE} {candidate.name}", index),
                        [Item(DISTANCE, distance.error, distance.power)],
                    )
                context.journal.put(_key(candidate.name, index), items)
                live = cache.live_fraction(candidate.block)
                self._count(1 / batches, live)
                bar.update()

    def _evaluate(self, candidate, batch, cache):
        conversion = self.context.conversion
        for name, plan in candidate.layers.items():
            conversion.set(name, plan)
        conversion.quantize(candidate.layers)
        try:
            with cache.replay(before=candidate.block):
                return self.context.evaluator.evaluate(batch)
        finally:
            conversion.dequantize(candidate.layers)

    def _count(self, passes: float, live: float) -> None:
        self.cost.evaluations += 1
        self.cost.forward_passes += passes
        self.cost.computed_passes += passes * live

    def _share(self) -> None:
        """Give every rank the results of all ranks."""
        results = self.context.journal.results
        for other in distributed.gather(results):
            for key, items in other.items():
                results.setdefault(key, items)

    def total_cost(self) -> dict:
        """Return the cost summed over all ranks, as plain data."""
        costs = distributed.gather(vars(self.cost))
        return {
            key: round(sum(cost[key] for cost in costs), 3) for key in costs[0]
        }


def _key(name: str, index: int) -> str:
    return f"{name} @ {index}"

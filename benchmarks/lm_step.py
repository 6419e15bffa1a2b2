"""Time steps of a language model in a beam search: domains, and the cache.

    python benchmarks/lm_step.py --sizes mini paper librispeech --rows 10 80

Random weights: only time and the difference of scores mean anything. Two
questions, each with its Markdown table:

* What does a domain cost? The trunk alone and the trunk with a domain score
  the same step in turns; the ratio is of the two times in one turn.
* How much faster are whole searches with ``TransformerLMScorerWithCache`` than
  with SpeechBrain's ``TransformerLMScorer``? Both are driven as a searcher
  drives them, hypotheses permuted at random within utterances. Where a search
  of SpeechBrain's scorer would take minutes, it is timed at some of its steps
  and those between are interpolated; the table marks it.

Writes JSON with every timing (``--json``). How soon the hypotheses of a real
search have a common past depends on its scores; random ones do after some
twenty steps.
"""

import argparse
import functools
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain.decoders.scorer import TransformerLMScorer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lm_step_table import overhead_table, search_table
from speechbrain_stablequant.metrics.turns import in_turns, timed
from speechbrain_stablequant.models.multi_domain import (
    DomainConfig,
    MultiDomainLM,
    TransformerLMScorerWithCache,
    added_parameters,
)
from speechbrain_stablequant.report.data import environment

BEAMS = 10
LENGTHS = (10, 20, 50, 100)
SECONDS = 6.0


class Size(NamedTuple):
    """Options of a ``TransformerLM``."""

    tokens: int
    d_model: int
    nhead: int
    layers: int
    d_ffn: int
    normalize_before: bool = True

    def build(self) -> TransformerLM:
        return TransformerLM(
            self.tokens,
            self.d_model,
            self.nhead,
            self.layers,
            0,
            self.d_ffn,
            activation=torch.nn.GELU,
            normalize_before=self.normalize_before,
        ).eval()


SIZES = {
    "mini": Size(1000, 256, 4, 4, 1024),
    "paper": Size(8000, 512, 8, 9, 2048),
    "librispeech": Size(5000, 768, 12, 12, 3072, normalize_before=False),
}


# -- models --------------------------------------------------------------------


def widest(trunk, config_of, percent=2.0):
    """Return a configuration that adds at most so many percent.

    Arguments
    ---------
    trunk : TransformerLM
        The common language model.
    config_of : callable
        Returns the configuration with a bottleneck.
    percent : float
        Of the trunk's parameters.
    """
    for bottleneck in (64, 48, 32, 24, 16, 12, 8, 4, 2, 1):
        config = config_of(bottleneck)
        lm = MultiDomainLM(trunk, {"x": config})
        if added_parameters(lm)[0].percent <= percent:
            break
    return config


def candidates(size: Size) -> dict:
    """Return the trunk and the same trunk with a domain, by name."""
    trunk = size.build()
    first = widest(
        trunk, lambda width: DomainConfig.paper(True, min(width, 32))
    )
    configs = {
        "default": widest(
            trunk,
            lambda width: DomainConfig(
                bottleneck=min(width, DomainConfig().bottleneck)
            ),
        ),
        "paper, first domain": first,
        "paper, later domain": DomainConfig.paper(False, first.bottleneck),
    }
    models = {"trunk": trunk}
    for name, config in configs.items():
        lm = MultiDomainLM(trunk, {"x": config}, "x").eval()
        for parameter in lm.domains.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        models[name] = lm
    return models


# -- time ----------------------------------------------------------------------


def permutation(rows: int) -> torch.Tensor:
    """Return for each hypothesis a random one of its utterance."""
    first = torch.arange(0, rows, BEAMS).unsqueeze(1)
    return (first + torch.randint(BEAMS, (len(first), BEAMS))).flatten()


def reruns(models, tokens, rows, length, seconds):
    """Time SpeechBrain's scorer at one prefix length, in turns.

    Returns
    -------
    dict
        Seconds of all turns by the name of the model.
    """
    prefix = torch.randint(1, tokens, (rows, length - 1))
    last = torch.randint(1, tokens, (rows,))
    calls = {
        name: functools.partial(
            TransformerLMScorer(lm).score, last, prefix, None, None
        )
        for name, lm in models.items()
    }
    return steady(calls, seconds)


def steady(calls, seconds):
    """Time calls in turns, without the first turn unless its calls are long."""
    timers = {
        n: lambda _, call=call: timed(call)[0] for n, call in calls.items()
    }
    times = in_turns(timers, 3, seconds)
    begin = 1 if max(mine[0] for mine in times.values()) < 1.0 else 0
    return {name: mine[begin:] for name, mine in times.items()}


def cached_steps(models, tokens, rows, length, seconds):
    """Time steps of searches that all models make side by side.

    Returns
    -------
    dict
        Seconds of all steps by the name of the model, the first of each
        search left out: it is where weights are dequantized.
    """
    scorers = {n: TransformerLMScorerWithCache(m) for n, m in models.items()}
    states = torch.zeros(rows // BEAMS, 1)
    times = {name: [] for name in models}
    first = {name: [] for name in models}
    end = time.perf_counter() + seconds
    searches = 0
    while searches < 2 or time.perf_counter() < end:
        memory = {n: s.reset_mem(states, None) for n, s in scorers.items()}
        for step in range(length):
            last, index = torch.randint(1, tokens, (rows,)), permutation(rows)
            order = list(scorers) if step % 2 else list(scorers)[::-1]
            for name in order:
                scorer = scorers[name]
                took, (_, new) = timed(
                    scorer.score, last, memory[name], None, None
                )
                moved, memory[name] = timed(scorer.permute_mem, new, index)
                (times if step else first)[name].append(took + moved)
        searches += 1
    return times, first


# -- a domain against the trunk ------------------------------------------------


def ratios(times, base):
    """Return quartiles of what takes how many times as long, turn by turn."""
    return statistics.quantiles([t / b for t, b in zip(times, base)], n=4)


def measure_overhead(size, models, rows, lengths, seconds):
    """Return rows of the first table: steps of the trunk and of domains."""
    found = []
    kinds = [("SpeechBrain's scorer", length) for length in lengths]
    for kind, length in [*kinds, ("with cache", 25)]:
        if kind == "with cache":
            times, first = cached_steps(
                models, size.tokens, rows, length, seconds
            )
        else:
            times = reruns(models, size.tokens, rows, length, seconds)
            first = {}
        for name, mine in times.items():
            found.append(
                {
                    "scorer": kind,
                    "length": length,
                    "model": name,
                    "seconds": mine,
                    "first_steps": first.get(name, []),
                    "ratio": ratios(mine, times["trunk"]),
                }
            )
    return found


# -- the cache against SpeechBrain's scorer ------------------------------------


def compare_searches(lm, tokens, rows, length, seconds):
    """Make one search with both scorers, step by step.

    Returns
    -------
    dict
        ``cached`` and ``stock`` seconds by step, the latter only of the steps
        that were timed, and the greatest ``difference`` of scores in these.
    """
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    memory = cached.reset_mem(torch.zeros(rows // BEAMS, 1), None)
    prefix = torch.empty(rows, 0, dtype=torch.long)
    found = {"cached": [], "stock": {}, "difference": 0.0}
    spent = 0.0
    marks = {1, 2, 5, *LENGTHS}
    for step in range(1, length + 1):
        last, index = torch.randint(1, tokens, (rows,)), permutation(rows)
        took, (scores, memory) = timed(cached.score, last, memory, None, None)
        moved, memory = timed(cached.permute_mem, memory, index)
        found["cached"].append(took + moved)
        if spent < seconds or step in marks:
            took, (expected, new) = timed(stock.score, last, prefix, None, None)
            moved, prefix = timed(stock.permute_mem, new, index)
            spent += took
            found["stock"][step] = took + moved
            difference = (scores - expected).abs().max().item()
            found["difference"] = max(found["difference"], difference)
        else:
            prefix = torch.cat((prefix, last.unsqueeze(1)), 1)[index]
    return found


def interpolated(seconds, length):
    """Return the time of steps 1 to ``length`` from that of some of them.

    Example
    -------
    >>> interpolated({1: 1.0, 3: 3.0, 4: 3.5}, 3)
    6.0
    """
    steps = sorted(seconds)
    total = 0.0
    for step in range(1, length + 1):
        below = max(s for s in steps if s <= step)
        above = min((s for s in steps if s >= step), default=below)
        share = (step - below) / (above - below) if above > below else 0.0
        total += (1 - share) * seconds[below] + share * seconds[above]
    return total


def search_rows(found, lengths):
    """Return rows of the second table."""
    rows = []
    for length in lengths:
        if length > len(found["cached"]):
            break
        cached = sum(found["cached"][:length])
        stock = interpolated(found["stock"], length)
        rows.append(
            {
                "length": length,
                "cached_seconds": cached,
                "stock_seconds": stock,
                "speed_up": stock / cached,
                "interpolated": any(
                    step not in found["stock"] for step in range(1, length + 1)
                ),
            }
        )
    return rows


# -- command -------------------------------------------------------------------


def measure(name, size, rows, options) -> dict:
    """Return all that is measured of one size with so many hypotheses."""
    models = candidates(size)
    added = {
        n: added_parameters(lm)[0].percent
        for n, lm in models.items()
        if n != "trunk"
    }
    overhead = measure_overhead(
        size, models, rows, options.prefixes, options.seconds
    )
    lengths = [n for n in LENGTHS if n <= options.tokens]
    found = compare_searches(
        models["trunk"], size.tokens, rows, max(lengths), options.seconds
    )
    return {
        "size": name,
        "knobs": size._asdict(),
        "rows": rows,
        "added": added,
        "overhead": overhead,
        "searches": search_rows(found, lengths),
        "steps": found,
        "difference": found["difference"],
    }


def parse_arguments(arguments=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    add("--rows", nargs="+", type=int, default=[10, 80], help="hypotheses")
    add("--prefixes", nargs="+", type=int, default=[10, 20])
    add("--tokens", type=int, default=100, help="of the longest search")
    add("--seconds", type=float, default=SECONDS, help="about, for each cell")
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=1986)
    add("--json", type=Path, default=Path("lm_step.json"))
    options = parser.parse_args(arguments)
    if any(rows < 1 or rows % BEAMS for rows in options.rows):
        parser.error(f"--rows are utterances of {BEAMS} hypotheses each.")
    if min(options.prefixes) < 1 or options.tokens < LENGTHS[0]:
        parser.error(f"--tokens are at least {LENGTHS[0]}, --prefixes 1.")
    return options


def main(arguments=None) -> list[dict]:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    cells = [(name, rows) for name in options.sizes for rows in options.rows]
    found = {
        "command": " ".join(map(shlex.quote, sys.argv)),
        "environment": environment(),
        "results": [],
    }
    results = found["results"]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name, rows in tqdm(cells, unit="cell"):
        results.append(measure(name, SIZES[name], rows, options))
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(overhead_table(results), search_table(results), sep="\n\n")
    print()
    print(", ".join(f"{k} {v}" for k, v in found["environment"].items()))
    return results


if __name__ == "__main__":
    main()

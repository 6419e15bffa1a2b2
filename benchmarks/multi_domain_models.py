"""Language models of finished experiments, loaded and measured."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_stablequant import quantize
from speechbrain_stablequant.layers.base import cached_weights
from speechbrain_stablequant.metrics.perplexity import PerplexityStats
from speechbrain_stablequant.models.multi_domain import (
    MultiDomainLM,
    added_parameters,
)

__all__ = ["Model", "evaluate", "load_sentences"]

_BATCH_TOKENS = 4000


@dataclass
class Model:
    """A trained language model with its tokenizer.

    Arguments
    ---------
    lm : torch.nn.Module
        The model.
    tokenizer : SentencePieceProcessor
        Its tokenizer.
    added_percent : float
        Parameters that it has for a domain alone, in percent of the common
        model's.
    domain : str, optional
        Domain of a `MultiDomainLM`.
    """

    lm: torch.nn.Module
    tokenizer: Any
    added_percent: float
    domain: Optional[str] = None

    @classmethod
    def load(cls, folder: Path) -> "Model":
        """Load the best checkpoint of an experiment of the recipe."""
        # The YAML names the script that prepared the data
        recipe = Path(__file__).resolve().parents[1] / "recipes"
        sys.path.insert(0, str(recipe / "LibriSpeech" / "LM"))
        with open(folder / "hyperparams.yaml", encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file)
        sys.path.pop(0)
        pretrainer = hparams["pretrainer"]
        pretrainer.collect_files()
        pretrainer.load_collected()
        checkpointer = hparams["checkpointer"]
        if checkpointer.recover_if_possible(min_key="PPL") is None:
            raise FileNotFoundError(f"No checkpoint in {folder}/save.")
        lm, added, domain = hparams["model"].eval(), 100.0, None
        if "common_folder" not in hparams:
            added = 0.0
        if isinstance(lm, MultiDomainLM):
            (row,) = added_parameters(lm)
            added, domain = row.percent, row.domain
        return cls(lm, hparams["tokenizer"], added, domain)

    @torch.no_grad()
    def score(self, sentences: list[str]) -> PerplexityStats:
        """Return the perplexity of sentences, item by item.

        Arguments
        ---------
        sentences : list of str
            The text.
        """
        stats = PerplexityStats()
        tokens = [self.tokenizer.encode_as_ids(text) for text in sentences]
        order = sorted(range(len(tokens)), key=lambda n: len(tokens[n]))
        with cached_weights(self.lm):
            while order:
                time = len(tokens[order[-1]]) + 1
                some = order[-max(1, _BATCH_TOKENS // time) :]
                del order[-len(some) :]
                self._append(stats, some, tokens, sentences)
        return stats

    def quantize_trunk(self, bits: str, sentences: list[str]):
        """Quantize the common model, calibrated on its own text.

        Arguments
        ---------
        bits : str
            ``W8A8``, or ``W4``: the weights alone, in groups of 64.
        sentences : list of str
            Text to calibrate with.

        Returns
        -------
        QuantizationResult
            With the plan.
        """
        trunk = getattr(self.lm, "trunk", self.lm)
        grouped = {"weight_granularity": "per_group", "weight_group_size": 64}
        options = grouped if "A" not in bits else {}
        ids = [[1, *self.tokenizer.encode_as_ids(t)] for t in sentences[:256]]
        batches = [torch.tensor([tokens]) for tokens in ids]
        return quantize(trunk, batches, bits=bits, progress=False, **options)

    def _append(self, stats, some, tokens, sentences):
        bos, eos = 1, 2
        time = max(len(tokens[n]) for n in some) + 1
        inputs = torch.zeros(len(some), time, dtype=torch.long)
        targets = torch.zeros_like(inputs)
        for row, n in enumerate(some):
            ids = torch.tensor(tokens[n], dtype=torch.long)
            inputs[row, 0] = bos
            inputs[row, 1 : len(ids) + 1] = ids
            targets[row, : len(ids)] = ids
            targets[row, len(ids)] = eos
        lengths = torch.tensor([(len(tokens[n]) + 1) / time for n in some])
        log_probs = self.lm(inputs).log_softmax(-1)
        texts = [sentences[n] for n in some]
        names = [f"{n:08d}" for n in some]
        stats.append(names, log_probs, targets, texts, lengths)


def load_sentences(path: Path) -> list[str]:
    """Return the sentences of a CSV file of the recipe."""
    with open(path, encoding="utf-8", newline="") as file:
        return [row["wrd"] for row in csv.DictReader(file)]


def evaluate(model, tests, reference=None) -> dict:
    """Measure a model on its domain and on the common text.

    Arguments
    ---------
    model : Model
        The model.
    tests : dict
        Sentences by name: those of the domain first, then ``common``.
    reference : list of Item, optional
        Those of the model to compare with on the domain: fully fine-tuned.

    Returns
    -------
    row : dict
        Perplexity and bits per character with intervals, plain data.
    items : list of Item
        Of the domain.
    """
    name = next(iter(tests))
    stats = model.score(tests[name])
    metric, items = stats.quantization_metrics()["PPL"]
    row = {
        "added_percent": model.added_percent,
        "PPL": stats.summarize("PPL"),
        "BPC": stats.summarize("BPC"),
        "PPL_interval": metric.interval(items).to_dict(),
    }
    if reference is not None and name != "common":
        change, start = (
            metric.compare(reference, items),
            metric.value(reference),
        )
        ends = (change.difference, change.low, change.high)
        middle, low, high = (100 * end / start for end in ends)
        row["against_full_percent"] = [middle, low, high]
        row["against_full"] = f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"
    if model.domain is not None and name != "common":
        # The common domain of such a model is its trunk
        model.lm.set_domain(None)
    row["common_PPL"] = model.score(tests["common"]).summarize("PPL")
    if model.domain is not None:
        model.lm.set_domain(model.domain)
    return row, items

#!/usr/bin/env python3
"""Recognises the test set with the CTC model of `train_ctc.py` and a language
model, fused in beam search or rescoring lists of hypotheses.

The weights are tuned on the dev set; the test set is decoded once with them.

To run this recipe, do the following:
> python recognize.py hparams/recognize.yaml --ctc_folder <train_ctc's output> \
    --lm_file <LM>/model.ckpt --tokenizer_file <LM>/1000_unigram.model
"""

import csv
import hashlib
import json
import os
import sys
import time
from functools import partial

import speechbrain as sb
import torch
from decoding import decode, greedy, rescore, tune, word_errors
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.logger import get_logger
from train_ctc import encode

from speechbrain_stablequant.metrics.metric import Metric, items_of

logger = get_logger(__name__)


def read_references(csv_file):
    """Returns the sentences of a CSV file by utterance."""
    with open(csv_file, encoding="utf-8", newline="") as lines:
        return {row["ID"]: row["wrd"] for row in csv.DictReader(lines)}


def load_ctc(folder):
    """Loads a CTC model from the output folder of `train_ctc.py`.

    Arguments
    ---------
    folder : str
        With ``hyperparams.yaml`` and ``save``.

    Returns
    -------
    hparams : dict
        What the YAML describes, with trained weights.
    name : str
        Of the checkpoint.
    """
    with open(os.path.join(folder, "hyperparams.yaml"), encoding="utf-8") as f:
        hparams = load_hyperpyyaml(f)
    # The folder may have been moved since
    checkpointer = sb.utils.checkpoints.Checkpointer(
        os.path.join(folder, "save"),
        recoverables={key: hparams[key] for key in ("model", "normalize")},
    )
    checkpoint = checkpointer.recover_if_possible(min_key="WER")
    if checkpoint is None:
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}/save: run train_ctc.py with "
            f"--output_folder {folder} first."
        )
    for module in hparams["modules"].values():
        module.eval()
    return hparams, checkpoint.path.name


@torch.no_grad()
def compute_posteriors(hparams, csv_file, batch_size=16):
    """Runs a CTC model over recordings.

    Arguments
    ---------
    hparams : dict
        See `load_ctc`.
    csv_file : str
        Has the columns ID, duration and wav.
    batch_size : int
        Recordings that are computed together.

    Returns
    -------
    dict
        Log-posteriors by utterance, (frames, tokens).
    """
    data = sb.dataio.dataset.DynamicItemDataset.from_csv(csv_file)
    data = data.filtered_sorted(sort_key="duration")
    data.add_dynamic_item(
        sb.dataio.dataio.read_audio, takes="wav", provides="sig"
    )
    data.set_output_keys(["id", "sig"])
    loader = sb.dataio.dataloader.make_dataloader(data, batch_size=batch_size)
    posteriors = {}
    for batch in loader:
        wavs, wav_lens = batch.sig
        feats = hparams["compute_features"](wavs)
        logits, _ = encode(hparams["modules"], feats, wav_lens)
        frames = torch.round(wav_lens * logits.shape[1]).long()
        for key, row, count in zip(batch.id, logits, frames):
            # A copy, so that the file has no padding
            posteriors[key] = row[:count].log_softmax(dim=-1).clone()
    return posteriors


def load_posteriors(ctc_folder, csv_file, cache_folder):
    """Returns posteriors, which are computed once for all language models.

    Arguments
    ---------
    ctc_folder : str
        See `load_ctc`.
    csv_file : str
        See `compute_posteriors`.
    cache_folder : str
        The posteriors are kept here, until model or data change.

    Returns
    -------
    dict
        Log-posteriors by utterance, (frames, tokens).
    """
    hparams, checkpoint = load_ctc(ctc_folder)
    with open(csv_file, "rb") as file:
        content = hashlib.sha256(file.read()).hexdigest()
    source = f"{checkpoint} {content}"
    name = os.path.splitext(os.path.basename(csv_file))[0]
    path = os.path.join(cache_folder, f"posteriors_{name}.pt")
    if os.path.isfile(path):
        cached = torch.load(path, weights_only=True)
        if cached["source"] == source:
            return cached["posteriors"]
    posteriors = compute_posteriors(hparams, csv_file)
    os.makedirs(cache_folder, exist_ok=True)
    torch.save({"source": source, "posteriors": posteriors}, path)
    return posteriors


def search_functions(mode, posteriors, tokenizer, lm, options):
    """Returns a search for each set.

    Arguments
    ---------
    mode : str
        ``fusion`` or ``rescoring``.
    posteriors : dict
        See `load_posteriors`, by set.
    tokenizer : SentencePieceProcessor
        Turns tokens into words.
    lm : torch.nn.Module
        Language model.
    options : dict
        Other arguments of `decode`; ``topk`` is the length of the lists that
        are rescored.

    Returns
    -------
    dict
        By set, a function of ``lm_weight`` and ``length_weight``.
    """
    if mode == "fusion":
        options = {**options, "topk": 1}
        return {
            name: partial(decode, some, tokenizer, lm=lm, **options)
            for name, some in posteriors.items()
        }
    if mode == "rescoring":
        return {
            name: partial(
                rescore, decode(some, tokenizer, **options), tokenizer, lm
            )
            for name, some in posteriors.items()
        }
    raise ValueError(f"mode is {mode!r}: set it to fusion or rescoring.")


def recognize(hparams):
    """Tunes, decodes and scores.

    Arguments
    ---------
    hparams : dict
        See ``hparams/recognize.yaml``.

    Returns
    -------
    report : dict
        Plain data: weights, word error rates, items.
    stats : ErrorRateStats
        Of the test set.
    """
    references, posteriors = {}, {}
    for name in ("dev", "test"):
        path = hparams[f"{name}_csv"]
        references[name] = read_references(path)
        posteriors[name] = load_posteriors(
            hparams["ctc_folder"], path, hparams["cache_folder"]
        )
    tokenizer, options = hparams["tokenizer"], hparams["search"]
    search = search_functions(
        hparams["mode"], posteriors, tokenizer, hparams["lm"], options
    )
    best, tried = tune(
        search["dev"],
        references["dev"],
        hparams["lm_weights"],
        hparams["length_weights"],
    )
    logger.info(f"Best on dev: {best}")
    start = time.perf_counter()
    weights = {key: best[key] for key in ("lm_weight", "length_weight")}
    found = search["test"](**weights)
    seconds = time.perf_counter() - start
    stats = word_errors(found, references["test"])
    report = {
        "mode": hparams["mode"],
        "dev": {"best": best, "tried": tried},
        "test": {
            "WER": stats.summarize("error_rate"),
            "seconds": seconds,
            **compare(
                posteriors["test"], tokenizer, references, stats, options
            ),
            "items": [list(item[:3]) for item in items_of(stats)],
        },
    }
    return report, stats


def compare(posteriors, tokenizer, references, stats, options):
    """Compares with the CTC model alone.

    Arguments
    ---------
    posteriors : dict
        Of the test set.
    tokenizer : SentencePieceProcessor
        Turns tokens into words.
    references : dict
        Sentences, by set and utterance.
    stats : ErrorRateStats
        With a language model.
    options : dict
        Of the search.

    Returns
    -------
    dict
        Word error rates, greedy and in beam search, and what the language
        model changes, with an interval.
    """
    alone = {
        "greedy": greedy(posteriors, tokenizer),
        "beam": decode(posteriors, tokenizer, **{**options, "topk": 1}),
    }
    stats_alone = {
        name: word_errors(found, references["test"])
        for name, found in alone.items()
    }
    before, after = items_of(stats_alone["beam"]), items_of(stats)
    return {
        "WER_without_LM": {
            name: each.summarize("error_rate")
            for name, each in stats_alone.items()
        },
        "change": Metric("WER").compare(before, after).to_dict(),
    }


if __name__ == "__main__":
    # CLI:
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])

    # The YAML of the CTC model names modules that lie beside this script
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    # Create experiment directory
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    # The language model
    hparams["pretrainer"].collect_files()
    hparams["pretrainer"].load_collected()
    hparams["lm"].eval()
    if hparams["lm_domain"] is not None:
        hparams["lm"].set_domain(hparams["lm_domain"])

    report, stats = recognize(hparams)
    with open(hparams["wer_file"], "w", encoding="utf-8") as w:
        stats.write_stats(w)
    with open(hparams["report_file"], "w", encoding="utf-8") as w:
        json.dump(report, w, indent=1)
    test = {k: v for k, v in report["test"].items() if k != "items"}
    logger.info(f"Test: {json.dumps(test)}")

"""Word error rates with the language models of `benchmarks.multi_domain_lm`.

    python -m benchmarks.multi_domain_wer --ctc_folder CTC \
        --common_folder COMMON --output_folder results/multi_domain_lm

``CTC`` is the experiment folder of ``recipes/MultiDomainLM/ASR``: synthetic
speech, sentences about music. Each language model is fused in beam search, with
a weight tuned on the dev set, and compared with a dedicated one. Prints a
Markdown table and writes ``wer.json``.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.multi_domain_models import Model, load_sentences
from speechbrain_stablequant.metrics.metric import Metric, items_of
from speechbrain_stablequant.models.multi_domain import (
    TransformerLMScorerWithCache,
)
from speechbrain_stablequant.report.data import environment

ASR = Path(__file__).resolve().parents[1] / "recipes" / "MultiDomainLM" / "ASR"
REFERENCE = "scratch"
# Name, folder of `multi_domain_lm`, bits of the trunk; the reference first
SYSTEMS = (
    ("dedicated, from scratch", REFERENCE, None),
    ("common + ours", "ours", None),
    ("common + ours, wide", "ours, wide", None),
    ("common", "common", None),
    ("no language model", None, None),
    ("dedicated, fully fine-tuned", "full", None),
    ("common + paper's adapters", "paper", None),
    ("common W8A8 + ours", "ours", "W8A8"),
    ("common W4 + ours", "ours", "W4"),
)


def main():
    """Decode with each language model, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ctc_folder", required=True, type=Path)
    parser.add_argument("--common_folder", required=True, type=Path)
    parser.add_argument("--output_folder", required=True, type=Path)
    parser.add_argument("--domain", default="music")
    weights = {"nargs": "+", "type": float}
    parser.add_argument("--lm_weights", default=[0.3, 0.5, 0.7], **weights)
    parser.add_argument("--length_weights", default=[2.0, 1.0, 3.0], **weights)
    options = parser.parse_args()
    sys.path.insert(0, str(ASR))
    print(
        "| language model | WER [95 %] | against dedicated | weight, reward |"
    )
    print("|:---|---:|---:|---:|")
    rows, base, metric = [], None, Metric("WER")
    path = options.output_folder / "wer.json"
    for system in SYSTEMS:
        row, items = _row(system, options)
        base = items if base is None else base
        row["WER"] = str(metric.interval(items))
        row["change"] = str(metric.compare(base, items))
        tuned = f"{row['dev']['lm_weight']}, {row['dev']['length_weight']}"
        cells = (row["system"], row["WER"], row["change"], tuned)
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        rows.append(row)
        result = {"rows": rows, "environment": environment()}
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Written to {path}")


def _row(system, options):
    """Tune and decode with one language model; return figures and items."""
    from decoding import decode, tune, word_errors
    from recognize import load_posteriors, read_references

    name, folder, bits = system
    posteriors, references = {}, {}
    for split in ("dev", "test"):
        path = options.ctc_folder / "save" / f"{split}.csv"
        references[split] = read_references(path)
        posteriors[split] = load_posteriors(
            str(options.ctc_folder), str(path), str(options.output_folder)
        )
    lm, tokenizer = _language_model(folder, bits, options)
    search = {
        split: partial(decode, some, tokenizer, lm=lm, lm_scorer=_cached_scorer)
        for split, some in posteriors.items()
    }
    # The reward for length makes up for what each token costs in the two
    weights = options.lm_weights if folder else (0.0,)
    lengths = options.length_weights if folder else (0.0, 1.0)
    best, tried = tune(search["dev"], references["dev"], weights, lengths)
    start = time.perf_counter()
    found = search["test"](
        lm_weight=best["lm_weight"], length_weight=best["length_weight"]
    )
    seconds = time.perf_counter() - start
    items = items_of(word_errors(found, references["test"]))
    row = {"system": name, "dev": best, "tried": tried, "seconds": seconds}
    return row, items


def _cached_scorer(lm):
    return TransformerLMScorerWithCache(lm)


def _language_model(folder, bits, options):
    """Return a language model, or None, and the tokenizer."""
    common = Model.load(options.common_folder)
    if folder in (None, "common"):
        return (common.lm if folder else None), common.tokenizer
    name = folder.replace(",", "").replace(" ", "_")
    model = Model.load(options.output_folder / name / options.domain)
    if bits:
        valid = options.common_folder / "save" / "valid.csv"
        model.quantize_trunk(bits, load_sentences(valid))
    return model.lm, model.tokenizer


if __name__ == "__main__":
    main()

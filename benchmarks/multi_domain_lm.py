"""Compare ways of adapting a common language model to domains.

    python -m benchmarks.multi_domain_lm --data_folder lm_text \
        --common_folder COMMON --output_folder results/multi_domain_lm

``COMMON`` is the experiment folder of ``recipes/LibriSpeech/LM``. Trains, with
the recipe in ``recipes/MultiDomainLM``, what is not there yet: for each domain
the whole model (full), a dedicated model (scratch), the paper's adapters and
ours; adapters on a fully fine-tuned music model; adapters on 8- and 4-bit
trunks. Then measures perplexity on each domain and, for what is forgotten, on
the common text. Prints Markdown tables and writes ``results.json``.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.multi_domain_models import Model, evaluate, load_sentences
from speechbrain_stablequant.artifacts.checkpoint import save_quantized
from speechbrain_stablequant.report.data import environment

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "MultiDomainLM"
DOMAINS = {
    "music": "sgd_music",
    "restaurants": "sgd_restaurants",
    "weather": "sgd_weather",
    "medical": "medquad_medical",
    "banking": "clinc_banking",
}
# As many parameters as a later domain of the paper, in adapters
WIDE = "{bottleneck: 96, rank: 48}"
# The paper's bottleneck is not known: two percent of this trunk
PAPER = "{bottleneck: 16, related_layers: %s, output_bias: False}"


def main():
    """Train what is missing, measure all, print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--common_folder", required=True, type=Path)
    parser.add_argument("--output_folder", required=True, type=Path)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument(
        "--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS)
    )
    parser.add_argument("--train_only", action="store_true")
    options = parser.parse_args()
    options.output_folder = options.output_folder.resolve()
    options.common_folder = options.common_folder.resolve()
    for system in options.systems:
        for domain in options.domains:
            _train(system, domain, options)
    if not options.train_only:
        _report(options)


# -- training ------------------------------------------------------------


def _system(hparams, trunk=None, **arguments):
    return {"hparams": hparams, "arguments": arguments, "trunk": trunk}


def _flat(arguments) -> list[str]:
    """Return arguments as a command line has them."""
    pairs = ((f"--{key}", str(value)) for key, value in arguments.items())
    return [part for pair in pairs for part in pair]


SYSTEMS = {
    "full": _system("full.yaml"),
    "scratch": _system("scratch.yaml"),
    "ours": _system("adapters_distilled.yaml"),
    "ours, no teacher": _system("adapters.yaml"),
    "paper": _system("adapters.yaml"),
    "ours, wide": _system("adapters_distilled.yaml", domain_layers=WIDE),
    "int4 trunk": _system("adapters_quantized_trunk.yaml", trunk="W4"),
    "music trunk": _system("adapters.yaml", trunk="music"),
}


def folder_of(system: str, domain: str, options) -> Path:
    """Return the experiment folder of a system for a domain."""
    name = system.replace(",", "").replace(" ", "_")
    return options.output_folder / name / domain


def _train(system, domain, options) -> None:
    """Run the recipe, unless it has run already."""
    what = SYSTEMS[system]
    if what["trunk"] == "music":
        # What the music model forgot, won back
        if domain != "music":
            return
        domain = "common"
    folder = folder_of(system, domain, options)
    log = folder / "train_log.txt"
    if log.is_file() and "Epoch loaded" in log.read_text():
        return
    arguments = {
        "data_folder": options.data_folder,
        "common_folder": options.common_folder,
        "output_folder": folder,
        "domain": domain,
        **what["arguments"],
    }
    if domain in DOMAINS:
        arguments["corpus"] = DOMAINS[domain]
    if system == "paper":
        related = "none" if domain == options.domains[0] else "full"
        arguments["domain_layers"] = PAPER % related
    if "distilled" in what["hparams"]:
        arguments["teacher_folder"] = folder_of("full", domain, options)
    if what["trunk"] == "music":
        arguments.update(_common_as_domain(options, folder))
    elif what["trunk"]:
        trunk = _quantized_trunk(what["trunk"], options)
        arguments["quantized_trunk"] = trunk
    print(f"{system}, {domain}: {folder}", flush=True)
    script = [sys.executable, "train.py", f"hparams/{what['hparams']}"]
    with open(f"{folder_made(folder)}/output.txt", "w") as output:
        subprocess.run(
            [*script, *_flat(arguments)],
            cwd=RECIPE,
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _quantized_trunk(bits: str, options) -> Path:
    """Return the file of a quantized common model, made where needed."""
    path = options.output_folder / "trunks" / f"{bits}.ckpt"
    if not path.is_file():
        model = Model.load(options.common_folder)
        result = model.quantize_trunk(bits, _valid_sentences(options))
        save_quantized(model.lm, path, result.plan)
    return path


def _valid_sentences(options) -> list[str]:
    return load_sentences(options.common_folder / "save" / "valid.csv")


def folder_made(folder: Path) -> Path:
    """Return a folder, made where it was not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _common_as_domain(options, folder, words: int = 30000):
    """Return the recipe's arguments for the common text as a domain.

    As many words as a domain has are drawn from the common training set.
    """
    save = options.common_folder / "save"
    with open(save / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    head, rows = rows[0], rows[1:]
    random.Random(1986).shuffle(rows)
    count, end = 0, 0
    while end < len(rows) and count < words:
        count += len(rows[end][-1].split())
        end += 1
    train = folder_made(folder / "save") / "train.csv"
    with open(train, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows[:end]])
    return {
        "skip_prep": True,
        "train_csv": train,
        "valid_csv": save / "valid.csv",
        "test_csv": json.dumps({"domain": str(save / "common.csv")}),
        "common_folder": folder_of("full", "music", options),
        "tokenizer_file": save / "1000_unigram.model",
    }


# -- measuring -------------------------------------------------------------


def _report(options) -> None:
    """Measure all that was trained and print the tables."""
    common = load_sentences(options.common_folder / "save" / "common.csv")
    rows = []

    def add(system, domain, model, reference=None):
        tests = {"common": common}
        if domain != "common":
            path = folder_of("full", domain, options) / "save" / "test.csv"
            tests = {domain: load_sentences(path), **tests}
        row, items = evaluate(model, tests, reference)
        rows.append({"system": system, "domain": domain, **row})
        print(_line(rows[-1]), flush=True)
        return items

    print("| " + " | ".join(COLUMNS) + " |")
    print("|:---" * 2 + "|---:" * (len(COLUMNS) - 2) + "|")
    for domain in options.domains:
        full = add(
            "full", domain, Model.load(folder_of("full", domain, options))
        )
        add("common", domain, Model.load(options.common_folder), full)
        for system in options.systems:
            name = "common" if system == "music trunk" else domain
            folder = folder_of(system, name, options)
            if system == "full" or not (folder / "train_log.txt").is_file():
                continue
            if name == domain or domain == "music":
                add(system, name, Model.load(folder), full)
        ours = folder_of("ours", domain, options)
        for bits in QUANTIZED if ours.is_dir() else ():
            model = Model.load(ours)
            model.quantize_trunk(bits, _valid_sentences(options))
            add(f"ours, {bits} trunk", domain, model, full)
    path = options.output_folder / "results.json"
    result = {"rows": rows, "environment": environment()}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Written to {path}")


# Of the trunk; the domain's layers stay as they were trained on the float one
QUANTIZED = ("W8A8", "W4")
COLUMNS = (
    "system",
    "domain",
    "added parameters",
    "PPL",
    "BPC",
    "against full [95 %]",
    "PPL on common text",
)


def _line(row) -> str:
    against = row.get("against_full")
    cells = (
        row["system"],
        row["domain"],
        f"{row['added_percent']:.1f} %",
        f"{row['PPL']:.2f}",
        f"{row['BPC']:.3f}",
        "-" if against is None else against,
        f"{row['common_PPL']:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

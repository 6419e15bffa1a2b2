"""Compare frozen encoders on SUPERB-style tasks: recognition, words, speakers.

    python -m benchmarks.superb results/superb.json \
        --commands_folder /path/to/speech_commands \
        --voxceleb_folder /path/to/VoxCeleb \
        float=ENCODER_FLOAT W2A8=ENCODER_W2A8 student=STUDENT_QUANTIZED

Each ``label=folder`` is an encoder made by
``recipes/SUPERB/Encoder/publish_encoder.py``; the first one is what the others
are compared with, utterance by utterance. Runs the recipes' ``train.py`` with
small heads on parts of the data, prints a Markdown table and writes the JSON
after each task, so a run that was stopped goes on where it was. Experiments
are kept beside it, in ``superb/<label>/<task>``. Change a recipe's settings
with ``--set ASR.number_of_epochs=20``; these belong to the JSON, too.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.report.data import environment

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "SUPERB"
WEIGHTS = ("*.ckpt", "*.safetensors", "pytorch_model*.bin")
MIN_UTTERANCES = 10  # of a speaker, as in the recipe


def default_tasks() -> dict:
    """Return the recipe of each task and what makes it short."""
    return {
        "ASR": {
            "hparams": "commands.yaml",
            "max_train_utterances": 1000,
            "max_valid_utterances": 100,
            "max_test_utterances": 1000,
            "number_of_epochs": 10,
            "max_batch_length": 30,
            "lr": 0.003,
        },
        "KS": {
            "hparams": "keywords.yaml",
            "max_train_utterances": 1500,
            "max_valid_utterances": 200,
            "number_of_epochs": 60,
        },
        "SID": {
            "hparams": "speakers.yaml",
            "max_speakers": 80,
            "split_ratio": "[50, 10, 40]",
            "max_seconds": 2.5,
            "number_of_epochs": 60,
        },
    }


def count_classes(folders: dict) -> dict:
    """Return an upper bound of the labels of each classification task."""
    words = [
        path
        for path in Path(folders["KS"]).iterdir()
        if path.is_dir() and not path.name.startswith(("_", "."))
    ]
    speakers = [
        path
        for path in (Path(folders["SID"]) / "wav").iterdir()
        if len(list(path.glob("*/*.wav"))) >= MIN_UTTERANCES
    ]
    return {"KS": len(words), "SID": len(speakers)}


def num_bytes(source: str) -> int:
    """Return the bytes of an encoder's weights on disk."""
    paths = {p for ending in WEIGHTS for p in Path(source).glob(ending)}
    if not paths:
        raise FileNotFoundError(f"{source} has no weights: {WEIGHTS}")
    return sum(path.stat().st_size for path in paths)


def run_task(task: str, settings: dict, source: str, folder: Path, csv) -> dict:
    """Run a recipe in a process of its own and return its result.

    Arguments
    ---------
    task : str
        Folder of the recipe.
    settings : dict
        ``hparams`` and what is overridden of it.
    source : str
        The encoder.
    folder : Path
        Where the experiment goes.
    csv : Path
        Lists, shared by all encoders.

    Returns
    -------
    dict
        What the recipe wrote, and the ``seconds`` that it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = dict(settings)
    command = [sys.executable, "train.py", f"hparams/{options.pop('hparams')}"]
    options.update(
        encoder_source=str(Path(source).resolve()),
        output_folder=str(folder.resolve()),
        csv_folder=str(csv.resolve()),
    )
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    log, start = folder / "benchmark_log.txt", time.perf_counter()
    with open(log, "w", encoding="utf-8") as out:
        code = subprocess.run(
            [*command, "--noprogressbar"],
            cwd=RECIPES / task,
            stdout=out,
            stderr=subprocess.STDOUT,
            # A recipe leaves nothing of itself beside the scripts
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        ).returncode
    if code:
        raise RuntimeError(f"{task} of {source} failed, see {log}")
    result = json.loads((folder / "result.json").read_text())
    return {**result, "seconds": time.perf_counter() - start}


def compare(before: dict, after: dict) -> dict:
    """Return the change of a task's metric, paired by utterance."""
    items = [[Item(*item) for item in row["items"]] for row in (before, after)]
    change = Metric("error").compare(*items).to_dict()
    if after["metric"] == "accuracy":
        low, high = change["low"], change["high"]
        # Not a minus sign: of zero that would be -0
        change.update(change=0 - change["change"], low=0 - high, high=0 - low)
    return change


def markdown(table: dict) -> str:
    """Return a row for each encoder, a column for each task."""
    rows = table["rows"]
    tasks = list(dict.fromkeys(t for row in rows for t in row["tasks"]))
    names = {
        t: f"{t} {row['tasks'][t]['metric']} %"
        for row in rows
        for t in row["tasks"]
    }
    lines = [
        "| encoder | MB | % of bytes | "
        + " | ".join(names[t] for t in tasks)
        + " |",
        "|---|---:|---:" + "|---" * len(tasks) + "|",
    ]
    for row in rows:
        cells = [_cell(rows[0], row, task) for task in tasks]
        size = f"{row['num_bytes'] / 1e6:.3f}"
        ratio = f"{100 * row['num_bytes'] / rows[0]['num_bytes']:.1f}"
        lines.append("| " + " | ".join([row["label"], size, ratio, *cells]))
        lines[-1] += " |"
    return "\n".join(lines)


def _cell(first: dict, row: dict, task: str) -> str:
    """Return the metric: with its interval, or that of its change."""
    result = row["tasks"].get(task)
    if result is None:
        return ""
    text, before = f"{result['value']:.2f}", first["tasks"].get(task)
    if row is first or before is None:
        return f"{text} [{result['low']:.2f}, {result['high']:.2f}]"
    change = compare(before, result)
    values = (change[key] for key in ("change", "low", "high"))
    return text + " ({:+.2f} [{:+.2f}, {:+.2f}])".format(*values)


def run(path: Path, encoders: dict, tasks: dict) -> dict:
    """Fill the table: each encoder on each task, unless it is there.

    Arguments
    ---------
    path : Path
        The JSON file.
    encoders : dict
        From label to folder.
    tasks : dict
        From task to its settings.

    Returns
    -------
    dict
        What is in the file.
    """
    table = {"rows": [], "tasks": tasks}
    if path.is_file():
        table = json.loads(path.read_text())
        for task, settings in tasks.items():
            if table["tasks"].setdefault(task, settings) != settings:
                raise ValueError(
                    f"{path} has rows of {task} with other settings; they "
                    "cannot be compared. Choose another file."
                )
    table["environment"] = environment()
    work = path.parent / path.stem
    for label, source in encoders.items():
        row = _row(table, label, source)
        for task, settings in tasks.items():
            if task in row["tasks"]:
                continue
            row["tasks"][task] = result = run_task(
                task, settings, source, work / label / task, work / "csv" / task
            )
            logger.info(
                "%s, %s: %s %.2f in %.0f s",
                label, task, result["metric"], result["value"], result["seconds"],
            )  # fmt: skip
            path.write_text(json.dumps(table) + "\n", encoding="utf-8")
    return table


def _row(table: dict, label: str, source: str) -> dict:
    """Return the row of an encoder, a new one if there is none."""
    source, size = str(Path(source).resolve()), num_bytes(source)
    for row in table["rows"]:
        if row["label"] == label:
            if (row["source"], row["num_bytes"]) != (source, size):
                raise ValueError(
                    f"The row {label} is of another encoder, {row['source']} "
                    f"({row['num_bytes']} bytes): choose another label."
                )
            return row
    row = {"label": label, "source": source, "num_bytes": size, "tasks": {}}
    table["rows"].append(row)
    return row


def parse(argv):
    """Return the file, the encoders by label and the tasks' settings."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="the JSON file")
    parser.add_argument("encoders", nargs="+", help="label=folder")
    parser.add_argument("--commands_folder", required=True)
    parser.add_argument("--voxceleb_folder", required=True)
    parser.add_argument("--tasks", help="by default ASR,KS,SID")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args(argv)
    for each in arguments.encoders:
        if "=" not in each:
            parser.error(f"{each}: expected label=folder")
    for folder in (
        Path(arguments.commands_folder),
        Path(arguments.voxceleb_folder) / "wav",
    ):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    tasks = default_tasks()
    commands = str(Path(arguments.commands_folder).resolve())
    folders = {"ASR": commands, "KS": commands}
    folders["SID"] = str(Path(arguments.voxceleb_folder).resolve())
    for task, count in count_classes(folders).items():
        tasks[task]["out_n_neurons"] = count
    for task, folder in folders.items():
        tasks[task]["data_folder"] = folder
    for setting in arguments.settings:
        name, _, value = setting.partition("=")
        task, _, key = name.partition(".")
        if task not in tasks or not key:
            parser.error(f"--set {setting}: expected TASK.key=value")
        tasks[task][key] = value
    chosen = arguments.tasks.split(",") if arguments.tasks else list(tasks)
    if not set(chosen) <= set(tasks):
        parser.error(f"--tasks: there are {', '.join(tasks)}")
    encoders = dict(each.split("=", 1) for each in arguments.encoders)
    return arguments.path, encoders, {task: tasks[task] for task in chosen}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table_path, chosen_encoders, chosen_tasks = parse(sys.argv[1:])
    table_path.parent.mkdir(parents=True, exist_ok=True)
    found = run(table_path, chosen_encoders, chosen_tasks)
    print(markdown(found))
    print(", ".join(f"{k} {v}" for k, v in found["environment"].items()))

"""How fast is it? Models with random weights, under several runtimes.

    python -m benchmarks.runtime --output_folder results/runtime

Full-size models with random weights: this is about speed only. Prints a
Markdown table for each model and writes ``runtime.md`` and ``runtime.json``,
which has every single timing. Each candidate runs in a process of its own, and
the processes take turns, call by call, so that noise of the machine hits all
alike; only one computes at a time. A candidate that cannot run is a row that
says why. ``--quick`` takes minutes, the default hours.
"""

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.runtime_candidates import CANDIDATES
from benchmarks.runtime_machine import machine, memory_gib
from benchmarks.runtime_process import Worker, WorkerFailure
from benchmarks.runtime_table import agreement, markdown, summarize

# Names only: the models themselves need PyTorch, this process does not.
MODELS = (
    "wav2vec2-base",
    "hubert-large",
    "wavlm-base",
    "ecapa-1024",
    "transformer-lm",
)
REFERENCE = "eager"
PAUSE = (
    0.005  # seconds; threads of the last call spin a while before they sleep
)


def parse_arguments(arguments=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add(
        "--candidates",
        nargs="+",
        choices=list(CANDIDATES),
        default=list(CANDIDATES),
        help=f"what to compare; {REFERENCE} is always among them",
    )
    add("--threads", nargs="+", type=int, default=[1, 2], help="per process")
    add("--batches", nargs="+", type=int, default=[1, 8], help="batch sizes")
    add("--repeats", type=int, default=5, help="timed passes over all inputs")
    add(
        "--num_utterances",
        type=int,
        default=8,
        help="inputs of a pass; a batch has as many as its size, or fewer",
    )
    add("--output_folder", type=Path, default=Path("results/runtime"))
    add(
        "--work_folder",
        type=Path,
        help="where models are written, up to 10 GB; by default temporary",
    )
    add(
        "--memory",
        type=float,
        default=round(0.75 * memory_gib("MemAvailable"), 1),
        help="GiB that all processes together may take",
    )
    add("--timeout", type=float, default=1800.0, help="seconds of one step")
    add(
        "--quick",
        action="store_true",
        help="one model, one thread, single utterances, few of them",
    )
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models = options.models[:1]
        options.threads, options.batches = options.threads[:1], [1]
        options.repeats = min(options.repeats, 3)
        options.num_utterances = min(options.num_utterances, 3)
    # Batch 1 is what the first call, latency and agreement are measured on.
    options.batches = sorted({1, *options.batches})
    options.candidates = [
        name
        for name in CANDIDATES
        if name in options.candidates or name == REFERENCE
    ]
    return options


class ModelBenchmark:
    """All candidates with one model.

    Arguments
    ---------
    model : str
        Name of the model.
    folder : Path
        Where inputs and models are written.
    options : argparse.Namespace
        The command line.
    """

    def __init__(self, model, folder, options):
        self.model, self.folder, self.options = model, folder, options
        self.failures, self.prepared = {}, {}
        self.largest_mib = 0.0
        self.result = {"rows": []}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Fill `result`: facts of the model, a row per candidate and threads."""
        options = self.options
        with self._worker() as worker:
            facts = worker.ask(
                "write_case",
                num_utterances=options.num_utterances,
                batches=options.batches,
            )
        self.result.update(facts)
        self._prepare()
        for threads in options.threads:
            rows = self._serve_all(threads)
            for row in rows:
                summarize(row, facts)
            self.result["rows"] += rows

    def _worker(self, **job) -> Worker:
        return Worker(
            self.folder,
            self.options.timeout,
            model=self.model,
            tiny=self.options.tiny,
            **job,
        )

    def _prepare(self) -> None:
        """Write the files of all candidates, those that share them once."""
        bar = tqdm(self.options.candidates, desc=f"{self.model}: preparing")
        for name in bar:
            bar.set_postfix_str(name)
            artefact = CANDIDATES[name].artefact
            try:
                threads = max(self.options.threads)
                with self._worker(candidate=name, threads=threads) as worker:
                    worker.ask("check", preparing=True)
                    if artefact not in self.prepared:
                        self.prepared[artefact] = worker.ask(
                            "prepare", threads=self.options.threads
                        )
            except WorkerFailure as err:
                self.failures[name] = err

    def _serve_all(self, threads: int) -> list[dict]:
        """Time all candidates with a number of threads, group by group."""
        rows = {
            name: self._row(name, threads) for name in self.options.candidates
        }
        waiting = [n for n in rows if rows[n]["status"] == "measured"]
        waiting.remove(REFERENCE)
        with self._worker(candidate=REFERENCE, threads=threads) as reference:
            self._start(reference, rows[REFERENCE])
            while True:
                with contextlib.ExitStack() as stack:
                    group = {REFERENCE: reference}
                    while waiting and self._has_room(group, rows):
                        name = waiting.pop(0)
                        worker = self._worker(candidate=name, threads=threads)
                        stack.enter_context(worker)
                        try:
                            self._start(worker, rows[name])
                            group[name] = worker
                        except WorkerFailure as err:
                            worker.close()
                            _fail(rows[name], err)
                    self._time(group, rows)
                if not waiting:
                    return list(rows.values())

    def _row(self, name: str, threads: int) -> dict:
        candidate = CANDIDATES[name]
        row = {
            "candidate": name,
            "title": candidate.title,
            "threads": threads,
            "status": "measured",
            "prepared": self.prepared.get(candidate.artefact),
            "batches": {},
        }
        if name in self.failures:
            _fail(row, self.failures[name])
        return row

    def _start(self, worker: Worker, row: dict) -> None:
        """Load, warm up, and take what is measured once."""
        row["memory_before_mib"] = worker.ask("check")["memory_mib"]
        row.update(worker.ask("load"))
        for batch in self.options.batches:
            reply = worker.ask("warm_up", batch=batch)
            row["batches"][str(batch)] = {
                "warm_up": reply["seconds"],
                "peak_mib": reply["peak_mib"],
                "calls": [],
                "reference_calls": [],
            }
        self.largest_mib = max(self.largest_mib, reply["peak_mib"])
        path = self.folder / f"{row['candidate']}.npy"
        row.update(worker.ask("output", path=str(path)))
        reference = np.load(self.folder / f"{REFERENCE}.npy")
        row["agreement"] = agreement(reference, np.load(path))

    def _has_room(self, group, rows) -> bool:
        """Return whether one more process fits, if it is like the largest."""
        last = str(self.options.batches[-1])
        peaks = [rows[name]["batches"][last]["peak_mib"] for name in group]
        room = self.options.memory * 1024 - sum(peaks)
        return len(group) < 2 or room > self.largest_mib

    def _time(self, group: dict[str, Worker], rows: dict[str, dict]) -> None:
        """Time a group: its workers take turns at every single input."""
        group = dict(group)
        for batch in self.options.batches:
            cells = {n: rows[n]["batches"][str(batch)] for n in group}
            inputs = len(cells[REFERENCE]["warm_up"])
            for worker in group.values():
                worker.ask("select", batch=batch)
            names = ", ".join(name for name in group if name != REFERENCE)
            threads = rows[REFERENCE]["threads"]
            bar = tqdm(
                range(self.options.repeats),
                desc=f"{self.model}: {threads} threads, batch {batch}",
            )
            bar.set_postfix_str(names[:60])
            for repeat in bar:
                taken = self._repetition(group, rows, inputs, repeat)
                for name in group:
                    cells[name]["calls"].append(taken[name])
                    cells[name]["reference_calls"].append(taken[REFERENCE])

    def _repetition(self, group, rows, inputs, repeat) -> dict[str, list]:
        """Return seconds of every input, for each worker that answered."""
        taken = {name: [] for name in group}
        for index in range(inputs):
            names = list(group)
            # Nobody is always the first to run, or after the same neighbour.
            first = (repeat + index) % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(PAUSE)
                try:
                    reply = group[name].ask("run", index=index)
                    taken[name].append(reply["seconds"])
                except WorkerFailure as err:
                    if name == REFERENCE:
                        raise
                    _fail(rows[name], err)
                    del group[name]
        return taken


def _fail(row: dict, err: WorkerFailure) -> None:
    row["status"], row["reason"] = err.status, err.reason


def main(arguments=None) -> dict:
    """Run the benchmark; return what the JSON has."""
    options = parse_arguments(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    results = {
        "command": "python -m benchmarks.runtime " + shlex.join(words),
        "machine": machine(),
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
        "models": {},
    }
    options.output_folder.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.work_folder) as folder:
            benchmark = ModelBenchmark(model, Path(folder), options)
            results["models"][model] = benchmark.result
            try:
                benchmark.run()
            except WorkerFailure as err:
                # Without the reference there is nothing to compare with.
                benchmark.result["reason"] = str(err)
            finally:
                # What was measured so far is kept, also after Ctrl-C.
                table = _write(results, options.output_folder)
    print(table)
    return results


def _write(results: dict, folder: Path) -> str:
    """Write both files; return the table."""
    table = markdown(results)
    (folder / "runtime.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "runtime.md").write_text(table + "\n")
    return table


if __name__ == "__main__":
    main()

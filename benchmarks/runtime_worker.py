"""A process of the runtime benchmark: it does one thing at a time, as asked.

    python -m benchmarks.runtime_worker '{"model": …, "candidate": …}'

Requests are lines of JSON on standard input, replies on standard output.
Numbers of threads must be in the environment before libraries are loaded, and
peak memory is counted for each process; so each candidate has its own.
"""

import json
import os
import sys
import time
import traceback

import numpy as np

from benchmarks.runtime_case import Case, draw_lengths
from benchmarks.runtime_machine import process_mib


class Session:
    """What a worker remembers between requests.

    Arguments
    ---------
    model : str
        Name of the model.
    folder : str
        The folder of the `Case`.
    tiny : bool
        Whether the model is a tiny one.
    candidate : str
        Name of the candidate.
    threads : int
        Number of threads.
    """

    def __init__(self, model, folder, tiny, candidate=None, threads=1):
        self.case = Case(model, folder, tiny)
        self.candidate_name, self.threads = candidate, threads

    def write_case(self, num_utterances, batches):
        """Write inputs and weights."""
        from benchmarks.runtime_models import MODELS

        unit = MODELS[self.case.name].unit
        lengths = draw_lengths(num_utterances, unit)
        return self.case.write(lengths, batches)

    def check(self, preparing=False):
        """Import what the candidate needs, to prepare or to serve."""
        from benchmarks.runtime_candidates import CANDIDATES

        self.candidate = CANDIDATES[self.candidate_name]
        self.candidate.check(preparing)
        return {"memory_mib": process_mib("VmRSS")}

    def prepare(self, threads):
        """Write the candidate's files, for these numbers of threads."""
        start = time.perf_counter()
        facts = self.candidate.prepare(self.case, threads)
        return {"prepare_seconds": time.perf_counter() - start, **facts}

    def load(self):
        """Load them, and call once: what a user waits for the first time."""
        array = self.case.inputs(1)[0]
        start = time.perf_counter()
        self.call = self.candidate.load(self.case, self.threads)
        loaded = time.perf_counter()
        self.call(array)
        end = time.perf_counter()
        paths = self.candidate.files(self.case)
        return {
            "load_seconds": loaded - start,
            "first_call_seconds": end - loaded,
            "num_bytes": sum(path.stat().st_size for path in paths),
        }

    def warm_up(self, batch):
        """Call on all inputs of a batch size, which the rest is about."""
        self.arrays = self.case.inputs(batch)
        seconds = [self.run(i)["seconds"] for i in range(len(self.arrays))]
        return {"seconds": seconds, "peak_mib": process_mib("VmHWM")}

    def run(self, index):
        """Call on one input of the batch size of `warm_up` or `select`."""
        array = self.arrays[index]
        start = time.perf_counter()
        self.call(array)
        return {"seconds": time.perf_counter() - start}

    def select(self, batch):
        """Choose a batch size."""
        self.arrays = self.case.inputs(batch)
        return {}

    def output(self, path):
        """Write the output for the first input; how it runs."""
        np.save(path, self.call(self.case.inputs(1)[0]))
        return {"facts": self.candidate.facts(self.case)}


def failure(err: BaseException) -> dict:
    """Return what went wrong, in a line."""
    from benchmarks.runtime_base import Unavailable

    if isinstance(err, Unavailable):
        return {"skipped": str(err)}
    lines = str(err).strip().splitlines() or [""]
    return {"failed": f"{type(err).__name__}: {lines[0][:200]}"}


def main() -> None:
    """Answer requests until standard input ends."""
    # Libraries write to standard output as they like; it goes to the log.
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    session = Session(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(session, request.pop("do"))(**request)
        except Exception as err:
            traceback.print_exc()
            reply = failure(err)
        print(json.dumps(reply), file=channel)


if __name__ == "__main__":
    main()

"""The parent's side of a worker of the runtime benchmark."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["Worker", "WorkerFailure"]

ROOT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)


class WorkerFailure(Exception):
    """A request failed; ``status`` is ``skipped`` or ``failed``."""

    def __init__(self, status: str, reason: str):
        super().__init__(f"{status}: {reason}")
        self.status, self.reason = status, reason


class Worker:
    """A process that serves one candidate; to be used with ``with``.

    Arguments
    ---------
    folder : Path
        Folder of the case; the log of the process is in it.
    timeout : float
        Seconds that a request may take.
    **job : dict
        See `benchmarks.runtime_worker.Session`.
    """

    def __init__(self, folder: Path, timeout: float, **job):
        self.timeout = timeout
        name = f"{job.get('candidate', 'case')}_{job.get('threads', 1)}.log"
        # torch.compile must not find what another worker compiled.
        self._cache = tempfile.TemporaryDirectory(dir=folder)
        environment = dict(os.environ)
        threads = str(job.get("threads", 1))
        environment.update(dict.fromkeys(THREAD_VARIABLES, threads))
        environment.update(
            HF_HUB_OFFLINE="1",
            TORCHINDUCTOR_CACHE_DIR=self._cache.name,
            PYTHONPATH=os.pathsep.join(
                filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)])
            ),
        )
        with open(folder / name, "ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.runtime_worker",
                    json.dumps({"folder": str(folder), **job}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def ask(self, do: str, **request) -> dict:
        """Send a request and wait for the reply.

        Raises
        ------
        WorkerFailure
            If it fails, the process ends, or takes too long.
        """
        process = self._process
        try:
            line = json.dumps({"do": do, **request}) + "\n"
            process.stdin.write(line.encode())
            process.stdin.flush()
            if not select.select([process.stdout], [], [], self.timeout)[0]:
                process.kill()
                raise WorkerFailure(
                    "failed", f"{do} took more than {self.timeout:.0f} s"
                )
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = process.wait()
            raise WorkerFailure(
                "failed",
                f"the process ended with code {code} while asked to {do}",
            )
        reply = json.loads(line)
        for status in ("skipped", "failed"):
            if status in reply:
                raise WorkerFailure(status, reply[status])
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._cache.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

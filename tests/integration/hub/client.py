"""A process that publishes: the real client, with an environment of its own.

As a script it reads calls from stdin, a JSON object a line, and answers each
on stdout. It stays, since importing the client takes longer than most calls.
``TEST_HUGGINGFACE_HUB`` may name a folder with another version of the client.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Client:
    """Calls ``upload`` and ``check_repository`` in a process of its own."""

    def __init__(self, url: str, home: Path, **env):
        self.log = (home / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.hub.client"],
            # A job in the background of a shell ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment(url, home, **_another_version(), **env),
        )

    def start(self, **call):
        self.process.stdin.write(json.dumps(call, default=str) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, self.stderr()
        return json.loads(line)

    def stderr(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        self.log.close()


def _another_version() -> dict:
    folder = os.environ.get("TEST_HUGGINGFACE_HUB")
    return {"PYTHONPATH": folder} if folder else {}


def environment(url: str, home: Path, **env) -> dict:
    """Return the environment of a client of the hub at an address."""
    kept = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
    return {
        **kept,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_write",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        **env,
    }


def _serve():
    from huggingface_hub.utils import disable_progress_bars

    from speechbrain_stablequant.errors import PublishError
    from speechbrain_stablequant.publishing import PublishOptions, hub

    pause = time.sleep  # between the retries of the client: not what we test
    time.sleep = lambda seconds: pause(min(seconds, 0.01))
    hub.TIMEOUT = 2  # seconds
    disable_progress_bars()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        os.environ["HF_TOKEN"] = call.pop("login", "hf_write")
        name = call.pop("function", "upload")
        try:
            options = PublishOptions(**call.pop("options"))
            result = getattr(hub, name)(options=options, **call)
            answer = {**dataclasses.asdict(result), "error": None}
            if name == "upload":
                answer["summary"] = result.summary()
        except PublishError as err:
            answer = {"error": str(err)}
        except KeyboardInterrupt:
            answer = {"error": "KeyboardInterrupt"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()

"""Run the command line in this process, and small files to give to it."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from speechbrain_stablequant.cli import main
from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationPlan,
    QuantizationScheme,
)

SAMPLES = Path(__file__).parents[2] / "samples" / "golden_v1"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self):
        """The JSON on stdout: all of stdout, or this fails."""
        return json.loads(self.out)

    def check_mistake(self, *words: str) -> None:
        """Fail unless this is one line that tells the user what was wrong."""
        assert self.code == 2, self
        assert self.out == ""
        message = self.err.splitlines()
        assert len(message) == 1, self.err
        assert message[0].startswith("stablequant: error: ")
        for word in words:
            assert word in message[0]


@pytest.fixture
def stablequant(capsys):
    """Run a command; returns exit code, stdout and stderr."""

    def run(*arguments) -> Result:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def plan():
    """Return a plan of three layers in two units."""
    scheme = QuantizationScheme(granularity="per_tensor")
    inputs = {"input": InputPlan(scheme, -2.0, 2.0, "mse", 99.5, 0.01)}
    eight, four = QuantizationScheme(bits=8), QuantizationScheme(bits=4)
    return QuantizationPlan(
        {
            "enc.a": LayerPlan(eight, "Linear", "enc", inputs=inputs),
            "enc.b": LayerPlan(four, "Linear", "enc", inputs=inputs),
            "out": LayerPlan(eight, "Linear", "out"),
        },
        "manual",
    )


@pytest.fixture
def plan_file(plan, tmp_path):
    return plan.save(tmp_path / "plan.json")


def make_report(**changes) -> dict:
    """Return a report as the block writes it, in small."""
    metrics = {"WER": {"float": 10.0, "quantized": 11.0, "items": 4}}
    report = {
        "label": "W8A8 stablequant",
        "tests": [
            {
                "name": "test",
                "metrics": metrics,
                "float_speed": {"real_time_factor": 0.2},
                "quantized_speed": {"real_time_factor": 0.1},
            }
        ],
        "files": [{"name": "enc", "num_bytes": 25, "float_num_bytes": 100}],
        "coverage": {"fraction": 1.0, "parameters": []},
        "environment": {"processor": "x", "threads": 1, "torch": "2"},
    }
    return {**report, **changes}


@pytest.fixture
def report_file(tmp_path):
    """Write reports; returns a function of folder name and changes."""

    def write(name: str, items=None, **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "report.json"
        path.write_text(json.dumps(make_report(**changes)))
        if items is not None:
            (folder / "items.json").write_text(json.dumps(items))
        return path

    return write

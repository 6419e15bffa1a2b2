import json

import numpy as np
import pytest

from benchmarks import runtime
from benchmarks.runtime_case import draw_lengths
from benchmarks.runtime_process import Worker, WorkerFailure
from benchmarks.runtime_table import agreement, summarize


@pytest.fixture(autouse=True)
def _lengths_of_the_file(monkeypatch):
    """Without data to unpack, as most have it."""
    monkeypatch.delenv("STABLEQUANT_DATA", raising=False)


def run(folder, *arguments):
    runtime.main(
        [
            "--tiny",
            "--models",
            "ecapa-1024",
            "--threads",
            "1",
            "--repeats",
            "2",
            "--num_utterances",
            "2",
            "--output_folder",
            str(folder),
            *arguments,
        ]
    )
    return json.loads((folder / "runtime.json").read_text())


def rows_by_name(results):
    rows = results["models"]["ecapa-1024"]["rows"]
    return {row["candidate"]: row for row in rows}


@pytest.fixture
def without_onnxruntime(tmp_path, monkeypatch):
    """Workers find a package that says it is not there."""
    stub = tmp_path / "path" / "onnxruntime.py"
    stub.parent.mkdir()
    stub.write_text(
        "raise ModuleNotFoundError('not here', name='onnxruntime')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(stub.parent))


@pytest.mark.usefixtures("without_onnxruntime")
def test_missing_package_is_a_row(tmp_path):
    names = ["--candidates", "onnxruntime_f32", "--batches", "1"]
    rows = rows_by_name(run(tmp_path, *names))
    row = rows["onnxruntime_f32"]
    assert row["status"] == "skipped"
    assert row["reason"] == "onnxruntime is not installed"
    assert rows["eager"]["status"] == "measured"
    table = (tmp_path / "runtime.md").read_text()
    assert "skipped: onnxruntime is not installed" in table


@pytest.mark.slow
def test_openvino_beside_eager(tmp_path):
    pytest.importorskip("openvino")
    names = ["--candidates", "openvino_f32", "--batches", "1", "2"]
    results = run(tmp_path, *names)
    assert {"cpu", "flags", "packages", "date"} <= set(results["machine"])
    assert set(results["machine"]["flags"]) >= {"avx512_vnni", "amx_int8"}
    facts = results["models"]["ecapa-1024"]
    assert facts["unit"] == "second"
    assert len(facts["lengths"]) == 2
    rows = rows_by_name(results)
    assert list(rows) == ["eager", "openvino_f32"]
    for row in rows.values():
        assert row["status"] == "measured"
        assert row["num_bytes"] > 0
        assert row["load_seconds"] > 0
        for batch, inputs in (("1", 2), ("2", 1)):
            cell = row["batches"][batch]
            for kind in ("calls", "reference_calls"):
                assert np.shape(cell[kind]) == (2, inputs)
            spread = cell["ratio"]
            assert spread["min"] <= spread["median"] <= spread["max"]
            assert cell["peak_mib"] >= row["memory_before_mib"] > 0
            assert len(facts["batches"][batch]["macs"]) == inputs
    assert rows["eager"]["batches"]["1"]["ratio"]["median"] == 1.0
    assert rows["openvino_f32"]["agreement"]["snr_db"] > 80
    int8, layers = rows["openvino_f32"]["facts"]["int8_layers"]
    assert (int8, layers > 0) == (0, True)


def test_slow_or_dead_worker_is_said(tmp_path):
    job = {"model": "ecapa-1024", "tiny": True}
    with Worker(tmp_path, 0.01, **job) as worker:
        with pytest.raises(WorkerFailure, match="more than 0 s"):
            worker.ask("select", batch=1)
        with pytest.raises(WorkerFailure, match="ended with code -9"):
            worker.ask("select", batch=1)


def test_lengths_without_data(monkeypatch):
    monkeypatch.delenv("STABLEQUANT_DATA", raising=False)
    lengths = draw_lengths(8, "second")
    assert len(set(lengths)) == 8
    assert all(2 <= length <= 20 for length in lengths)
    assert lengths == draw_lengths(8, "second")
    assert len(draw_lengths(20, "second")) == 20


def test_ratio_is_of_the_same_repetition():
    cell = {"calls": [[1.0], [2.0]], "reference_calls": [[3.0], [4.0]]}
    row = {"status": "measured", "batches": {"1": cell}}
    summarize(row, {"batches": {"1": {"units": [2.0], "macs": [3e9]}}})
    assert cell["ratio"] == {"median": 2.5, "min": 2.0, "max": 3.0}
    assert cell["seconds_per_unit"]["median"] == 0.75
    assert cell["gmacs_per_second"] == 2.0


def test_agreement_of_other_shapes_is_said():
    assert "shape" in agreement(np.ones((1, 2)), np.ones((1, 3)))["reason"]
    assert agreement(np.ones(2), np.array([1, np.nan])) == {
        "reason": "not finite"
    }

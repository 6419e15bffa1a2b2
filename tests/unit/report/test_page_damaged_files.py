"""The page of files that are missing or damaged: an error that names them."""

import json

import pytest

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.report import write_page
from tests.unit.report.test_page import make


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "ptq", "stablequant")


def test_missing_files_are_named(folder):
    with pytest.raises(StableQuantError, match=r"Did you mean .*ptq\?"):
        write_page(folder.parent)
    with pytest.raises(StableQuantError, match="not there. Run the recipe"):
        write_page(folder / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report.json", '{"label": ', "Cannot read the report"),
        ("report.json", '{"a": 1}', "damaged.* has no 'label'"),
        ("histograms.json", "[1, 2", "Cannot read the histograms"),
        ("histograms.json", '[{"layer": "a"}]', "histograms.0. has no 'input'"),
        ("histograms.json", '{"layer": "a"}', "damaged.* histograms is"),
    ],
)
def test_damaged_files_are_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(StableQuantError, match=message) as error:
        write_page(folder)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(tests=[3]),
        lambda r: r["tests"][0].pop("metrics"),
        lambda r: r["coverage"].update(parameters=[{"name": "a"}]),
        lambda r: r.pop("environment"),
        lambda r: r["files"][0].pop("num_bytes"),
        lambda r: r["files"][0].update(float_num_bytes=0),
    ],
)
def test_reports_with_holes_are_errors(folder, change):
    path = folder / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    with pytest.raises(StableQuantError, match="damaged"):
        write_page(folder)

"""The benchmark of mixed precision runs in a recipe."""

import json

import pytest
import torch

from tests.integration import toy

BLOCK = """
ptq: !new:benchmarks.mixed_precision.MixedPrecisionComparison
    checkpointer: !ref <checkpointer>
    runtime: reference
    rows: [preset, target_0.25, max_drop, uniform_mse, max_drop_8_32]
    max_drop: 20
    front_points: 2
    search_num_bytes: 0
"""


@pytest.mark.slow
def test_rows_share_a_float_pass_and_a_journal(experiment, capsys):
    brain, _ = toy.run(toy.load(experiment, block=BLOCK))
    folder = experiment / "ptq"
    rows = json.loads((folder / "mixed_precision.json").read_text())
    by_name = {row["row"]: row for row in rows}
    # In the order of the table, whatever order they ran in.
    assert list(by_name) == [
        "uniform_mse", "preset", "max_drop_8_32", "max_drop", "target_0.25",
    ]  # fmt: skip
    # What does not go is a row that says why: the toy has no such layers, and
    # is too small for a quarter of its bytes.
    assert "matches no layer" in by_name["preset"]["failed"]
    assert "cannot be reached" in by_name["target_0.25"]["failed"]
    done = [row for row in rows if "failed" not in row]
    for row in done:
        assert [test["name"] for test in row["tests"]] == list(toy.TEST_SETS)
        files = row["files"]
        assert row["num_bytes"] == sum(f["num_bytes"] for f in files)
    # The float pass is the same for all, metrics are all that there are.
    floats = {row["tests"][0]["metrics"]["WER"]["float"] for row in done}
    assert len(floats) == 1
    assert set(done[0]["tests"][0]["metrics"]) == {"WER", "CER", "loss"}
    # The first search is that of the row that cannot be reached; the others
    # know the sensitivity that it has measured.
    for row in ("max_drop", "max_drop_8_32"):
        cost = by_name[row]["search"]["cost"]
        assert cost["resumed"] > 20  # layers, for each width
        # Also of a search that found everything in the journal.
        assert by_name[row]["search"]["metric"] == "WER"
    # Each row has results of its own; the float model is as it was.
    for row in done:
        own = folder / "mixed_precision" / row["row"]
        assert (own / "report.json").is_file()
        assert (own / "plan.json").is_file()
        assert any("*" in name for name in row["bits"])
    assert not list(folder.glob("**/*.old"))
    text = capsys.readouterr().out
    assert text.count("| row | MB | bytes |") >= 2
    assert "max_drop_8_32" in text
    for parameter in brain.modules.parameters():
        assert parameter.dtype == torch.float32

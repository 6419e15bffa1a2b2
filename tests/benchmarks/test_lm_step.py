"""The benchmark of language-model steps: a small run, and its arithmetic."""

import json

import pytest

from benchmarks import lm_step as benchmark
from speechbrain_stablequant.models.multi_domain import (
    DomainConfig,
    added_parameters,
)

TINY = benchmark.Size(30, 16, 4, 2, 24)


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(benchmark.SIZES, "tiny", TINY)
    path = tmp_path / "new" / "found.json"
    results = benchmark.main(
        "--sizes tiny --rows 10 20 --prefixes 4 --tokens 20 --seconds 0".split()
        + ["--json", str(path)]
    )
    found = json.loads(path.read_text())
    assert found["environment"]["threads"] == 1
    assert found["results"] == json.loads(json.dumps(results))
    assert [cell["rows"] for cell in results] == [10, 20]
    for cell in results:
        models = [row["model"] for row in cell["overhead"]]
        assert models[:4] == models[4:] == ["trunk", *cell["added"]]
        assert cell["added"]["default"] > 0
        assert all(min(row["seconds"]) > 0 for row in cell["overhead"])
        assert [row["length"] for row in cell["searches"]] == [10, 20]
        assert len(cell["steps"]["cached"]) == 20
        assert sorted(cell["steps"]["stock"]) == [1, 2, 5, 10, 20]
        assert cell["difference"] < 1e-4
    printed = capsys.readouterr().out
    assert "| tiny | 20 | with cache, 2-25 | paper, later domain |" in printed
    assert "| tiny | 10 | 20 |" in printed


def test_bottlenecks_keep_within_two_percent():
    trunk = benchmark.SIZES["mini"].build()
    config = benchmark.widest(trunk, lambda w: DomainConfig(bottleneck=w))
    lm = benchmark.MultiDomainLM(trunk, {"x": config})
    assert 1 < added_parameters(lm)[0].percent <= 2
    assert config.bottleneck == 12


def test_steps_between_those_that_were_timed():
    seconds = {1: 1.0, 3: 3.0, 4: 3.5, 8: 5.5}
    assert benchmark.interpolated(seconds, 2) == 3.0
    assert benchmark.interpolated(seconds, 4) == 9.5
    assert benchmark.interpolated(seconds, 8) == 9.5 + 4.0 + 4.5 + 5.0 + 5.5


@pytest.mark.parametrize(
    "wrong", ["--rows 15", "--rows 0", "--tokens 3", "--prefixes 0"]
)
def test_arguments_are_checked(wrong):
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(wrong.split())

"""The benchmark of instruction sets runs, and a crash is a row that says so."""

import pytest

pytest.importorskip("transformers")

from benchmarks import isa


def test_rows_are_measured_or_say_why_not():
    fast = isa._in_process("AVX512_CORE_VNNI", "int8", (1, 0.5, 2))
    assert len(fast["seconds"]) == 2
    assert fast["difference"] < 0.3
    assert "15 of 15 layers executed in int8" in fast["layers"]
    failed = isa._in_process("AVX2", "no such candidate", (1, 0.5, 1))
    assert "KeyError" in failed["failed"]
    rows = {
        "AVX512_CORE_VNNI": {"int8": fast, "float": failed},
        "AVX2": {"int8": failed, "float": failed},
    }
    first, second = isa.markdown(rows).splitlines()[2:]
    assert first.startswith("| AVX512_CORE_VNNI | ")
    assert "crashes under this limit" in first
    assert second.startswith("| AVX2 | | | | exit status")

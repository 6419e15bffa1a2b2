"""What the processor offers decides how a model runs, and results stay right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.runtime import runtime_report
from speechbrain_stablequant.runtime.accelerate import make_backend
from speechbrain_stablequant.runtime.processor import (
    Processor,
    _features_from_torch,
    detect_processor,
)
from tests.unit.runtime import helpers

ROOT = Path(__file__).parents[3]
MACHINE = detect_processor()
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
needs_x86 = pytest.mark.skipif(
    not MACHINE.is_x86 or not {"avx2", "avx512_vnni"} <= MACHINE.features,
    reason="needs a processor with AVX-512 VNNI",
)


def limited(monkeypatch, limit, variable=VARIABLES[0]):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv(variable, limit)
    return detect_processor()


# -- features -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "saturates", "bf16", "amx"),
    [
        ("", True, False, False),
        ("avx2", True, False, False),
        ("avx2 avx512f", True, False, False),
        ("avx2 avx_vnni", False, False, False),
        ("avx2 avx512f avx512_vnni", False, False, False),
        ("avx2 avx512f avx512_vnni avx512_bf16", False, True, False),
        ("avx2 avx512f avx512_vnni amx_int8 amx_bf16", False, True, True),
    ],
)
def test_properties_follow_from_features(features, saturates, bf16, amx):
    processor = Processor("x86_64", frozenset(features.split()))
    assert processor.saturates is saturates
    assert processor.has_bf16 is bf16
    assert processor.has_amx is amx


def test_other_architectures_do_not_saturate():
    assert not Processor("aarch64", frozenset()).saturates
    assert Processor("AMD64", frozenset()).saturates


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ("SSE41", ""),
        ("AVX2", "avx2"),
        ("avx2", "avx2"),
        ("AVX512_CORE", "avx2 avx512f"),
        ("AVX512_CORE_VNNI", "avx2 avx_vnni avx512f avx512_vnni"),
        (
            "AVX512_CORE_BF16",
            "avx2 avx_vnni avx512f avx512_vnni avx512_bf16",
        ),
    ],
)
def test_a_limit_hides_what_is_above_it(monkeypatch, variable, limit, kept):
    processor = limited(monkeypatch, limit, variable)
    everything = limited(monkeypatch, None)
    assert processor.features == everything.features & set(kept.split())


@pytest.mark.parametrize("limit", [None, "", "ALL", "AVX512_CORE_AMX", "?"])
def test_other_values_limit_nothing(monkeypatch, limit):
    everything = limited(monkeypatch, None)
    assert limited(monkeypatch, limit) == everything


def test_the_lower_of_two_limits_counts(monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert detect_processor().features <= {"avx2"}


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="nothing to compare with"
)
def test_without_proc_nothing_is_claimed_that_is_not_there(monkeypatch):
    assert _features_from_torch() <= limited(monkeypatch, None).features


# -- precision ------------------------------------------------------------------------


def test_bfloat16_without_units_is_refused(monkeypatch):
    limited(monkeypatch, "AVX512_CORE_VNNI")
    with pytest.raises(KnobError, match="no bfloat16 .*'f32'"):
        make_backend(precision="bf16")


@pytest.mark.parametrize(
    "limit", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"]
)
def test_auto_is_float32_without_tiles(monkeypatch, limit):
    limited(monkeypatch, limit)
    assert make_backend(precision="auto").precision == "f32"


def test_auto_is_what_the_machine_has(monkeypatch):
    processor = limited(monkeypatch, None)
    expected = "bf16" if processor.has_amx else "f32"
    assert make_backend(precision="auto").precision == expected


@pytest.mark.skipif(not MACHINE.has_bf16, reason="no bfloat16 hardware")
def test_bfloat16_where_the_user_wants_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    helpers.quantized(model, helpers.X, keep=["2"])
    calls = [(helpers.X,), (helpers.LONGER,)]
    helpers.compare(model, calls, 0.02, precision="bf16")
    report = runtime_report(model)
    assert report.settings["precision"] == "bf16"
    assert report.num_int8 == 1
    helpers.compare(model, calls, 1e-5, precision="f32")


# -- sums that are cut off --------------------------------------------------------------

# The first channels add up products of the largest weights and inputs, all of
# one sign: in 16 bits each pair overflows.
SCRIPT = """
import json, torch
from torch import nn
from speechbrain_stablequant.runtime import runtime_report
from speechbrain_stablequant.runtime.processor import detect_processor
from tests.unit.runtime.helpers import distance, fast, quantized

torch.set_num_threads(1)
torch.manual_seed(0)
LAYERS = {
    "linear": (lambda: nn.Linear(64, 48), 2),
    "conv1d": (lambda: nn.Conv1d(64, 48, 3), 1),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3), None),
    "attention": (lambda: nn.MultiheadAttention(64, 4, batch_first=True), 2),
}
SCHEMES = {
    "signed": {},
    "unsigned": {"activation_symmetric": False, "activation_signed": False},
    "affine weights": {"weight_symmetric": False},
}
rows = {}
for kind, (make, axis) in LAYERS.items():
    for scheme, knobs in SCHEMES.items():
        if scheme != "signed" and kind != "linear":
            continue  # activations are lowered alike for all kinds of layers
        model = nn.Sequential(make())
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data = 0.1 * weight.sign() * (1 - 0.05 * weight.abs())
                weight.data[:8] = weight[:8].abs()
        shape = {1: (2, 64, 40), 2: (2, 40, 64), None: (2, 8, 9, 9)}[axis]
        x = 0.9 + 0.2 * torch.rand(shape)
        call = (lambda m, x: m[0](x, x, x)[0]) if kind == "attention" else None
        run = call or (lambda m, x: m(x))
        quantized(model, x, call, **knobs)
        with torch.no_grad():
            expected = run(model, x)
            fast(model, allow_float="*" if "affine" in scheme else ())
            difference = distance(run(model, x), expected)
        report = runtime_report(model)
        failures = [u.failure for u in report.units]
        rows[f"{kind} {scheme}"] = [
            difference, report.num_int8, report.notes, failures
        ]
print(json.dumps([detect_processor().saturates, rows]))
"""


def run_with(limit):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": limit, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@needs_x86
@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE"])
def test_where_sums_are_cut_off_weights_lose_one_bit(limit):
    """A weight is off by at most half a step of 7 bits, 1/127 of the largest.

    A sum that is cut off would be wrong by a half.
    """
    saturates, rows = run_with(limit)
    assert saturates
    for name, (difference, num_int8, notes, failures) in rows.items():
        in_a_row = 2 if "attention" in name else 1
        assert difference < 1.01 * in_a_row / 127, name
        assert failures == [None], name
        if "affine" not in name:
            assert num_int8 > 0, name
            assert any("at 7 bits" in note for note in notes), name


@needs_x86
@pytest.mark.parametrize("limit", ["AVX512_CORE_VNNI", "AVX512_CORE_AMX"])
def test_where_sums_are_kept_results_are_exact(limit):
    saturates, rows = run_with(limit)
    assert not saturates
    for name, (difference, num_int8, notes, failures) in rows.items():
        assert difference < (0.005 if "attention" in name else 1e-5), name
        assert failures == [None], name
        assert notes == [], name
        assert num_int8 > 0 or "affine" in name, name


def test_reduced_weights_are_the_same_function_to_half_a_step(monkeypatch):
    """The rule itself, on any processor."""
    from speechbrain_stablequant.runtime.lowering import Lowering, lowered

    pair = helpers.quantized_pair()
    before = {n: getattr(pair, n).weight.clone() for n in "ab"}
    lowering = Lowering(saturates=True)
    with lowered(pair, lowering):
        for name, weight in before.items():
            layer = getattr(pair, name)
            step = layer.weight_scale
            assert layer.weight.sub(weight).abs().le(step * 1.001).all()
            constant = lowering.constant(layer, "weight")
            assert int(constant.values.abs().max()) <= 64
    assert len(lowering.reduced) >= 2
    for name, weight in before.items():
        assert torch.equal(getattr(pair, name).weight, weight)

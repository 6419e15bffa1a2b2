"""A file from a hub is untrusted: refused by name, the model untouched."""

import json
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechbrain_stablequant import load_quantized, read_header
from speechbrain_stablequant.artifacts import checkpoint, checkpoint_reader
from speechbrain_stablequant.errors import CheckpointError
from tests.samples import make_golden as golden


@pytest.fixture
def good(tmp_path):
    model, plan = golden.quantized("linear_affine4")
    return checkpoint.save_quantized(model, tmp_path / "hub.ckpt", plan)


def refuse(path, match=None, name="linear_affine4"):
    """Loading fails by name, and leaves the float model bit for bit."""
    model, _ = golden.build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parameters = list(model.parameters())
    with pytest.raises(CheckpointError, match=match) as info:
        load_quantized(model, path)
    assert path.name in str(info.value)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert all(a is b for a, b in zip(model.parameters(), parameters))


def rewrite(path, tensors=None, change=None, **fields):
    """Write a changed file whose hash is right all the same."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    data = load_file(path)
    data.update(tensors or {})
    data = {k: v for k, v in data.items() if v is not None}
    if change is not None:
        content = json.loads(header["plan"])
        change(content)
        header["plan"] = json.dumps(content)
    header.update(fields)
    if "sha256" not in fields and header["plan"] is not None:
        header["sha256"] = checkpoint_reader.content_digest(data, header)
    save_file(data, path, {k: v for k, v in header.items() if v is not None})
    return path


def test_rewriting_nothing_is_accepted(good):
    load_quantized(golden.build("linear_affine4")[0], rewrite(good))


def test_truncated_anywhere(good):
    data = good.read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) - 1, *range(10, len(data), 97)}:
        good.write_bytes(data[:length])
        refuse(good)


def test_every_flipped_bit_is_noticed(good):
    data = good.read_bytes()
    for position in range(0, 8 * len(data), 61):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        good.write_bytes(bytes(changed))
        refuse(good)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 1, 0])
def test_header_length_is_checked(good, length):
    data = good.read_bytes()
    good.write_bytes(struct.pack("<Q", length) + data[8:])
    refuse(good)


def test_more_bytes_than_the_float_model_has(good):
    with open(good, "ab") as file:
        file.truncate(10 << 20)
    refuse(good)
    rewrite_big = {"more": torch.zeros(1 << 20)}
    model, plan = golden.quantized("linear_affine4")
    checkpoint.save_quantized(model, good, plan)
    refuse(rewrite(good, rewrite_big), "more than the float model")


def raw_file(path, header, body=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    "shape", [[1 << 40], [1 << 62, 4], [0, 1 << 60], [-1], "x"], ids=str
)
def test_declared_shapes_do_not_allocate(good, shape):
    with safe_open(good, "pt") as file:
        meta = file.metadata()
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    refuse(raw_file(good, {"__metadata__": meta, "0.0.weight_scale": entry}))


def deep(depth=100_000):
    return "[" * depth + "]" * depth


PACKED = "0.0.weight_packed"
SCALE, ZERO = "0.0.weight_scale", "0.0.weight_zero_point"


def edit(*keys, value):
    def change(plan):
        for key in keys[:-1]:
            plan = plan[key]
        plan[keys[-1]] = value

    return change


TENSORS = {
    "missing": ({PACKED: None}, PACKED),
    "missing-bias": ({"0.0.bias": None}, "0.0.bias"),
    "extra": ({"0.0.weigth": torch.zeros(1)}, "weigth"),
    "wrong-type": ({PACKED: torch.zeros(5, 1)}, PACKED),
    "wrong-shape": ({PACKED: torch.zeros(4, 1).int()}, PACKED),
    "wrong-dims": ({PACKED: torch.zeros(5).int()}, PACKED),
    "wrong-bias": ({"0.0.bias": torch.zeros(5).half()}, "0.0.bias"),
    "nan-scale": ({SCALE: torch.full((5, 1), float("nan"))}, SCALE),
    "inf-scale": ({SCALE: torch.full((5, 1), float("inf"))}, SCALE),
    "zero-scale": ({SCALE: torch.zeros(5, 1)}, SCALE),
    "negative-scale": ({SCALE: -torch.ones(5, 1)}, SCALE),
    "zero-point": ({ZERO: torch.full((5, 1), 99, dtype=torch.int8)}, ZERO),
}
WEIGHT = ("layers", "0.0", "weight")
INPUTS = ("layers", "0.0", "inputs")
PLANS = {
    "version": (edit("version", value=99), "version"),
    "other-layer": (edit("layers", "x", value={"weight": {}}), "'x'"),
    "other-kind": (edit("layers", "0.0", "kind", value="Conv1d"), "Linear"),
    "other-bits": (edit(*WEIGHT, "bits", value=8), PACKED),
    "bad-bits": (edit(*WEIGHT, "bits", value=99), "bits"),
    "huge": (edit(*INPUTS, "input", "high", value=1e300), "range"),
    "negative": (
        edit(*INPUTS, "input", "scheme", "signed", value=False),
        "unsigned",
    ),
    "symmetric": (edit(*WEIGHT, "symmetric", value=True), ZERO),
    "no-layers": (edit("layers", value=[]), "layers"),
}
FIELDS = {
    "format": ({"format": "other"}, "format"),
    "version": ({"version": "2"}, "version"),
    "no-plan": ({"plan": None}, "plan"),
    "no-hash": ({"sha256": None}, "sha256"),
    "wrong-hash": ({"sha256": "0" * 64}, "hash"),
    "plan-is-no-json": ({"plan": "{"}, "JSON"),
    "deep-plan": ({"plan": deep()}, "plan"),
    "long-number": ({"plan": "9" * 5000}, "plan"),
    "extra-is-no-json": ({"extra": "{"}, "delimiter|property name"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_checked_although_the_hash_is_right(good, case):
    tensors, match = TENSORS[case]
    refuse(rewrite(good, tensors), match)


@pytest.mark.parametrize("case", PLANS)
def test_plans_are_checked_although_the_hash_is_right(good, case):
    change, match = PLANS[case]
    refuse(rewrite(good, change=change), match)


def test_an_unknown_input_is_refused(good):
    def rename(plan):
        inputs = plan["layers"]["0.0"]["inputs"]
        inputs["inptu"] = inputs.pop("input")

    refuse(rewrite(good, change=rename), "input")


@pytest.mark.parametrize("case", FIELDS)
def test_header_fields_are_checked(good, case):
    fields, match = FIELDS[case]
    refuse(rewrite(good, **fields), match)
    if case not in ("wrong-hash",):
        with pytest.raises(CheckpointError, match=good.name):
            read_header(good)


def test_integers_outside_a_narrow_range(tmp_path):
    model, plan = golden.quantized("linear_w4")
    path = checkpoint.save_quantized(model, tmp_path / "m.ckpt", plan)
    lowest = torch.zeros(5, 1, dtype=torch.int32)  # codes 0: integers -8
    refuse(rewrite(path, {PACKED: lowest}), "-8", "linear_w4")


def test_a_zero_point_that_a_symmetric_layer_does_not_have(tmp_path):
    model, plan = golden.quantized("linear_w4")
    path = checkpoint.save_quantized(model, tmp_path / "m.ckpt", plan)
    zero = {ZERO: torch.zeros(5, 1, dtype=torch.int8)}
    refuse(rewrite(path, zero), "zero_point", "linear_w4")


def test_another_model(good):
    refuse(good, "another model", "attention")


def test_no_file_or_a_folder(tmp_path):
    refuse(tmp_path / "missing.ckpt", "Cannot read")
    refuse(tmp_path, "Cannot read")


def test_header_that_is_not_utf8(good):
    data = bytearray(good.read_bytes())
    data[9:13] = b"\xff\xfe\xff\xfe"
    good.write_bytes(bytes(data))
    refuse(good)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickles_are_refused_and_not_executed(tmp_path, how):
    path = tmp_path / "bomb.ckpt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"w": Bomb()}, path)
    refuse(path)

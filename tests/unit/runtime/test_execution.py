"""The report says what ran, in numbers, words and plain data."""

import json

import pytest
import torch
from torch import nn

from speechbrain_stablequant.runtime import runtime_report
from speechbrain_stablequant.runtime.execution import (
    CompiledModuleReport,
    LayerExecution,
    RuntimeReport,
)
from tests.unit.runtime import helpers
from tests.unit.runtime.helpers import Pair, X, quantized_pair


def report(*rows, **options):
    layers = [
        LayerExecution(str(n), planned, precision, weights=weights)
        for n, (planned, precision, weights) in enumerate(rows)
    ]
    return RuntimeReport("openvino", {"threads": 1}, layers, **options)


INT8, F32 = (True, "int8", ""), (True, "f32", "")
IDLE, REFERENCE = (True, "not run", ""), (True, "reference", "")


@pytest.mark.parametrize(
    ("rows", "counts", "summary"),
    [
        ([], (0, 0, 0), "0 of 0 layers executed in int8"),
        ([INT8, INT8], (2, 2, 2), "2 of 2 layers executed in int8"),
        (
            [INT8, F32, IDLE, REFERENCE, F32],
            (1, 5, 4),
            "1 of 5 layers executed in int8, 2 in f32, 1 in reference, "
            "1 not run",
        ),
        (
            [INT8, (False, "f32", "int4"), (False, "f32", "int4")],
            (1, 1, 1),
            "1 of 1 layers executed in int8; weight-only layers: 2 int4",
        ),
        (
            [(False, "f32", "int8"), (False, "not run", "")],
            (0, 0, 0),
            "0 of 0 layers executed in int8; weight-only layers: 1 int8, "
            "1 not run",
        ),
        (
            # Integers without an input scale are no proof of a fast kernel.
            [(False, "int8", "int8"), IDLE],
            (0, 1, 0),
            "0 of 1 layers executed in int8, 1 not run; weight-only layers: "
            "1 int8",
        ),
    ],
)
def test_counts_and_summary(rows, counts, summary):
    found = report(*rows)
    assert (found.num_int8, found.num_planned, found.num_run) == counts
    assert found.summary() == summary


def test_seconds_are_those_of_all_units():
    units = [
        CompiledModuleReport("a", 1.5),
        CompiledModuleReport("", 0.25, failure="no"),
    ]
    assert report(units=units).seconds == 1.75


def test_lines_tell_settings_failures_and_notes():
    found = report(
        INT8,
        units=[
            CompiledModuleReport("enc"),
            CompiledModuleReport("", failure="it returns None"),
        ],
        notes=["a remark"],
    )
    assert found.lines() == [
        "runtime: openvino (threads 1)",
        "  1 of 1 layers executed in int8",
        "  model: it returns None",
        "  a remark",
    ]


def test_plain_data_can_be_written_and_read():
    found = report(INT8, F32, units=[CompiledModuleReport("a", 1.0, True, 0.5)])
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["num_int8"] == 1
    assert plain["num_planned"] == plain["num_run"] == 2
    assert plain["layers"][1]["precision"] == "f32"
    assert plain["units"] == [
        {
            "name": "a",
            "seconds": 1.0,
            "cached": True,
            "difference": 0.5,
            "failure": None,
        }
    ]


# -- of a model ------------------------------------------------------------------


def test_layers_that_were_never_called_are_not_run():
    class Half(Pair):
        def forward(self, x):
            return self.a(x)

    model = quantized_pair(Half)
    helpers.fast(model)
    before = runtime_report(model)
    assert before.summary().endswith(
        "0 of 2 layers executed in int8, 2 not run"
    )
    with torch.no_grad():
        model(X)
    after = runtime_report(model)
    assert {r.name: r.precision for r in after.layers} == {
        "a": "int8",
        "b": "not run",
    }
    assert before.num_run == 0  # a report is of its moment
    json.dumps(after.to_dict())


def test_the_worst_way_that_a_layer_ran_counts():
    class Either(Pair):
        def forward(self, x, odd=False):
            y = self.a(x)
            return self.b(y.float() if not odd else y[..., 0, :])

    model = quantized_pair(Either)
    helpers.fast(model, allow_float="*")
    with torch.no_grad():
        model(X)
        assert runtime_report(model).num_int8 == 2
        variant = next(
            iter(
                model.__dict__["_stablequant_acceleration"]
                .modules[0]
                .variants.values()
            )
        )
        variant.compiled.layers[1].precision = "f32"
        model(X, odd=True)
    assert {r.name: r.precision for r in runtime_report(model).layers} == {
        "a": "int8",
        "b": "f32",
    }


def test_names_are_those_of_the_whole_model():
    model = nn.ModuleDict({"enc": nn.Sequential(quantized_pair())}).eval()
    helpers.fast(model)
    with torch.no_grad():
        model["enc"](X)
    found = runtime_report(model)
    assert [r.name for r in found.layers] == ["enc.0.a", "enc.0.b"]
    assert [u.name for u in found.units] == ["enc"]
    assert found.num_int8 == 2


def test_a_shared_layer_is_one_layer():
    pair = quantized_pair()
    model = nn.Sequential(pair.a, pair.b, pair.a).eval()
    helpers.compare(model, [(X,)], 0.02)
    found = runtime_report(model)
    assert [r.precision for r in found.layers] == ["int8", "int8"]
    assert found.num_planned == 2

"""Keys of compiled models: equal only where a module computes the same."""

import functools

import pytest
import torch
from torch import nn

from speechbrain_stablequant.runtime import decelerate
from speechbrain_stablequant.runtime.accelerate import make_backend
from speechbrain_stablequant.runtime.cache import module_digest
from speechbrain_stablequant.runtime.tracing import Signature
from tests.unit.runtime.cache_helpers import (
    change_bias,
    files,
    start,
    was_cached,
)
from tests.unit.runtime.helpers import X, distance, quantized_pair


def key(model, **options):
    backend = make_backend(**{"threads": 1, **options})
    signature, _ = Signature.of((X,), {})
    return backend.key(model, signature, backend.versions)


def test_an_equal_model_has_the_same_key(pair):
    twin = quantized_pair()
    assert key(twin) != key(pair)
    twin.load_state_dict(pair.state_dict())
    assert key(twin) == key(pair)


def test_the_key_does_not_depend_on_what_happened_before(pair, tmp_path):
    before = key(pair)
    start(pair, tmp_path)
    assert key(pair) == before
    decelerate(pair)
    pair.train().eval()
    handle = pair.register_forward_hook(lambda *args: None)
    handle.remove()
    assert key(pair) == before


def change_weight(model):
    values = model.a.weight_values
    values[0, 0] = 3 if values[0, 0] != 3 else 4


def change_scale(model):
    model.a.input_scale.mul_(1.001)


def set_attribute(name, value):
    return lambda model: setattr(model, name, value)


def scaled(x, by=2.0):
    return x * by


CHANGES = {
    "weight": change_weight,
    "bias": change_bias,
    "input scale": change_scale,
    "number": set_attribute("factor", 3.0),
    "text": set_attribute("mode", "causal"),
    "list": set_attribute("sizes", [1, (2, {"a": 3})]),
    "set": set_attribute("names", {"a"}),
    "function": set_attribute("act", torch.tanh),
    "python function": set_attribute("act", scaled),
    "partial": set_attribute("act", functools.partial(scaled, by=3.0)),
    "lambda": set_attribute("act", lambda x: x * 5),
    "class": set_attribute("kind", nn.ReLU),
    "tensor": set_attribute("table", [torch.arange(3.0)]),
    "unregistered layer": set_attribute("inside", [nn.Linear(2, 2)]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_gives_another_key(pair, change):
    before = module_digest(pair)
    CHANGES[change](pair)
    assert module_digest(pair) != before
    assert module_digest(pair) == module_digest(pair)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tanh, torch.relu),
        (lambda x: x * 5, lambda x: x * 6),
        (functools.partial(scaled, by=3.0), functools.partial(scaled, by=4.0)),
        (nn.ReLU, nn.GELU),
        ([torch.zeros(3)], [torch.ones(3)]),
        (1, 1.0),
        (1, True),
        ({"a": None}, {"a": 0}),
        (torch.float16, torch.bfloat16),
    ],
)
def test_attributes_that_differ_give_different_keys(pair, one, other):
    digests = []
    for value in (one, other):
        pair.value = value
        digests.append(module_digest(pair))
    assert digests[0] != digests[1]


def test_functions_with_another_closure_give_different_keys(pair):
    def power(exponent):
        return lambda x: x**exponent

    digests = set()
    for exponent in (2, 3, 2):
        pair.value = power(exponent)
        digests.add(module_digest(pair))
    assert len(digests) == 2


def test_a_module_that_refers_to_its_parent_has_a_key(pair):
    pair.a.parent = [pair]
    assert module_digest(pair) == module_digest(pair)


def test_the_source_of_a_class_gives_another_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = set()
    for name, factor in (("one", 2), ("two", 3)):
        (tmp_path / f"{name}_module.py").write_text(
            "from tests.unit.runtime.helpers import Pair\n"
            "class Mine(Pair):\n"
            f"    def forward(self, x):\n        return {factor} * self.a(x)\n"
        )
        module = __import__(f"{name}_module")
        torch.manual_seed(3)
        digests.add(module_digest(module.Mine()))
    assert len(digests) == 2


def test_the_plan_gives_another_key():
    keys = set()
    for bits in ("W8A8", "W8A7", "W8"):
        torch.manual_seed(3)
        keys.add(key(quantized_pair(bits=bits)))
    assert len(keys) == 3


def test_settings_give_another_key(pair):
    keys = {key(pair), key(pair, threads=2), key(pair, precision="f32")}
    assert len(keys) == 2  # f32 is what auto means here, or it is not
    signature, _ = Signature.of((X, 1), {})
    other, _ = Signature.of((X, 1.0), {})
    backend = make_backend(threads=1)
    versions = backend.versions
    assert backend.key(pair, signature, versions) != backend.key(
        pair, other, versions
    )
    assert backend.key(pair, other, versions) != backend.key(
        pair, other, {**versions, "openvino": "1"}
    )


def test_processor_features_give_another_key(pair, monkeypatch):
    keys = set()
    for limit in ("AVX2", "AVX512_CORE"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        keys.add(key(pair))
    assert len(keys) == 2


def test_a_changed_model_is_compiled_again(pair, tmp_path):
    start(pair, tmp_path)
    assert was_cached(pair, tmp_path)
    decelerate(pair)
    change_bias(pair)
    expected = pair(X)
    result, units = start(pair, tmp_path)
    assert not units[0].cached
    assert distance(result, expected) < 1e-5
    assert len(files(tmp_path, ".blob")) == 2

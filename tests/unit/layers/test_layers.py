"""Each kind of layer against an explicit reference, and its contract."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from speechbrain_stablequant.core.plan import LayerPlan, QuantizationScheme
from speechbrain_stablequant.layers import kind_of, quantized_class
from tests.unit.layers import helpers

X = torch.linspace(-3, 3, 2 * 16 * 12).reshape(2, 16, 12).sin() * 3


def old_norm(module, dim=0):
    return weight_norm(module, dim=dim)


def new_norm(module, dim=0):
    return parametrizations.weight_norm(module, dim=dim)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 5), X),
    "linear-no-bias": (lambda: nn.Linear(12, 5, bias=False), X),
    "conv1d": (lambda: nn.Conv1d(16, 8, 3), X),
    "conv1d-no-bias": (lambda: nn.Conv1d(16, 8, 3, bias=False), X),
    "conv1d-strided": (
        lambda: nn.Conv1d(16, 8, 3, stride=2, dilation=2, groups=4, padding=2),
        X,
    ),
    "conv1d-same": (lambda: nn.Conv1d(16, 8, 4, padding="same"), X),
    **{
        f"conv1d-{mode}": (
            lambda mode=mode: nn.Conv1d(16, 8, 3, padding=2, padding_mode=mode),
            X,
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "conv2d": (
        lambda: nn.Conv2d(2, 6, (3, 2), stride=(2, 1), groups=2),
        X.reshape(2, 2, 8, 12),
    ),
    "deconv": (lambda: nn.ConvTranspose1d(16, 8, 3, stride=2), X),
    "deconv-groups": (
        lambda: nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1, groups=4),
        X,
    ),
    "embedding": (
        lambda: nn.Embedding(20, 6, padding_idx=0),
        torch.arange(20).reshape(2, 10),
    ),
    "lstm": (lambda: nn.LSTM(12, 5, 2, bidirectional=True), X),
    "lstm-proj": (lambda: nn.LSTM(12, 5, proj_size=3, batch_first=True), X),
    "gru": (lambda: nn.GRU(12, 5, 2, batch_first=True), X),
    "rnn": (lambda: nn.RNN(12, 5, bidirectional=True, bias=False), X),
    "old-weight-norm": (lambda: old_norm(nn.Conv1d(16, 8, 3)), X),
    "old-weight-norm-dim2": (lambda: old_norm(nn.Conv1d(16, 8, 3), 2), X),
    "old-weight-norm-all": (lambda: old_norm(nn.Linear(12, 4), None), X),
    "new-weight-norm": (lambda: new_norm(nn.Conv1d(16, 8, 3)), X),
    "new-weight-norm-dim2": (lambda: new_norm(nn.Conv1d(16, 8, 3), 2), X),
}
EXPORTED = [n for n in LAYERS if not n.startswith("old")]


@pytest.mark.parametrize("name", LAYERS)
def test_contract(name):
    make, x = LAYERS[name]
    helpers.check_contract(nn.Sequential(make()), x)


@pytest.mark.parametrize("name", EXPORTED)
def test_export_agrees(name):
    make, x = LAYERS[name]
    helpers.check_export(nn.Sequential(make()), x)


@pytest.mark.parametrize("plan", [helpers.INPUT, helpers.AFFINE_INPUT])
@pytest.mark.parametrize(
    "name", [n for n in LAYERS if n.startswith(("linear", "conv"))]
)
def test_output_is_the_float_layer_on_rounded_values(name, plan):
    make, x = LAYERS[name]
    layer, twin = make(), make()
    rows = helpers.rounded_rows(layer.weight.detach().flatten(1))
    twin.load_state_dict(layer.state_dict())
    twin.weight = nn.Parameter(rows.reshape(layer.weight.shape))
    expected = helpers.output(twin, helpers.fake_input(x, plan))
    conversion = helpers.Conversion(layer)
    scheme = QuantizationScheme(8)
    conversion.set(
        "", LayerPlan(scheme, weight_observer="max", inputs={"input": plan})
    )
    conversion.quantize()
    torch.testing.assert_close(
        helpers.output(layer, x), expected, rtol=1e-4, atol=1e-4
    )


def test_rows_of_a_transposed_convolution_are_its_output_channels():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
    weight = layer.weight.detach()
    to_rows = quantized_class(layer).to_rows
    rows = to_rows(layer, "weight", weight)
    for out in range(6):
        group, inside = divmod(out, 3)
        mine = [weight[i, inside] for i in range(2 * group, 2 * group + 2)]
        assert torch.equal(rows[out], torch.cat(mine))
    conversion = helpers.convert(layer, inputs=None)
    assert torch.equal(
        to_rows(layer, "weight", layer.weight).amax(1) > 0, rows.amax(1) > 0
    )
    back = to_rows(layer, "weight", layer.weight)
    assert float((back - rows).abs().max()) < float(rows.abs().max()) / 127
    conversion.restore()


def test_changing_one_output_channel_changes_only_its_scale():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
    cls = quantized_class(layer)
    plan = LayerPlan(QuantizationScheme(8))
    before = cls.quantize_weights(layer, plan)["weight"].scale
    with torch.no_grad():
        layer.weight[2:, 1] *= 100  # second group, its second channel: 4
    after = cls.quantize_weights(layer, plan)["weight"].scale
    assert (before != after).flatten().nonzero().tolist() == [[4]]


def test_packed_sequences_go_through_a_recurrent_layer():
    layer = nn.LSTM(12, 5, bidirectional=True, batch_first=True)
    packed = nn.utils.rnn.pack_padded_sequence(
        X, torch.tensor([16, 9]), batch_first=True
    )
    conversion = helpers.convert(layer, bits=8)
    with torch.no_grad():
        whole, _ = layer(X[1:, :9])
        out, _ = nn.utils.rnn.pad_packed_sequence(
            layer(packed)[0], batch_first=True
        )
    torch.testing.assert_close(out[1:, :9], whole)
    assert not out[1, 9:].any()
    conversion.restore()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    ["linear-no-bias", "conv1d-no-bias", "linear", "embedding", "rnn", "lstm"],
)
def test_type_changes_reach_the_weights_but_not_the_scales(name, dtype):
    make, x = LAYERS[name]
    model = nn.Sequential(make())
    conversion = helpers.convert(model)
    expected = helpers.output(model, x)
    scales = {
        k: v.clone() for k, v in model.named_buffers() if k.endswith("_scale")
    }
    model.to(dtype)
    narrow = x.to(dtype) if x.is_floating_point() else x
    got = helpers.output(model, narrow)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.1)
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[k], v) for k, v in scales.items())
    model.float()
    torch.testing.assert_close(
        helpers.output(model, x), expected, rtol=0.02, atol=0.02
    )
    conversion.restore()


class Doubled(nn.Linear):
    """A subclass with a ``forward`` of its own."""

    def forward(self, x):
        return 2 * F.linear(x, self.weight)


def test_a_subclass_keeps_its_forward_and_its_type():
    layer = Doubled(12, 5)
    assert kind_of(layer) == "Doubled"
    plain = helpers.output(layer, X)
    conversion = helpers.convert(layer, inputs=None)
    assert isinstance(layer, Doubled)
    assert kind_of(layer) == "Doubled"
    expected = 2 * F.linear(X, layer.weight)
    assert torch.equal(helpers.output(layer, X), expected)
    assert not torch.equal(expected, plain)
    conversion.restore()
    assert type(layer) is Doubled


def test_repr_tells_the_schemes():
    layer = nn.Linear(4, 2)
    helpers.convert(layer, bits=4)
    text = repr(layer)
    assert "int4 symmetric per channel" in text
    assert "in_features=4" in text

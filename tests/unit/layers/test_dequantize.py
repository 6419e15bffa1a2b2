"""The float model that integers stand for, and back."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.layers.dequantize import in_float


def _cases():
    return {
        "linear": (nn.Linear(8, 4), torch.randn(2, 8)),
        "conv": (nn.Conv1d(4, 4, 3), torch.randn(2, 4, 9)),
        "lstm": (nn.LSTM(8, 8, bidirectional=True), torch.randn(5, 2, 8)),
        "gru": (nn.GRU(8, 8), torch.randn(5, 2, 8)),
        "embedding": (nn.Embedding(9, 8), torch.tensor([[1, 2]])),
    }


@pytest.mark.parametrize("name", sorted(_cases()))
def test_weights_of_the_integers_in_a_float_layer(name):
    torch.manual_seed(0)
    layer, data = _cases()[name]
    net = nn.Sequential(layer).eval()
    quantize(net, [data], bits="W4", progress=False, min_coverage=0)
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    with torch.no_grad():
        before = first(net(data))
        buffers = {n: t.clone() for n, t in net.named_buffers()}
        with in_float(net):
            assert type(net[0]) is type(layer) or not isinstance(
                net[0], QuantizedModule
            )
            assert not dict(net.named_buffers())
            # Only weights are quantized here, so float layers do the same
            assert torch.allclose(first(net(data)), before, atol=1e-6)
        assert isinstance(net[0], QuantizedModule)
        assert torch.equal(first(net(data)), before)
    after = dict(net.named_buffers())
    assert all(torch.equal(buffers[n], after[n]) for n in buffers)


def test_inputs_are_not_quantized():
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(2, 8)
    quantize(net, [data], bits="W8A2", progress=False, min_coverage=0)
    with torch.no_grad(), in_float(net):
        expected = nn.functional.linear(data, net[0].weight, net[0].bias)
        assert torch.equal(net(data), expected)


def test_back_after_an_error():
    net = nn.Sequential(nn.Linear(8, 4)).eval()
    quantize(net, [torch.randn(2, 8)], bits="W8A8", progress=False)
    with pytest.raises(ZeroDivisionError), in_float(net):
        raise ZeroDivisionError
    assert isinstance(net[0], QuantizedModule)

"""What every quantized layer has to keep, checked in one place."""

import copy

import torch

from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.layers import (
    Conversion,
    QuantizedModule,
    cached_weights,
    kind_of,
    quantizable_layers,
)

INPUT = InputPlan(QuantizationScheme(8, granularity="per_tensor"), -4.0, 4.0)
AFFINE_INPUT = InputPlan(
    QuantizationScheme(8, False, False, "per_tensor", narrow_range=False),
    -3.0,
    4.0,
)


def output(model, *args, **kwargs):
    """Return the first tensor of a model's output."""
    with torch.no_grad():
        y = model(*args, **kwargs)
    y = getattr(y, "last_hidden_state", y)
    return y[0] if isinstance(y, tuple) else y


def layer_plan(module, cls, bits=8, inputs=INPUT):
    names = cls.input_names if inputs is not None else ()
    return LayerPlan(
        QuantizationScheme(bits=bits),
        kind=kind_of(module),
        inputs=dict.fromkeys(names, inputs),
    )


def convert(model, bits=8, inputs=INPUT):
    """Quantize all layers of a model and return the conversion."""
    conversion = Conversion(model)
    for name, module, cls in quantizable_layers(model):
        conversion.set(name, layer_plan(module, cls, bits, inputs))
    conversion.quantize()
    return conversion


def fake_input(x, plan=INPUT):
    """Quantize an input by the definition."""
    scheme = plan.scheme
    steps = scheme.qmax - scheme.qmin
    scale = max(-plan.low, plan.high) / scheme.qmax
    zero = 0
    if not scheme.symmetric:
        scale = (plan.high - plan.low) / steps
        zero = round(scheme.qmin - plan.low / scale)
    q = (x / scale).round().add(zero).clamp(scheme.qmin, scheme.qmax)
    return (q - zero) * scale


def rounded_rows(rows, bits=8):
    """Quantize and dequantize rows, each with the scale of its maximum."""
    top = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(1, keepdim=True) / top
    return (rows / scale).round().clamp(-top, top) * scale


def check_contract(model, *args, exact_float=True):
    """Convert and restore; everything that must survive does."""
    model.eval()
    before = {n: (p, p.detach().clone()) for n, p in model.named_parameters()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modules = dict(model.named_modules())
    y = output(model, *args)
    conversion = convert(model)
    kept = dict(model.named_modules())
    assert all(modules[n] is m for n, m in kept.items())
    quantized = output(model, *args)
    layers = [m for m in model.modules() if isinstance(m, QuantizedModule)]
    assert layers
    assert torch.isfinite(quantized).all()
    assert not torch.equal(quantized, y)
    error = (quantized - y).norm() / y.norm()
    assert float(error) < 0.2
    _check_copies(model, args, quantized)
    conversion.restore()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, value)
    assert torch.equal(output(model, *args), y)


def _check_copies(model, args, quantized):
    """A copy, a loaded state, cached weights and an export agree."""
    with cached_weights(model):
        assert torch.equal(output(model, *args), quantized)
        assert torch.equal(output(model, *args), quantized)
    twin = copy.deepcopy(model)
    assert torch.equal(output(twin, *args), quantized)
    with torch.no_grad():
        for buffer in twin.buffers():
            buffer.zero_()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(output(twin, *args), quantized)


def check_export(model, *args):
    """A traced program computes what the quantized model computes."""
    model.eval()
    conversion = convert(model)
    expected = output(model, *args)
    program = torch.export.export(model, args, strict=False)
    torch.testing.assert_close(
        output(program.module(), *args), expected, rtol=1e-5, atol=1e-5
    )
    conversion.restore()

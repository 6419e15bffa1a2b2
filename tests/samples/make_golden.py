"""Golden checkpoints: what a version wrote, every later one must read.

``python tests/samples/make_golden.py tests/samples/golden_v1`` writes, for each
model below, ``<name>.ckpt`` (a quantized checkpoint) and ``<name>.io.safetensors``
(an input, the output, and the integers and scales of each layer). It refuses
to overwrite: files in the tree stay what a released version once wrote. A new
format version gets a new folder.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from speechbrain_stablequant import QuantizationPlan, save_quantized
from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.layers import (
    Conversion,
    QuantizedModule,
    kind_of,
    quantizable_layers,
)

INPUT = InputPlan(
    QuantizationScheme(granularity="per_tensor"), -2.5, 2.5, "mse"
)
AFFINE = {"symmetric": False, "narrow_range": False}
GROUPS = {"granularity": "per_group", "group_size": 3}


class First(nn.Module):
    """A recurrent layer without its state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class SelfAttention(nn.Module):
    """Attention from a sequence to itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


def linear():
    return nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(6), nn.Linear(5, 3))


LAYERS = {
    "conv1d": lambda: nn.Conv1d(6, 4, 3, groups=2),
    "conv2d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 3, 2)
    ),
    "deconv": lambda: nn.ConvTranspose1d(6, 4, 3, groups=2),
    "embedding": lambda: nn.Embedding(9, 4),
    "lstm": lambda: First(nn.LSTM(8, 3, bidirectional=True)),
    "attention": SelfAttention,
}
SCHEMES = {
    **{f"w{bits}": {"bits": bits} for bits in range(1, 9)},
    "w16": {"bits": 16, "dtype": "float16"},
    "affine4": {"bits": 4, **AFFINE},
    "affine8u": {"bits": 8, "signed": False, **AFFINE},
    "tensor6": {"bits": 6, "granularity": "per_tensor"},
    "groups3": {"bits": 3, **GROUPS},
}
MODELS = {
    **{name: (make, {"bits": 4}) for name, make in LAYERS.items()},
    **{f"linear_{name}": (linear, kw) for name, kw in SCHEMES.items()},
}


def build(name):
    """Return a float model and its scheme, the same each time."""
    torch.manual_seed(1)
    make, scheme = MODELS[name]
    return nn.Sequential(make()).eval(), QuantizationScheme(**scheme)


def example(name):
    if name == "embedding":
        return torch.arange(9).reshape(3, 3)
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))


def integers(model):
    """Return integers and scales of all layers, by name."""
    return {
        f"{name}.{short}.{part}": tensor.clone()
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedModule)
        for short in layer._weight_schemes
        for part, tensor in layer.quantized_weight(short)._asdict().items()
        if tensor is not None
    }


def quantized(name):
    """Return a converted model and its plan."""
    model, scheme = build(name)
    conversion = Conversion(model)
    plan = QuantizationPlan(
        {
            layer: LayerPlan(
                scheme,
                kind_of(module),
                inputs=dict.fromkeys(cls.input_names, INPUT),
            )
            for layer, module, cls in quantizable_layers(model)
        }
    )
    conversion.apply_plan(plan)
    return model, plan


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        paths = folder / f"{name}.ckpt", folder / f"{name}.io.safetensors"
        for path in paths:
            if path.exists():
                sys.exit(f"{path} exists: golden files are never rewritten.")
        model, plan = quantized(name)
        x = example(name)
        with torch.no_grad():
            y = model(x).clone()
        save_quantized(model, paths[0], plan)
        save_file({"x": x, "y": y, **integers(model)}, paths[1])


if __name__ == "__main__":
    main(sys.argv[1])

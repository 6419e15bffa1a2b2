"""SpeechBrain's ECAPA-TDNN on (batch, time, channels).

SpeechBrain's layers take (batch, channels, time) and pad by reflection, one
copy each. Here convolutions gather the reflected frames by index (`layout`),
and the whole model stays in one layout.
"""

from functools import partial

import torch
import torch.nn.functional as F
from speechbrain.lobes.models import ECAPA_TDNN as ecapa

from speechbrain_stablequant.runtime.rewrites.layout import (
    is_matrix_product,
    matrix_of,
    quantize_if_planned,
    taken,
)

__all__ = ["rewrite_ecapa"]


class _Conv:
    """A "same" convolution with reflected frames at both ends."""

    def __init__(self, conv):
        self.conv = conv
        self.matrix = matrix_of(conv)

    def __call__(self, x):
        """Apply the convolution; as many frames come out as go in."""
        x = _reflected_windows(
            quantize_if_planned(self.conv, x),
            self.conv.kernel_size[0],
            self.conv.dilation[0],
        )
        return F.linear(x, self.matrix(), self.conv.bias)


def _reflected_windows(x, kernel, dilation):
    """Return the windows of a convolution with reflection at both ends."""
    if kernel == 1:
        return x
    last = x.shape[1] - 1
    taps = (torch.arange(kernel, device=x.device) - kernel // 2) * dilation
    positions = torch.arange(x.shape[1], device=x.device)[:, None] + taps
    # A frame before the first is one after it, one after the last before it.
    return taken(x, last - (last - positions.abs()).abs())


def _batch_norm(norm, x):
    """``nn.BatchNorm1d`` in evaluation, as one product and one sum."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return x * scale + (shift + norm.bias if norm.affine else shift)


def _res2net(layer, x):
    """Apply each block to its share of the channels plus the last."""
    parts = list(torch.chunk(x, layer.scale, dim=-1))
    for i, block in enumerate(layer.blocks, start=1):
        part = parts[i] if i == 1 else parts[i] + parts[i - 1]
        parts[i] = block(part)
    return torch.cat(parts, dim=-1)


def _squeeze_excitation(block, x, lengths=None):
    """Scale each channel by what its mean says."""
    if lengths is None:
        mean = x.mean(dim=1, keepdim=True)
    else:
        mask = _mask(x, lengths)
        mean = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    mean = block.relu(block.conv1(mean))
    return block.sigmoid(block.conv2(mean)) * x


def _mask(x, lengths):
    """Return 1 for frames of an utterance, 0 for padding: (batch, time, 1)."""
    time = x.shape[1]
    # Looked up when called: `trace_patches` replaces it during a trace.
    mask = ecapa.length_to_mask(lengths * time, max_len=time, device=x.device)
    return mask.unsqueeze(-1)


def _pool(pooling, x, lengths=None):
    """Return mean and deviation over time, weighted by attention.

    With global context the attention sees each frame together with mean and
    deviation of the whole utterance. Their share of its first convolution is
    the same for all frames and is computed once (`_ContextConv`).
    """

    def statistics(weight):
        mean = (weight * x).sum(1, keepdim=True)
        variance = (weight * (x - mean).square()).sum(1, keepdim=True)
        return mean, variance.clamp(pooling.eps).sqrt()

    mask = None if lengths is None else _mask(x, lengths)
    seen = x
    if pooling.global_context:
        weight = 1 / x.shape[1]
        if mask is not None:
            weight = mask / mask.sum(1, keepdim=True)
        seen = (x, *statistics(weight))
    scores = pooling.conv(pooling.tanh(pooling.tdnn(seen)))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    return torch.cat(statistics(F.softmax(scores, dim=1)), dim=-1)


class _ContextConv:
    """First convolution of the pooling's attention, with global context."""

    def __init__(self, conv):
        self.conv = conv
        own = conv.in_channels // 3
        self.frames = matrix_of(conv, slice(0, own))
        self.context = matrix_of(conv, slice(own, None))

    def __call__(self, seen):
        """Apply to frames, and to their mean and deviation only once."""
        x, *statistics = seen
        x = quantize_if_planned(self.conv, x)
        context = torch.cat(statistics, -1)
        context = quantize_if_planned(self.conv, context)
        context = F.linear(context, self.context(), self.conv.bias)
        return F.linear(x, self.frames()) + context


_FORWARDS = {
    ecapa.Res2NetBlock: _res2net,
    ecapa.SEBlock: _squeeze_excitation,
    ecapa.AttentiveStatisticsPooling: _pool,
}


def _supported(layer):
    """Return whether a layer is of a kind that is rewritten here."""
    if isinstance(layer, ecapa.Conv1d):
        size = layer.conv.kernel_size[0]
        return (
            is_matrix_product(layer.conv)
            and layer.conv.stride == (1,)
            and size % 2 == 1
            and (
                size == 1
                or (layer.padding, layer.padding_mode) == ("same", "reflect")
            )
        )
    return (
        not layer.training
        and layer.norm.track_running_stats
        and not layer.combine_batch_time
    )


def _model(model, x, lengths=None):
    """Apply the whole model."""
    outputs = []
    for layer in model.blocks:
        if isinstance(layer, ecapa.SERes2NetBlock):
            x = layer(x, lengths=lengths)
        else:
            x = layer(x)
        outputs.append(x)
    x = model.mfa(torch.cat(outputs[1:], dim=-1))
    x = model.asp_bn(model.asp(x, lengths=lengths))
    return model.fc(x)


def rewrite_ecapa(module):
    """Return new ``forward`` functions for an ECAPA-TDNN and its layers."""
    if not isinstance(module, ecapa.ECAPA_TDNN):
        return []
    wrappers = [
        m
        for m in module.modules()
        if isinstance(m, (ecapa.Conv1d, ecapa.BatchNorm1d))
    ]
    if not all(map(_supported, wrappers)):
        return []
    changes = [(module, partial(_model, module))]
    for wrapper in wrappers:
        if isinstance(wrapper, ecapa.Conv1d):
            inner, forward = wrapper.conv, _Conv(wrapper.conv)
        else:
            inner, forward = wrapper.norm, partial(_batch_norm, wrapper.norm)
        # SpeechBrain's wrapper would transpose and pad.
        changes += [(wrapper, inner.__call__), (inner, forward)]
    for layer in module.modules():
        forward = _FORWARDS.get(type(layer))
        if forward is not None:
            changes.append((layer, partial(forward, layer)))
    if module.asp.global_context:
        conv = module.asp.tdnn.conv.conv
        changes.append((conv, _ContextConv(conv)))
    return [(target, "forward", new) for target, new in changes]

"""Attention with relative positions."""

import math
from functools import partial

import torch
from speechbrain.nnet.attention import RelPosEncXL, RelPosMHAXL

from speechbrain_stablequant.layers.attention import DecomposedWavLMAttention

__all__ = [
    "rewrite_relative_attention",
    "rewrite_relative_encoding",
    "rewrite_wavlm_attention",
]


def _rel_shift(x):
    """Shift row i of the scores by i positions (Transformer-XL).

    Scores are given for each relative position; each query needs those that
    begin one place further left than for the query before. In the flattened
    matrix this is one slice, reshaped to rows that are one value shorter. The
    original pads a column, copies, and slices twice.
    """
    batch, heads, queries, positions = x.shape
    step = positions - 1
    x = x.reshape(batch, heads, -1)
    x = x[:, :, queries - 1 : queries - 1 + queries * step]
    x = x.reshape(batch, heads, queries, -1)
    return x[..., : positions // 2 + 1]


def rewrite_relative_attention(module):
    """Return a cheaper ``rel_shift`` for ``RelPosMHAXL`` (Conformer)."""
    if not isinstance(module, RelPosMHAXL) or module.mask_pos_future:
        return []
    return [(module, "rel_shift", _rel_shift)]


def rewrite_relative_encoding(module):
    """Return a ``make_pe`` for ``RelPosEncXL`` that assigns to no slices."""
    if type(module) is not RelPosEncXL:
        return []

    def make_pe(seq_len):
        frequencies = module.inv_freq
        steps = torch.arange(
            2 * seq_len - 1, dtype=torch.float32, device=frequencies.device
        )
        # The encoding of a distance is the same for past and future, so that
        # no two halves need to be computed, flipped and joined.
        distance = (steps - (seq_len - 1)).abs().unsqueeze(-1)
        angles = distance * frequencies
        # Joined row by row, then interleaved: cheaper than to stack scalars.
        waves = torch.stack([angles.sin(), angles.cos()], dim=1)
        waves = waves.transpose(1, 2).flatten(1)
        return waves.unsqueeze(0).to(module.emb_dtype)

    return [(module, "make_pe", make_pe)]


def _wavlm_attention(
    attention,
    hidden_states,
    attention_mask,
    gated_position_bias,
    output_attentions=True,
):
    """WavLM's attention, with position bias and padding added one by one.

    Each sum is fused into the attention kernel. The original
    (`DecomposedWavLMAttention`) first adds the two to each other: one more
    tensor of (batch, heads, time, time).
    """
    heads = attention.num_heads
    batch, time, _ = hidden_states.shape
    q, k, v = (
        project(hidden_states).reshape(batch, time, heads, -1)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q = q.transpose(1, 2) * math.sqrt(1.0 / q.shape[-1])
    scores = q @ k.permute(0, 2, 3, 1)
    scores = scores + gated_position_bias.view(batch, heads, time, time)
    if attention_mask is not None:
        padding = attention_mask.ne(1).view(batch, 1, 1, time)
        scores = scores + torch.zeros_like(
            padding, dtype=scores.dtype
        ).masked_fill(padding, -math.inf)
    weights = scores.softmax(-1)
    out = weights @ v.transpose(1, 2)
    out = attention.out_proj(out.transpose(1, 2).flatten(2))
    return out, weights.mean(dim=1, keepdim=True).expand_as(weights)


def rewrite_wavlm_attention(module):
    """Return attention for WavLM whose masks fit into one kernel."""
    if not isinstance(module, DecomposedWavLMAttention) or module.training:
        return []
    name = "torch_multi_head_self_attention"
    return [(module, name, partial(_wavlm_attention, module))]

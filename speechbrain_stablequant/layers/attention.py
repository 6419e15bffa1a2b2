"""Attention layers that hold raw weights: decomposed, then quantized.

``torch.nn.MultiheadAttention`` (inside SpeechBrain's ``regularMHA``) and
WavLM's attention hand raw weights to one fused function, so that neither an
observer nor a quantizer can see what enters the output projection. Their
*decomposed* versions compute the same function, but call their projections as
layers.
"""

import math

import torch
import torch.nn.functional as F
from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA
from torch import nn

from speechbrain_stablequant.layers.base import (
    DequantizedParameter,
    MixinBase,
    QuantizedModule,
    register,
)

__all__ = [
    "DecomposedMultiheadAttention",
    "DecomposedWavLMAttention",
    "QuantizedMultiheadAttention",
    "QuantizedRelPosMHAXL",
    "QuantizedRoPEMHA",
]


def _attend(q, k, v, heads, mask, dropout, need_weights):
    """Scaled dot-product attention on (batch, time, embedding) tensors.

    Arguments
    ---------
    q, k, v : torch.Tensor
        Projected queries, keys and values.
    heads : int
        Number of heads.
    mask : torch.Tensor, optional
        Added to the scores; broadcasts to (batch, heads, queries, keys).
    dropout : float
        Probability of dropping an attention weight.
    need_weights : bool
        Whether to return the attention weights.

    Returns
    -------
    out : torch.Tensor
        (batch, time, embedding), heads joined.
    weights : torch.Tensor or None
        (batch, heads, queries, keys).
    """
    q, k, v = (
        x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)
        for x in (q, k, v)
    )
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores + mask
        weights = F.dropout(scores.softmax(-1), dropout, dropout > 0)
        out = weights @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    return out.transpose(1, 2).flatten(2), weights


def _additive(mask, dtype):
    """Turn a mask of booleans (True: leave out) into one that is added."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _quantize_inputs(module, query, key, value):
    """Quantize the inputs; a tensor that comes twice stays the same one."""
    q = module.quantize_input("query", query)
    k = q if key is query else module.quantize_input("key", key)
    v = k if value is key else module.quantize_input("value", value)
    return q, k, v


class DecomposedMultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` that calls its output projection."""

    def quantize_input(self, name, x):
        """Return the input as it is: this is the float version."""
        return x

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        """Attend; arguments and results as ``torch.nn.MultiheadAttention``."""
        batched = query.dim() == 3
        inputs = _quantize_inputs(self, query, key, value)
        if not batched:
            inputs = [x.unsqueeze(0) for x in inputs]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = self._project(*inputs)
        mask = self._merge_masks(attn_mask, key_padding_mask, is_causal, q, k)
        dropout = self.dropout if self.training else 0.0
        out, weights = _attend(
            q, k, v, self.num_heads, mask, dropout, need_weights
        )
        out = self.out_proj(out)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            weights = None if weights is None else weights.squeeze(0)
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query, key, value):
        """Apply the three input projections."""
        if self._qkv_same_embed_dim:
            weights = self._in_proj_weights()
        else:
            weights = (
                self.q_proj_weight,
                self.k_proj_weight,
                self.v_proj_weight,
            )
        bias = self.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return [
            F.linear(x, w, b)
            for x, w, b in zip((query, key, value), weights, biases)
        ]

    def _in_proj_weights(self):
        """Return the weights of query, key and value."""
        return self.in_proj_weight.chunk(3)

    def _merge_masks(self, attn_mask, key_padding_mask, is_causal, q, k):
        """Return one mask to add to the scores, or None."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal needs attn_mask, as in torch.")
        mask = _additive(attn_mask, q.dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.view(-1, self.num_heads, q.shape[1], k.shape[1])
        padding = _additive(key_padding_mask, q.dtype)
        if padding is not None:
            padding = padding.view(q.shape[0], 1, 1, k.shape[1])
            mask = padding if mask is None else mask + padding
        return mask


@register(nn.MultiheadAttention, DecomposedMultiheadAttention)
class QuantizedMultiheadAttention(
    QuantizedModule, DecomposedMultiheadAttention
):
    """Multi-head attention with integer input projections.

    The output projection is a layer of its own and is quantized as such.
    """

    weight_names = (
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
    )
    input_names = ("query", "key", "value")

    def _in_proj_weights(self):
        return self.dequantized_parts("in_proj_weight", 3)

    @classmethod
    def unsupported(cls, module):
        """Return why this layer cannot be quantized, or None."""
        if module.bias_k is not None or module.add_zero_attn:
            return "add_bias_kv and add_zero_attn have no decomposed version"
        forwards = (
            nn.MultiheadAttention.forward,
            DecomposedMultiheadAttention.forward,
            cls.forward,
        )
        if type(module).forward not in forwards:
            return "a subclass with a forward of its own"
        return None


class _QuantizedInProj(QuantizedModule):
    """SpeechBrain's attention with a raw ``in_proj_weight``."""

    in_proj_weight = DequantizedParameter("in_proj_weight")
    weight_names = ("in_proj_weight",)
    input_names = ("query", "key", "value")

    def forward(self, query, key, value, *args, **kwargs):
        """Attend; arguments and results as the float class."""
        qkv = _quantize_inputs(self, query, key, value)
        return super().forward(*qkv, *args, **kwargs)


@register(RelPosMHAXL)
class QuantizedRelPosMHAXL(_QuantizedInProj, RelPosMHAXL):
    """``RelPosMHAXL`` (Conformer, Branchformer) with integer projections."""


@register(RoPEMHA)
class QuantizedRoPEMHA(_QuantizedInProj, RoPEMHA):
    """``RoPEMHA`` (rotary Conformer) with integer projections."""


class DecomposedWavLMAttention(MixinBase):
    """Mixin for WavLM's attention that calls its four projections."""

    def torch_multi_head_self_attention(
        self,
        hidden_states,
        attention_mask,
        gated_position_bias,
        output_attentions=True,
    ):
        """Attend; arguments and results as transformers' WavLMAttention.

        transformers before 5 passes ``output_attentions``; the weights are
        returned in any case, which does no harm.
        """
        batch, time, _ = hidden_states.shape
        q, k, v = (
            project(hidden_states)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = gated_position_bias.view(batch, self.num_heads, time, time)
        if attention_mask is not None:
            padding = _additive(attention_mask.ne(1), q.dtype)
            mask = mask + padding.view(batch, 1, 1, time)
        dropout = self.dropout if self.training else 0.0
        out, weights = _attend(q, k, v, self.num_heads, mask, dropout, True)
        average = weights.mean(dim=1, keepdim=True).expand_as(weights)
        return self.out_proj(out), average

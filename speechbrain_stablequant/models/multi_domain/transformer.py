"""Runs SpeechBrain's TransformerLM with the layers of domains in it."""

from typing import Callable

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.models.multi_domain.layers import Sites
from speechbrain_stablequant.models.multi_domain.routing import Routing

__all__ = ["TransformerTrunk"]


class TransformerTrunk:
    """Runs a ``TransformerLM`` with the layers of domains in it.

    The model itself is not changed. For rows without a domain the result is
    that of its own ``forward``, bit for bit.

    Arguments
    ---------
    lm : TransformerLM
        The common language model.

    Raises
    ------
    StableQuantError
        If the model has decoder layers, which SpeechBrain's own ``forward``
        cannot run either, or layers that are dropped at random.
    """

    def __init__(self, lm: TransformerLM):
        if lm.num_decoder_layers or not lm.num_encoder_layers:
            raise StableQuantError(
                f"A TransformerLM with {lm.num_encoder_layers} encoder and "
                f"{lm.num_decoder_layers} decoder layers cannot be a trunk: "
                "use num_encoder_layers alone, as SpeechBrain's recipes do."
            )
        if lm.encoder.layerdrop_prob or not all(
            isinstance(layer, TransformerEncoderLayer)
            for layer in lm.encoder.layers
        ):
            raise StableQuantError(
                "The trunk's encoder must have TransformerEncoderLayers and "
                "no layerdrop."
            )
        self.lm = lm

    @property
    def sites(self) -> Sites:
        """Return where domains have layers of their own."""
        adapters, norms = {}, {}
        for index, layer in enumerate(self.lm.encoder.layers):
            width = layer.norm1.norm.normalized_shape[-1]
            for name in ("attention", "feed_forward"):
                adapters[f"layer{index}_{name}"] = width
            for name in ("norm1", "norm2"):
                norms[f"layer{index}_{name}"] = width
        norms["encoder_norm"] = norms["output_norm"] = width
        projection = self.lm.output_proj.layers[2].w
        output = (projection.in_features, projection.out_features)
        return Sites(adapters, norms, output)

    def __call__(self, tokens: torch.Tensor, route: Routing) -> torch.Tensor:
        """Return the logits of all positions.

        Arguments
        ---------
        tokens : torch.Tensor
            (rows, time).
        route : Routing
            Domains of the rows.

        Returns
        -------
        torch.Tensor
            (rows, time, tokens).
        """
        mask, padding = self.lm.make_masks(tokens)

        def attend(index, attention, x):
            return attention(
                x, x, x, attn_mask=mask, key_padding_mask=padding, pos_embs=None
            )[0]

        x = self.embed(tokens)
        x = x + self.lm.positional_encoding(x)
        return self.run(x, route, attend)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens, without their positions."""
        x = self.lm.custom_src_module(tokens)
        return (
            x if self.lm.embedding_proj is None else self.lm.embedding_proj(x)
        )

    def run(
        self, x: torch.Tensor, route: Routing, attend: Callable
    ) -> torch.Tensor:
        """Return the logits of embedded positions.

        Arguments
        ---------
        x : torch.Tensor
            (rows, time, d_model).
        route : Routing
            Domains of the rows.
        attend : callable
            Computes self-attention, given the index of a layer, its attention
            module and its input. The scorer passes one with a cache.
        """
        for index, layer in enumerate(self.lm.encoder.layers):
            x = self._layer(index, layer, x, route, attend)
        x = route.normalize("encoder_norm", self.lm.encoder.norm, x)
        hidden, norm, projection = self.lm.output_proj.layers
        x = route.normalize("output_norm", norm, hidden(x))
        return route.project(projection, x)

    @staticmethod
    def _layer(index, layer, x, route, attend):
        """Run one layer; the order is that of TransformerEncoderLayer."""
        name = f"layer{index}_"
        before = layer.normalize_before
        y = route.normalize(f"{name}norm1", layer.norm1, x) if before else x
        y = route.adapt(f"{name}attention", attend(index, layer.self_att, y))
        x = x + layer.dropout1(y)
        if not before:
            x = route.normalize(f"{name}norm1", layer.norm1, x)
        y = route.normalize(f"{name}norm2", layer.norm2, x) if before else x
        y = route.adapt(f"{name}feed_forward", layer.pos_ffn(y))
        x = x + layer.dropout2(y)
        if not before:
            x = route.normalize(f"{name}norm2", layer.norm2, x)
        return x

"""Runs SpeechBrain's RNNLM with the layers of domains in it."""

import torch
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.nnet.normalization import LayerNorm

from speechbrain_stablequant.models.multi_domain.layers import Sites
from speechbrain_stablequant.models.multi_domain.routing import Routing

__all__ = ["RecurrentTrunk"]


class RecurrentTrunk:
    """Runs an ``RNNLM`` with the layers of domains in it.

    There is an adapter after the recurrent layers and one after each block of
    the DNN; domains change the layer norms of the blocks and the output
    projection.

    Arguments
    ---------
    lm : RNNLM
        The common language model.
    """

    def __init__(self, lm: RNNLM):
        self.lm = lm

    def _blocks(self):
        """Yield name and layer, and whether it is the last one of a block.

        A block begins with a linear layer.
        """
        last = list(self.lm.dnn.items())
        for (name, layer), following in zip(
            last, [*last[1:], ("linear", None)]
        ):
            yield name, layer, following[0].startswith("linear")

    @property
    def sites(self) -> Sites:
        """Return where domains have layers of their own."""
        width = self.lm.rnn.rnn.hidden_size
        width *= 2 if self.lm.rnn.rnn.bidirectional else 1
        adapters, norms = {"rnn": width}, {}
        for name, layer, ends in self._blocks():
            if isinstance(layer, LayerNorm):
                width = layer.norm.normalized_shape[-1]
                norms[f"dnn_{name}"] = width
            if ends:
                adapters[f"dnn_{name}"] = width
        projection = self.lm.out.w
        output = (projection.in_features, projection.out_features)
        return Sites(adapters, norms, output)

    def __call__(self, tokens: torch.Tensor, route: Routing, hx=None):
        """Return the logits of all positions, as ``RNNLM.forward``.

        Arguments
        ---------
        tokens : torch.Tensor
            (rows, time), or (rows,) for one step.
        route : Routing
            Domains of the rows.
        hx : torch.Tensor or tuple, optional
            Hidden states to go on from.

        Returns
        -------
        logits : torch.Tensor
            (rows, time, tokens), or (rows, tokens) for one step.
        hidden : torch.Tensor or tuple
            Hidden states, where the trunk has ``return_hidden``.
        """
        x = self.lm.dropout(self.lm.embedding(tokens))
        one_step = x.dim() == 2
        if one_step:
            x = x.unsqueeze(1)
        x, hidden = self.lm.rnn(x, hx)
        x = route.adapt("rnn", x)
        for name, layer, ends in self._blocks():
            if isinstance(layer, LayerNorm):
                x = route.normalize(f"dnn_{name}", layer, x)
            else:
                x = layer(x)
            if ends:
                x = route.adapt(f"dnn_{name}", x)
        logits = route.project(self.lm.out, x)
        if one_step:
            logits = logits.squeeze(1)
        return (logits, hidden) if self.lm.return_hidden else logits

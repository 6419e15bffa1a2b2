"""Transformer encoders of wav2vec 2.0 and its kin, at few different lengths.

A runtime prepares its kernels anew for each length that it has not seen, and
hardly two utterances are equally long. Padded to whole groups of frames, which
the encoders mask as they mask padding in a batch, they mostly are.
"""

import re

import torch

__all__ = ["rewrite_encoder"]

FRAMES = 16  # 0.3 s; on average half of it is computed in vain
_ENCODER = re.compile(
    r"transformers\.models\.(wav2vec2|hubert|wavlm|data2vec)\..*"
    r"\.\w+(?<!Feature)Encoder(StableLayerNorm)?"
)


def rewrite_encoder(module):
    """Return a new ``forward`` for a Transformer encoder.

    Arguments
    ---------
    module : torch.nn.Module
        Any module.

    Returns
    -------
    list of (torch.nn.Module, str, callable)
        Empty if the module is not such an encoder.
    """
    # By name, so that transformers need not be installed.
    cls = type(module)
    if not _ENCODER.fullmatch(f"{cls.__module__}.{cls.__qualname__}"):
        return []

    def forward(
        hidden_states,
        attention_mask=None,
        output_attentions=False,
        output_hidden_states=False,
        return_dict=True,
        **kwargs,
    ):
        batch, time, size = hidden_states.shape
        options = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
            **kwargs,
        }
        if output_attentions or not return_dict:
            return cls.forward(
                module, hidden_states, attention_mask=attention_mask, **options
            )
        missing = -time % FRAMES
        padding = hidden_states.new_zeros(1).expand(batch, missing, size)
        if attention_mask is None:
            mask = torch.arange(time + missing) < time
            mask = mask.unsqueeze(0).expand(batch, -1)
        else:
            beyond = torch.zeros(1, dtype=torch.bool).expand(batch, missing)
            mask = torch.cat([attention_mask.to(torch.bool), beyond], 1)
        result = cls.forward(
            module,
            torch.cat([hidden_states, padding], 1),
            attention_mask=mask,
            **options,
        )
        result.last_hidden_state = result.last_hidden_state[:, :time]
        if result.hidden_states is not None:
            result.hidden_states = tuple(
                states[:, :time] for states in result.hidden_states
            )
        return result

    return [(module, "forward", forward)]

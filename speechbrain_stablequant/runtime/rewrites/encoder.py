"""Transformer encoders of the wav2vec 2.0 family, at few different lengths.

A runtime prepares its kernels anew for each length that it has not seen, and
hardly two utterances are equally long. Here they are padded to a multiple of
`FRAMES` frames, which the encoder masks like any padding in a batch, so that
few lengths are left.
"""

import re

import torch

__all__ = ["rewrite_encoder"]

FRAMES = 16  # 0.3 s, of which half is wasted on average
_ENCODER = re.compile(
    r"transformers\.models\.(wav2vec2|hubert|wavlm|data2vec)\..*"
    r"\.\w+(?<!Feature)Encoder(StableLayerNorm)?"
)


def rewrite_encoder(module):
    """Return new ``forward`` functions for a model and its encoder."""
    encoder = getattr(module, "encoder", None)
    # By name, so that transformers need not be installed.
    name = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    if not _ENCODER.fullmatch(name):
        return []
    padded = _PaddedEncoder(encoder)

    def forward(*args, **kwargs):
        # transformers records these inside the encoder, padding and all.
        padded.active = not any(
            kwargs.get(option) or getattr(module.config, option, False)
            for option in ("output_hidden_states", "output_attentions")
        )
        return type(module).forward(module, *args, **kwargs)

    return [(module, "forward", forward), (encoder, "forward", padded)]


class _PaddedEncoder:
    """An encoder that appends masked frames and removes them afterwards."""

    def __init__(self, encoder):
        self.encoder, self.active = encoder, True

    def __call__(self, hidden_states, attention_mask=None, **options):
        """Run the encoder; unpadded where it returns more than its output."""
        run = type(self.encoder).forward
        if not self.active or options.get("return_dict") is False:
            return run(
                self.encoder,
                hidden_states,
                attention_mask=attention_mask,
                **options,
            )
        batch, time, size = hidden_states.shape
        missing = -time % FRAMES
        padding = hidden_states.new_zeros(1).expand(batch, missing, size)
        if attention_mask is None:
            mask = torch.arange(time + missing) < time
            mask = mask.unsqueeze(0).expand(batch, -1)
        else:
            beyond = torch.zeros(1, dtype=torch.bool).expand(batch, missing)
            mask = torch.cat([attention_mask.to(torch.bool), beyond], 1)
        result = run(
            self.encoder,
            torch.cat([hidden_states, padding], 1),
            attention_mask=mask,
            **options,
        )
        result.last_hidden_state = result.last_hidden_state[:, :time]
        return result

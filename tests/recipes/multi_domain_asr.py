"""Language models for the tests of the multi-domain recogniser."""

from pathlib import Path

import torch
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FOLDER = RECIPES / "MultiDomainLM" / "ASR"
BLANK, BOS, EOS = 0, 1, 2


def small_lm(tokens, seed=3):
    """An untrained language model with strong opinions."""
    torch.manual_seed(seed)
    lm = TransformerLM(tokens, 16, 2, 1, 0, 32, normalize_before=True)
    with torch.no_grad():
        for parameter in lm.output_proj.parameters():
            parameter.mul_(4)
    return lm.eval()


def lm_score(lm, labels):
    """Log-probability of a sentence with its end."""
    inputs = torch.tensor([[BOS, *labels]])
    with torch.no_grad():
        log_probs = lm(inputs)[0].log_softmax(-1)
    return sum(log_probs[t, k].item() for t, k in enumerate([*labels, EOS]))

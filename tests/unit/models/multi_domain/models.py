"""Small language models for the tests of domains, and their training."""

import pytest
import torch
import torch.nn.functional as F
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.models.multi_domain import MultiDomainLM

VOCAB = 24


def transformer(seed=0, **overrides):
    """Return a Transformer LM with random weights."""
    torch.manual_seed(seed)
    sizes = {
        "vocab": VOCAB,
        "d_model": 16,
        "nhead": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 0,
        "d_ffn": 32,
        "activation": torch.nn.GELU,
        "normalize_before": True,
    }
    return TransformerLM(**{**sizes, **overrides}).eval()


def recurrent(seed=0, **overrides):
    """Return a recurrent LM with random weights."""
    torch.manual_seed(seed)
    sizes = {
        "output_neurons": VOCAB,
        "embedding_dim": 12,
        "rnn_neurons": 20,
        "dnn_neurons": 16,
        "dnn_blocks": 2,
        "return_hidden": True,
    }
    return RNNLM(**{**sizes, **overrides}).eval()


def tokens(rows=4, time=9, seed=0, padded=True):
    """Return token ids; rows are of different lengths, zeros fill them up."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (rows, time), generator=generator)
    if padded:
        for row in range(rows):
            ids[row, max(2, time - 2 * row) :] = 0
    return ids


def shake(module, seed=0, std=0.2):
    """Give all parameters random values, as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(std * noise)
    return module


def multi_domain(trunk, *names, domain=None):
    """Return a model whose domains all differ, and not a little."""
    lm = MultiDomainLM(trunk, names, domain).eval()
    for seed, name in enumerate(names):
        shake(lm.domains[name], seed)
    return lm


def copies(module):
    """Return copies of all tensors by name."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same_bits(module, before):
    """Say whether all tensors are as they were, bit for bit."""
    after = module.state_dict()
    return list(after) == list(before) and all(
        _bits(after[k]) == _bits(v) for k, v in before.items()
    )


def _bits(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tensor.shape, flat.view(torch.uint8).numpy().tobytes()


def logits_of(result):
    """Return the logits of a Transformer or of a recurrent LM."""
    return result[0] if isinstance(result, tuple) else result


def train(lm, steps=12, seed=0, lr=0.03, domain=...):
    """Train as a Brain does: AdamW with decay over all parameters.

    Returns
    -------
    list of float
        The losses.
    """
    ids = tokens(8, 12, seed, padded=False) % 7 + 1  # few words to learn
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, weight_decay=0.1)
    chosen = {} if domain is ... else {"domain": domain}
    losses = []
    lm.train()
    for _ in range(steps):
        logits = logits_of(lm(ids[:, :-1], **chosen))
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    lm.eval()
    return losses


def outputs(lm, domain):
    with torch.no_grad():
        return logits_of(lm(tokens(), domain=domain))


def refuse(path, match=None, lm=None, **knobs):
    """Loading fails by name, and adds nothing."""
    lm = multi_domain(transformer(), "a") if lm is None else lm
    before = copies(lm)
    with pytest.raises(StableQuantError, match=match) as info:
        lm.load_domain(path, **knobs)
    assert path.name in str(info.value)
    assert same_bits(lm, before)
    assert "music" not in lm.domains

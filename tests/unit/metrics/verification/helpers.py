"""Speakers and trials out of random numbers."""

import numpy as np

from speechbrain_stablequant.metrics.verification import (
    CosineBackend,
    Trials,
    VerificationMetric,
)
from speechbrain_stablequant.metrics.verification.metric import embedding_item


def embeddings(speakers=20, utterances=4, seed=0, dim=16, uneven=False):
    """Return an embedding for each utterance ``s<speaker>/<session>/<n>``.

    Uneven speakers differ in how far their utterances scatter, so that errors
    come from a few of them.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for speaker in range(speakers):
        centre = rng.normal(size=dim)
        spread = rng.choice([0.3, 2.5], p=[0.8, 0.2]) if uneven else 0.9
        for number in range(utterances):
            noise = rng.normal(size=dim) * spread
            found[f"s{speaker:03}/x/{number}"] = (centre + noise).astype("f4")
    return found


def all_trials(keys, stride=1):
    """Return all trials of one speaker and every stride-th of two."""
    keys = sorted(keys)
    same, different = [], []
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            if first.split("/")[0] == second.split("/")[0]:
                same.append((1, first + ".wav", second + ".wav"))
            else:
                different.append((0, first + ".wav", second + ".wav"))
    return same + different[::stride]


def items_of(vectors):
    return [embedding_item(key, value) for key, value in vectors.items()]


def metric_of(trials, rate="EER"):
    return VerificationMetric.of(rate, CosineBackend(Trials(trials)))


def shaken(vectors, amount, seed=1):
    """Return embeddings as a coarser model would give them."""
    rng = np.random.default_rng(seed)
    return {
        key: (value + amount * rng.normal(size=len(value))).astype("f4")
        for key, value in sorted(vectors.items())
    }

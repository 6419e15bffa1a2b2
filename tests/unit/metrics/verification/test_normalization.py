"""Score normalization: equal to the loop of SpeechBrain's recipe."""

import numpy as np
import pytest
import torch

from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.metrics.verification import (
    CosineBackend,
    Trials,
    VerificationStats,
)
from speechbrain_stablequant.metrics.verification.normalization import (
    cohort_statistics,
    unit_rows,
)
from tests.unit.metrics.verification.helpers import all_trials, embeddings

COHORT = embeddings(speakers=15, utterances=2, seed=7)
COHORT = {"c" + key: value for key, value in COHORT.items()}


def recipe_scores(trials, vectors, score_norm, cohort_size):
    """The loop of SpeechBrain's speaker_verification_cosine.py."""
    similarity = torch.nn.CosineSimilarity(dim=-1, eps=1e-6)
    train_cohort = torch.stack([torch.tensor(c)[None] for c in COHORT.values()])
    scores = []
    for _, enrol_id, test_id in trials:
        enrol = torch.tensor(vectors[enrol_id.split(".")[0]])[None]
        test = torch.tensor(vectors[test_id.split(".")[0]])[None]
        enrol_rep = enrol.repeat(train_cohort.shape[0], 1, 1)
        score_e_c = similarity(enrol_rep, train_cohort)
        if cohort_size:
            score_e_c = torch.topk(score_e_c, k=cohort_size, dim=0)[0]
        mean_e_c = torch.mean(score_e_c, dim=0)
        std_e_c = torch.std(score_e_c, dim=0)
        test_rep = test.repeat(train_cohort.shape[0], 1, 1)
        score_t_c = similarity(test_rep, train_cohort)
        if cohort_size:
            score_t_c = torch.topk(score_t_c, k=cohort_size, dim=0)[0]
        mean_t_c = torch.mean(score_t_c, dim=0)
        std_t_c = torch.std(score_t_c, dim=0)
        score = similarity(enrol, test)[0]
        if score_norm == "z-norm":
            score = (score - mean_e_c) / std_e_c
        elif score_norm == "t-norm":
            score = (score - mean_t_c) / std_t_c
        elif score_norm == "s-norm":
            score_e = (score - mean_e_c) / std_e_c
            score_t = (score - mean_t_c) / std_t_c
            score = 0.5 * (score_e + score_t)
        scores.append(float(score))
    return scores


@pytest.mark.parametrize("cohort_size", [None, 2, 9, 30])
@pytest.mark.parametrize("score_norm", [None, "z-norm", "t-norm", "s-norm"])
def test_scores_are_the_recipes(score_norm, cohort_size):
    vectors = embeddings(speakers=4, utterances=3)
    trials = all_trials(vectors, stride=3)
    stats = VerificationStats(trials, score_norm, list(COHORT), cohort_size)
    together = {**vectors, **COHORT}
    stats.append(
        list(together), torch.tensor(np.stack(list(together.values())))
    )
    stats.summarize()
    expected = recipe_scores(trials, vectors, score_norm, cohort_size)
    np.testing.assert_allclose(stats.scores, expected, rtol=2e-4, atol=2e-4)


def test_an_utterance_of_no_length_scores_zero_as_in_speechbrain():
    zero, other = np.zeros((1, 3), "f4"), np.array([[3.0, 4.0, 0]], "f4")
    assert not unit_rows(zero).any()
    assert unit_rows(other).tolist() == [[np.float32(0.6), np.float32(0.8), 0]]


def test_the_cohort_is_checked():
    units = unit_rows(np.random.default_rng(0).normal(size=(4, 3)))
    for size in (1, 5):
        with pytest.raises(StableQuantError, match=f"over {size} of 4"):
            cohort_statistics(units, units, size)
    trials = Trials([(0, "a/1", "b/1")])
    with pytest.raises(KnobError, match="Did you mean 's-norm'"):
        CosineBackend(trials, "snorm", ("c/1", "c/2"))
    with pytest.raises(KnobError, match="needs a cohort"):
        CosineBackend(trials, "s-norm")
    with pytest.raises(KnobError, match="cohort_size is 3, but .* 2 utter"):
        CosineBackend(trials, "s-norm", ("c/1", "c/2"), 3)
    with pytest.raises(KnobError, match="at least 2"):
        VerificationStats("no.txt", "s-norm", "no.csv", cohort_size=1)


def test_a_cohort_that_was_not_appended_is_missed():
    stats = VerificationStats([(0, "a/1", "b/1")], "s-norm", ["c/1", "c/2"])
    stats.append(["a/1", "b/1"], torch.eye(2))
    with pytest.raises(StableQuantError, match=r"0 of 2 .* e\.g\. 'c/1'"):
        stats.summarize()


def test_a_cohort_that_tells_nothing_is_refused():
    stats = VerificationStats([(0, "a/1", "b/1")], "s-norm", ["c/1", "c/2"])
    stats.append(["a/1", "b/1"], torch.eye(2))
    stats.append(["c/1", "c/2"], torch.ones(2, 2))
    with pytest.raises(StableQuantError, match="'a/1' .* all the same"):
        stats.summarize()


def test_a_part_of_the_cohort_is_used_and_counted():
    vectors = embeddings(speakers=3, utterances=2)
    cohort = dict(list(COHORT.items())[:4])
    stats = VerificationStats(all_trials(vectors), "s-norm", list(COHORT), 10)
    together = {**vectors, **cohort}
    stats.append(
        list(together), torch.tensor(np.stack(list(together.values())))
    )
    assert stats.summarize("cohort") == 4

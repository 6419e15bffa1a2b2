"""The search over CTC posteriors finds the best, and what it is."""

import itertools
import math

import pytest
import torch
from speechbrain.decoders.ctc import CTCBeamSearcher, filter_ctc_output

from speechbrain_stablequant.models.multi_domain.scorer import (
    TransformerLMScorerWithCache,
)
from tests.recipes.multi_domain_asr import (
    BLANK,
    BOS,
    EOS,
    FOLDER,
    lm_score,
    small_lm,
)


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def random_posteriors(frames, tokens=5, seed=0, sharpness=2.0):
    """Log-posteriors; CTC models do not learn bos and eos."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(frames, tokens, generator=generator)
    logits[:, [BOS, EOS]] = -20.0
    return logits.log_softmax(-1)


def doubtful_posteriors(tokens, seed):
    """A token or blank in each frame that has a fifth of the probability."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(24, tokens, generator=generator)
    labels = torch.randint(3, tokens, (12,), generator=generator)
    logits[torch.arange(0, 24, 2), labels] += 4
    logits[1::2, BLANK] += 4
    logits[:, [BOS, EOS]] = -20.0
    return logits.log_softmax(-1)


def labellings(posteriors):
    """Log-probabilities of all labellings, by adding up all their paths."""
    frames, tokens = posteriors.shape
    totals = {}
    for path in itertools.product(range(tokens), repeat=frames):
        labels = tuple(filter_ctc_output(list(path), blank_id=BLANK))
        score = sum(posteriors[t, k].item() for t, k in enumerate(path))
        totals.setdefault(labels, []).append(score)
    scores = {
        labels: torch.tensor(each).logsumexp(0).item()
        for labels, each in totals.items()
        if EOS not in labels
    }
    return sorted(scores.items(), key=lambda item: -item[1])


def log_probability(posteriors, labels):
    """That of one labelling, by PyTorch's loss."""
    loss = torch.nn.functional.ctc_loss(
        posteriors[:, None],
        torch.tensor([labels], dtype=torch.long).reshape(1, -1),
        torch.tensor([len(posteriors)]),
        torch.tensor([len(labels)]),
        blank=BLANK,
        reduction="sum",
    )
    return -loss.item()


def search(posteriors, topk=1, **options):
    """Labels and scores of a list of utterances."""
    from ctc_search import build_searcher

    searcher = build_searcher(posteriors[0].shape[1], topk=topk, **options)
    batch = torch.nn.utils.rnn.pad_sequence(posteriors, batch_first=True)
    lengths = torch.tensor([len(p) / batch.shape[1] for p in posteriors])
    hyps, relative, scores, _ = searcher(batch, lengths)
    counts = torch.round(relative * hyps.shape[-1]).long()
    return [
        [
            (tuple(hyps[n, k, : counts[n, k]].tolist()), scores[n, k].item())
            for k in range(topk)
        ]
        for n in range(len(posteriors))
    ]


@pytest.mark.parametrize("num_tokens", [None, 64])
def test_finds_the_best_labellings_and_their_probabilities(num_tokens):
    posteriors = [random_posteriors(4, seed=seed) for seed in range(12)]
    found = search(posteriors, topk=3, beam_size=16, num_tokens=num_tokens)
    for utterance, hyps in zip(posteriors, found):
        best = labellings(utterance)[:3]
        assert [labels for labels, _ in hyps] == [labels for labels, _ in best]
        assert [score for _, score in hyps] == pytest.approx(
            [score for _, score in best], abs=1e-4
        )


def test_padding_changes_nothing():
    posteriors = [
        random_posteriors(frames, tokens=9, seed=frames)
        for frames in (3, 12, 7, 1)
    ]
    lm = small_lm(9)
    options = {"topk": 2, "beam_size": 6, "lm": lm, "lm_weight": 0.3}
    together = search(posteriors, **options)
    for utterance, hyps in zip(posteriors, together):
        (alone,) = search([utterance], **options)
        assert [labels for labels, _ in hyps] == [labels for labels, _ in alone]
        assert hyps[0][1] == pytest.approx(alone[0][1], abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_language_model_at_least_as_good_as_speechbrain(seed):
    """As probable as the greedy labelling and that of CTCBeamSearcher."""
    posteriors = random_posteriors(30, tokens=12, seed=seed, sharpness=3)
    ((best,),) = search([posteriors], beam_size=10)
    vocab = ["", "<s>", "</s>", *"ABCDEFGHI"]
    searcher = CTCBeamSearcher(
        blank_index=BLANK,
        vocab_list=vocab,
        beam_size=10,
        space_token=" ",
        prune_history=False,
    )
    text = searcher(posteriors[None], torch.ones(1))[0][0].text
    speechbrain = [vocab.index(letter) for letter in text]
    greedy = filter_ctc_output(posteriors.argmax(-1).tolist(), blank_id=BLANK)
    assert best[1] == pytest.approx(
        log_probability(posteriors, best[0]), abs=1e-3
    )
    assert best[1] >= log_probability(posteriors, greedy) - 1e-3
    assert best[1] >= log_probability(posteriors, speechbrain) - 1e-3


def test_score_is_the_sum_of_the_scorers():
    posteriors = random_posteriors(10, tokens=8, seed=5)
    lm = small_lm(8)
    weights = {"lm_weight": 0.7, "length_weight": 0.4}
    (hyps,) = search([posteriors], topk=4, beam_size=8, lm=lm, **weights)
    for labels, score in hyps:
        expected = log_probability(posteriors, labels)
        expected += 0.7 * lm_score(lm, labels) + 0.4 * (len(labels) + 1)
        assert score == pytest.approx(expected, abs=1e-3)


def test_best_with_a_language_model_and_a_reward():
    lm = small_lm(5)
    for seed in range(6):
        posteriors = random_posteriors(4, seed=seed, sharpness=1)
        options = {"lm": lm, "lm_weight": 0.8, "length_weight": 1.5}
        ((best,),) = search([posteriors], beam_size=32, **options)
        expected = max(
            score + 0.8 * lm_score(lm, labels) + 1.5 * (len(labels) + 1)
            for labels, score in labellings(posteriors)
        )
        assert best[1] == pytest.approx(expected, abs=1e-3)


def test_faster_scorers_give_the_same():
    posteriors = [random_posteriors(20, 40, seed, 4) for seed in range(3)]
    options = {"beam_size": 5, "lm": small_lm(40), "lm_weight": 0.5}
    stock = search(posteriors, num_tokens=None, **options)
    fast = search(
        posteriors,
        num_tokens=38,
        lm_scorer=TransformerLMScorerWithCache,
        **options,
    )
    for ((labels, score),), ((fast_labels, fast_score),) in zip(stock, fast):
        assert fast_labels == labels
        assert fast_score == pytest.approx(score, abs=1e-3)


def test_doubt_does_not_push_the_best_out_of_the_beam():
    """With SpeechBrain's own prefix scores it does: hence the lookahead."""
    from ctc_search import CTCLabelSearcher, build_searcher
    from speechbrain.decoders import CTCScorer, ScorerBuilder

    posteriors = [doubtful_posteriors(60, seed) for seed in range(6)]
    indices = {"bos_index": BOS, "eos_index": EOS}
    ctc = CTCScorer(torch.nn.Identity(), BLANK, EOS)
    stock = ScorerBuilder(full_scorers=[ctc], weights={"ctc": 1.0})
    searchers = {
        "stock": CTCLabelSearcher(60, stock, beam_size=8, **indices),
        "ours": build_searcher(60, beam_size=8, **indices),
    }
    scores = {
        name: searcher(torch.stack(posteriors), torch.ones(6))[2].flatten()
        for name, searcher in searchers.items()
    }
    greedy = torch.tensor(
        [
            log_probability(p, filter_ctc_output(p.argmax(-1).tolist(), 0))
            for p in posteriors
        ]
    )
    assert scores["stock"].mean() < greedy.mean() - 2
    assert (scores["ours"] >= greedy - 1e-3).all()


def test_unlikely_tokens_are_not_scored():
    posteriors = random_posteriors(20, 80, seed=1, sharpness=3)
    options = {"topk": 8, "beam_size": 8, "num_tokens": 24}
    (hyps,) = search([posteriors], **options)
    # Those that come closest to the maximum in any frame
    relative = posteriors - posteriors.amax(1, keepdim=True)
    likely = relative[:, 3:].amax(0).topk(24).indices + 3
    used = {label for labels, _ in hyps for label in labels}
    assert used
    assert used <= set(likely.tolist())


def test_silence_is_an_empty_sentence():
    posteriors = torch.full((6, 5), -12.0)
    posteriors[:, BLANK] = 0.0
    ((best,),) = search([posteriors.log_softmax(-1)], beam_size=4)
    assert best[0] == ()


def test_errors_tell_what_to_do():
    from ctc_search import CTCLabelSearcher
    from speechbrain.decoders import CTCScorer, ScorerBuilder

    ctc = CTCScorer(torch.nn.Identity(), BLANK, EOS)
    scorer = ScorerBuilder(full_scorers=[ctc], weights={"ctc": 0.5})
    with pytest.raises(ValueError, match=r"weight 1\.0"):
        CTCLabelSearcher(5, scorer, bos_index=1, eos_index=2, beam_size=2)
    with pytest.raises(ValueError, match="NaN"):
        search([torch.full((4, 5), math.nan)], beam_size=2)

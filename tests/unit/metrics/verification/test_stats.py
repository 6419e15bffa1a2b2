"""SpeechBrain's kind of metric object for verification."""

import io

import numpy as np
import pytest
import torch
from speechbrain.utils.metric_stats import EER, MetricStats, minDCF

from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.metrics.verification import (
    Trials,
    VerificationStats,
)
from speechbrain_stablequant.metrics.verification.trials import (
    canonical_id,
    read_ids,
)
from tests.unit.metrics.verification.helpers import all_trials, embeddings

ROWS = [(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")]
LINES = "".join(" ".join(map(str, row)) + "\n" for row in ROWS)


def filled(trials, vectors, batch=7, form=str):
    stats = VerificationStats(trials)
    names = list(vectors)
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        block = np.stack([vectors[name] for name in part])
        stats.append([form(n) for n in part], torch.tensor(block)[:, None])
    return stats


def small(trials=ROWS):
    vectors = {"a/1": [1, 0], "a/2": [1, 0.5], "b/1": [0, 1]}
    return filled(trials, {k: np.float32(v) for k, v in vectors.items()})


def test_the_summary_is_speechbrain(tmp_path):
    vectors = embeddings()
    trials = all_trials(vectors, stride=7)
    path = tmp_path / "veri_test.txt"
    path.write_text("".join(f"{a} {b} {c}\n" for a, b, c in trials))
    stats = filled(str(path), vectors)
    similarity = torch.nn.CosineSimilarity(dim=-1, eps=1e-6)
    scores = {0: [], 1: []}
    for label, *pair in trials:
        first, second = (torch.tensor(vectors[n[:-4]]) for n in pair)
        scores[label].append(similarity(first, second))
    positive, negative = torch.stack(scores[1]), torch.stack(scores[0])
    summary = stats.summarize()
    rate, threshold = EER(positive, negative)
    assert isinstance(stats, MetricStats)
    assert summary["EER"] == pytest.approx(100 * rate)
    assert summary["threshold"] == pytest.approx(threshold, abs=1e-5)
    assert summary["minDCF"] == pytest.approx(
        100 * minDCF(positive, negative)[0]
    )
    assert summary["trials"] == len(trials) == len(stats.scores)
    assert stats.ids[0] == "s000/x/0 s000/x/1"
    assert stats.summarize("EER") == summary["EER"]
    found = stats.quantization_metrics()
    for name, (metric, items) in found.items():
        assert metric.name == name
        assert metric.value(items) == pytest.approx(summary[name])


@pytest.mark.parametrize(
    "form",
    [
        str,
        "{}.wav".format,
        "{}.FLAC".format,
        lambda name: name.replace("/", "--"),
        lambda name: name.replace("/", "--") + ".wav",
    ],
)
def test_ids_of_every_form_match(form):
    vectors = embeddings(speakers=3)
    trials = all_trials(vectors)
    expected = filled(trials, vectors).summarize()
    assert filled(trials, vectors, form=form).summarize() == expected


def test_one_form_stands_for_all():
    forms = "so0003/s1/0001.wav", "so0003--s1--0001", "so0003/s1/0001"
    assert len({canonical_id(form) for form in forms}) == 1
    assert canonical_id("a.b/1.wav") == "a.b/1"


def test_trials_that_are_not_complete_are_left_out():
    stats = small([*ROWS, (0, "a/2", "z/9")])
    assert stats.summarize("trials") == 2
    with pytest.raises(KnobError, match="Did you mean 'minDCF'"):
        stats.summarize("mindcf")


def test_no_complete_trial_is_an_error_with_examples():
    stats = VerificationStats(ROWS)
    with pytest.raises(StableQuantError, match="Of 2 trials .* 0 utterances"):
        stats.summarize()
    stats.append(["other-7"], torch.ones(1, 2))
    with pytest.raises(StableQuantError, match=r"'a/1'; .* e\.g\. 'other-7'"):
        stats.summarize()


def test_one_kind_of_trials_is_an_error():
    stats = VerificationStats(ROWS)
    stats.append(["a/1", "b/1"], torch.eye(2))
    with pytest.raises(StableQuantError, match="no positive"):
        stats.summarize()


def test_metrics_for_a_search_come_batch_by_batch():
    stats = VerificationStats(ROWS)
    assert stats.quantization_metrics() == {}
    whole = small().quantization_metrics()
    assert list(whole) == ["EER", "minDCF"]
    joined = []
    for name, row in {"a/1": [1, 0], "q/1": [5, 5]}.items():
        stats.clear()
        stats.append([name], torch.tensor([row]).float())
        metric, items = stats.quantization_metrics()["EER"]
        joined += items
    # 'q/1' is in no trial
    assert [item.key for item in joined] == ["a/1"]
    assert metric == whole["EER"][0]
    assert (metric.factor, whole["minDCF"][0].factor) == (100, 100)


def test_the_cohort_is_among_the_items():
    stats = VerificationStats(ROWS, "s-norm", ["c/1", "c/2"])
    stats.append(["c/1", "x/1"], torch.eye(2))
    _, items = stats.quantization_metrics()["EER"]
    assert [item.key for item in items] == ["c/1"]


def test_clear_forgets_and_a_copy_of_the_attributes_brings_back():
    stats = small()
    expected = dict(stats.summarize())
    before = dict(vars(stats))
    stats.clear()
    assert (stats.scores, stats.ids, stats.summary) == ([], [], {})
    assert stats.quantization_metrics() == {}
    vars(stats).clear()
    vars(stats).update(before)
    assert stats.summarize() == expected


def test_the_last_embedding_of_an_utterance_counts():
    stats = small()
    assert stats.summarize("EER") == 0
    stats.append(["a--2"], torch.tensor([[-1.0, 0.0]]))
    assert not stats.summary
    assert stats.summarize("EER") > 0


def test_appended_tensors_are_copied():
    buffer = torch.ones(1, 2)
    stats = VerificationStats(ROWS)
    stats.append(["a/1"], buffer)
    buffer.zero_()
    assert stats.embeddings["a/1"].tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3), (1, 1, 1, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(StableQuantError, match=r"for 1 utterances: expected"):
        VerificationStats(ROWS).append(["a/1"], torch.ones(shape))


def test_scores_are_written_as_by_the_recipe(tmp_path):
    path = tmp_path / "scores.txt"
    small().write_scores(path)
    assert path.read_text() == "a/1 a/2 1 0.894427\na/1 b/1 0 0.000000\n"
    stream = io.StringIO()
    small().write_stats(stream)
    assert stream.getvalue().startswith("EER (%): 0.0000 at a threshold of ")
    assert "Trials: 2 of 2" in stream.getvalue()


def test_files_are_read_late_and_once(tmp_path):
    path = tmp_path / "trials.txt"
    stats = VerificationStats(str(path))
    stats.append(["a/1"], torch.ones(1, 2))
    with pytest.raises(StableQuantError, match="trials.txt cannot be read"):
        stats.summarize()
    path.write_text(LINES)
    assert Trials.read(path) is Trials.read(str(path))
    assert small(str(path)).summarize("trials") == 2
    path.write_text(LINES + "\n1 a/2 a/1\n")
    assert small(str(path)).summarize("trials") == 3


@pytest.mark.parametrize("line", ["1 a/1", "2 a/1 a/2", "x a b", "1 a b c"])
def test_a_bad_line_is_found(tmp_path, line):
    path = tmp_path / "trials.txt"
    path.write_text(LINES + line + "\n")
    with pytest.raises(StableQuantError, match=f"trials.txt:3: .*'{line}'"):
        Trials.read(path)


def test_bad_lists_are_refused(tmp_path):
    with pytest.raises(StableQuantError, match="trials, trial 1: expected"):
        Trials([ROWS[0], ("a/1", "a/2", 1)])
    with pytest.raises(StableQuantError, match="has no trials"):
        Trials([])
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(StableQuantError, match="empty.txt has no trials"):
        Trials.read(empty)


def test_cohorts_come_from_files(tmp_path):
    table = tmp_path / "train.csv"
    table.write_text("ID,duration\nc--1,2.0\nc--2,3.0\nc--1,2.0\n")
    assert read_ids(table) == ("c/1", "c/2")
    plain = tmp_path / "cohort.txt"
    plain.write_text("c/1.wav more\n\nc/2.wav\n")
    assert read_ids(str(plain)) == ("c/1", "c/2")
    table.write_text("ID,duration\n")
    with pytest.raises(StableQuantError, match=r"train.csv\) has no utter"):
        read_ids(table)
    with pytest.raises(StableQuantError, match="cohort .* cannot be read"):
        read_ids(tmp_path / "none.csv")

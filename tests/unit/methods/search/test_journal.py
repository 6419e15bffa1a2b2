"""The journal: resumed, shared by ranks, never lost."""

import torch
from torch import nn

from speechbrain_stablequant.methods.search import (
    Journal,
    fingerprint,
    weights_digest,
)
from speechbrain_stablequant.metrics.metric import Item

ITEMS = [Item("a", 0.1, 3.0), Item("b", float("inf"), 1.0)]


def filled(folder, identity="x", rank=0, keys=("one", "two")):
    journal = Journal(folder, identity, rank)
    for key in keys:
        journal.put(key, ITEMS)
    journal.close()
    return journal


def test_results_are_read_again(tmp_path):
    filled(tmp_path / "new")
    journal = Journal(tmp_path / "new", "x")
    assert journal.resumed == 2
    assert journal.get("one") == ITEMS
    assert journal.get("three") is None


def test_a_line_cut_off_is_ignored_and_what_follows_is_read(tmp_path):
    filled(tmp_path)
    path = tmp_path / "search.jsonl"
    for length in range(len(path.read_bytes()) - 1, 30, -13):
        path.write_bytes(path.read_bytes()[:length])
        filled(tmp_path, keys=("three",))
        journal = Journal(tmp_path, "x")
        assert journal.get("three") == ITEMS
        assert set(journal.results) <= {"one", "two", "three"}


def test_another_search_is_set_aside_not_deleted(tmp_path):
    filled(tmp_path, "x")
    old = (tmp_path / "search.jsonl").read_bytes()
    journal = filled(tmp_path, "y", keys=("other",))
    assert journal.resumed == 0
    kept = [p.read_bytes() for p in tmp_path.glob("*.old")]
    assert kept == [old]
    assert set(Journal(tmp_path, "y").results) == {"other"}


def test_reading_alone_changes_no_file(tmp_path):
    filled(tmp_path, "x")
    old = (tmp_path / "search.jsonl").read_bytes()
    Journal(tmp_path, "y").close()
    assert (tmp_path / "search.jsonl").read_bytes() == old


def test_all_ranks_are_read(tmp_path):
    for rank in range(3):
        filled(tmp_path, rank=rank, keys=(f"rank {rank}",))
    assert len(list(tmp_path.glob("search*.jsonl"))) == 3
    assert Journal(tmp_path, "x", rank=1).resumed == 3


def test_without_a_folder_results_stay_in_memory():
    assert filled(None).get("two") == ITEMS


def test_digests_change_with_the_weights():
    model = nn.Linear(2, 2)
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.bias[0] += 1
    assert weights_digest(model) != before
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(1) != fingerprint("1")

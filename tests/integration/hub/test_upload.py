"""Publications reach a hub through the real client, in one commit."""

import json

import pytest

from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    read_manifest,
    write_manifest,
)
from tests.integration.hub.publication import (
    FILES,
    LARGE,
    NAME,
    commits,
    hashes,
    listed,
    state,
    write,
)
from tests.integration.hub.repositories import ATTRIBUTES

# -- what is published --------------------------------------------------------


def test_a_new_repository_has_all_files_in_one_commit(hub, publish):
    result = publish()
    assert result["error"] is None
    assert state(hub) == FILES
    assert listed(hub) == hashes(FILES)
    assert commits(hub) == ["initial commit", "Publish"]
    assert len(hub.puts()) == len(LARGE)
    head = hub.repos[NAME].branches["main"]
    assert result["url"] == f"{hub.url}/{NAME}/commit/{head}"
    assert sorted(result["added"]) == sorted([*FILES, MANIFEST])
    num_bytes = sum(map(len, hub.repos[NAME].files().values()))
    assert result["num_bytes"] == num_bytes - len(ATTRIBUTES)
    assert not hub.repos[NAME].private


def test_nothing_has_changed(hub, publish):
    first = publish()
    before, asked = commits(hub), hub.steps()
    result = publish()
    assert commits(hub) == before
    assert result["url"] == first["url"]
    assert result["summary"].startswith("Nothing has changed since http")
    assert result["added"] == result["deleted"] == []
    assert sorted(result["unchanged"]) == sorted([*FILES, MANIFEST])
    later = hub.steps()[len(asked) :]
    assert not {"preupload", "batch", "put", "commit"} & set(later)


def test_only_what_has_changed_is_sent(hub, publish, folder):
    publish()
    sent = len(hub.puts())
    changed = {"model.ckpt": b"\0other" * 100, "hyperparams.yaml": b"model: 2"}
    write(folder, changed)
    result = publish()
    assert result["added"] == sorted([*changed, MANIFEST])
    assert state(hub) == {**FILES, **changed}
    assert listed(hub) == hashes({**FILES, **changed})
    assert len(hub.puts()) == sent + 1
    assert len(commits(hub)) == 3


def test_files_that_are_gone_are_deleted_but_nobody_elses(hub, publish, folder):
    publish()
    repo = hub.repos[NAME]
    repo.commit("main", {**repo.files(), "audio.wav": b"RIFF"}, "an example")
    (folder / "plots" / "front.png").unlink()
    (folder / "hyperparams.yaml").unlink()
    result = publish()
    assert result["deleted"] == ["hyperparams.yaml", "plots/front.png"]
    kept = {n: c for n, c in FILES.items() if n not in result["deleted"]}
    assert state(hub) == {**kept, "audio.wav": b"RIFF"}
    assert listed(hub) == hashes(kept)


@pytest.mark.parametrize("name", ["README.md", "model.ckpt"])
def test_an_edit_on_the_hub_is_not_lost(hub, publish, folder, name):
    publish()
    repo = hub.repos[NAME]
    edited = b"# Edited in the browser" if name == "README.md" else b"\0new"
    repo.commit("main", {**repo.files(), name: edited}, "edit")
    write(folder, {name: b"# A later model", "plan.json": b"{}"})
    before = state(hub)
    error = publish()["error"]
    assert error.startswith(f"{NAME}: {name} was edited or added there")
    assert state(hub) == before
    write(folder, {name: edited})  # as advised
    assert publish()["error"] is None
    assert state(hub) == {**FILES, name: edited, "plan.json": b"{}"}


def test_an_edit_elsewhere_does_not_matter(hub, publish, folder):
    """What is the same in the folder is no reason to refuse."""
    publish()
    repo = hub.repos[NAME]
    repo.commit("main", {**repo.files(), "README.md": b"# Better"}, "edit")
    write(folder, {"README.md": b"# Better"})
    assert publish()["error"] is None
    assert state(hub)["README.md"] == b"# Better"


def test_a_file_added_there_by_hand_is_not_replaced(hub, publish, folder):
    publish()
    repo = hub.repos[NAME]
    repo.commit("main", {**repo.files(), "custom.py": b"theirs"}, "by hand")
    write(folder, {"custom.py": b"ours"})
    assert "custom.py was edited or added" in publish()["error"]
    assert state(hub)["custom.py"] == b"theirs"


def test_an_empty_repository_is_used(hub, publish, check):
    hub.add(NAME)
    assert check()["state"] == "empty"
    assert publish()["error"] is None
    assert state(hub) == FILES


@pytest.mark.parametrize(
    "there",
    [
        {"pytorch_model.bin": b"\0"},
        {"plan.json": FILES["plan.json"]},  # of ours, uploaded by hand
        {MANIFEST: b"[" * 100_000},
        {MANIFEST: b'{"format": "speechbrain_stablequant.publication"}'},
    ],
)
def test_other_content_is_refused(hub, publish, check, there):
    hub.add(NAME, there)
    before = hub.repos[NAME].files()
    for result in (check(), publish()):
        assert (
            f"{NAME} has other content: {next(iter(there))}."
            in (result["error"])
        )
    assert hub.repos[NAME].files() == before
    assert "put" not in hub.steps()


def test_overwriting_replaces_everything(hub, publish):
    hub.add(NAME, {"pytorch_model.bin": b"\0", "README.md": b"#"})
    result = publish(overwrite=True)
    assert result["deleted"] == ["pytorch_model.bin"]
    assert state(hub) == FILES
    publish()
    repo = hub.repos[NAME]
    repo.commit("main", {**repo.files(), "README.md": b"#", "x": b"y"}, "edit")
    assert publish(overwrite=True)["deleted"] == ["x"]
    assert state(hub) == FILES


def test_states(hub, publish, check):
    assert check()["state"] == "absent"
    publish()
    assert check()["state"] == "ours"
    hub.repos[NAME].commit("main", {"x": b"y"}, "by hand")
    assert check(overwrite=True)["state"] == "other"


# -- visibility and branches --------------------------------------------------


def test_a_private_repository(hub, publish, check):
    assert publish(private=True)["error"] is None
    assert hub.repos[NAME].private
    assert check()["private"] is True
    assert publish(private=True)["error"] is None
    assert publish()["error"] is None


@pytest.mark.parametrize("private", [True, False])
def test_visibility_is_not_changed(hub, publish, private):
    hub.add(NAME, private=not private)
    error = publish(private=private)["error"]
    now = "public" if private else "private"
    assert error.startswith(f"{NAME} is {now} already")
    assert f"{hub.url}/{NAME}/settings" in error
    assert state(hub) == {}


def test_a_branch_of_a_repository_with_other_content(hub, publish, folder):
    """The float model stays on main; the branch has the publication only."""
    floats = {"model.ckpt": b"\0float", "README.md": FILES["README.md"]}
    hub.add(NAME, {**floats, "extra.bin": b"\0"})
    result = publish(revision="int8")
    assert result["deleted"] == ["extra.bin"]
    assert state(hub, "int8") == FILES
    assert state(hub) == {**floats, "extra.bin": b"\0"}
    write(folder, {"README.md": b"# Two"})
    assert publish(revision="int8")["error"] is None
    assert state(hub, "int8") == {**FILES, "README.md": b"# Two"}


def test_a_branch_of_a_new_repository(hub, publish):
    assert publish(revision="v1/int8")["error"] is None
    assert state(hub, "v1/int8") == FILES
    assert state(hub) == {}
    assert publish(revision="main")["error"] is None
    assert state(hub) == FILES


def test_a_branch_with_other_content_is_refused(hub, publish):
    repo = hub.add(NAME)
    repo.commit("int8", {".gitattributes": ATTRIBUTES, "x": b"y"}, "by hand")
    assert "has other content: x." in publish(revision="int8")["error"]
    assert state(hub, "int8") == {"x": b"y"}


def test_manifests_of_others_are_not_believed(folder):
    write_manifest(folder)
    written = (folder / MANIFEST).read_bytes()
    assert read_manifest(written) == hashes(FILES)
    for wrong in ({"format": "x"}, {"files": []}, {"files": {"a": 1}}):
        changed = json.dumps({**json.loads(written), **wrong}).encode()
        assert read_manifest(changed) is None

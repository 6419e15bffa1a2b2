"""Publications reach a hub through the real client, whole or not at all."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from speechbrain_stablequant.publishing.manifest import (
    MANIFEST,
    hash_bytes,
    manifest_bytes,
    read_manifest,
)

from . import publishing
from .hub_client import Client, environment
from .hub_server import ATTRIBUTES, Failures, Hub

NAME = "ann/tiny"
PLAN = json.dumps({"format": "speechbrain_stablequant.plan", "layers": {}})
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "hyperparams.yaml": b"model: 1\n",
    "plan.json": PLAN.encode(),
    "model.ckpt": b"\0weights" * 5000,
    "wav2vec2.ckpt": b"\0encoder" * 6000,
    "plots/front.png": b"\x89PNG\0",
}
LARGE = ("model.ckpt", "wav2vec2.ckpt", "plots/front.png")


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Start a hub, a client of it, and one that must not go online."""
    online, offline = (tmp_path_factory.mktemp("home") for _ in range(2))
    with Hub() as hub:
        offline = Client(hub.url, offline, HF_HUB_OFFLINE="1")
        client = Client(hub.url, online)
        assert client.answer() == {"ready": True}
        yield hub, client, offline
        client.close()
        offline.close()


@pytest.fixture
def running(clients):
    return clients[:2]


@pytest.fixture
def offline(clients):
    return clients[2]


@pytest.fixture
def hub(running):
    running[0].reset()
    return running[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "publication", FILES)


@pytest.fixture
def publish(running, hub, folder):
    """Return what uploads a folder and gives the result, errors included."""
    client = running[1]

    def run(where=folder, files=None, login="hf_write", **destination):
        destination = {"repo": NAME, **destination}
        files = sorted(names(where)) if files is None else files
        client.start(
            folder=where,
            files=files,
            destination=destination,
            login=login,
            message="Publish",
            progress=False,
        )
        return client.answer()

    return run


@pytest.fixture
def check(running, hub):
    client = running[1]

    def run(login="hf_write", **destination):
        client.start(
            function="check_destination",
            destination={"repo": NAME, **destination},
            login=login,
        )
        return client.answer()

    return run


def write(folder: Path, files: dict) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def names(folder: Path) -> list:
    return [
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file()
    ]


def state(hub, branch="main", name=NAME) -> dict:
    """Return what is on the hub, without what we and it add."""
    files = hub.repos[name].files(branch)
    assert files.pop(".gitattributes") == ATTRIBUTES
    files.pop(MANIFEST, None)
    return files


def listed(hub) -> dict:
    return read_manifest(hub.repos[NAME].files()[MANIFEST])


def hashes(files: dict) -> dict:
    return {name: hash_bytes(content) for name, content in files.items()}


def commits(hub, name=NAME) -> list:
    return list(hub.repos[name].messages.values())


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


def test_a_publication_by_hand_is_updated_and_nothing_deleted(hub, publish):
    """It has a plan, but nobody knows whose the other files are."""
    theirs = {"plan.json": PLAN.encode(), "README.md": b"#", "notes": b"x"}
    hub.add(NAME, theirs)
    assert publish()["error"] is None
    assert state(hub) == {**FILES, "notes": b"x"}


def test_an_empty_repository_is_used(hub, publish, check):
    hub.add(NAME)
    assert check()["state"] == "empty"
    assert publish()["error"] is None
    assert state(hub) == FILES


@pytest.mark.parametrize(
    "there",
    [
        {"pytorch_model.bin": b"\0"},
        {"plan.json": b'{"format": "of someone else"}'},
        {"plan.json": b"[" * 100_000},
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


# -- refused before anything is sent ------------------------------------------


@pytest.mark.parametrize(
    ("repo", "hint"),
    [
        ("tiny", "Put your user name or organization first: 'user/tiny'."),
        ("https://huggingface.co/ann/tiny", "Did you mean 'ann/tiny'?"),
        ("ann/my model", "Did you mean 'ann/my-model'?"),
        ("ann/tiny/main", "Did you mean 'ann/tiny'?"),
        ("ann/tiny--x", "--"),
        ("", "is no name of a repository"),
    ],
)
def test_wrong_names_of_repositories(hub, check, repo, hint):
    assert hint in check(repo=repo)["error"]
    assert hub.sent == []


@pytest.mark.parametrize(
    "branch", ["", "a b", "refs/pr/1", "../x", "-x", "a" * 40]
)
def test_wrong_names_of_branches(hub, check, branch):
    error = check(revision=branch)["error"]
    assert re.match(f"'{re.escape(branch)}' is (no name of a br|a comm)", error)
    assert hub.sent == []


@pytest.mark.parametrize(
    ("login", "repo", "message"),
    [
        ("", NAME, "There is no token for the hub. Make a token that may"),
        ("hf_wrong", NAME, "The hub does not accept the token."),
        ("hf_read", NAME, "The token of ann may only read."),
        ("hf_fine_read", NAME, "The token of ann may only read."),
        ("hf_write", "bob/tiny", "may not write to 'bob', which is neither"),
        ("hf_write", "labs/tiny", "Did you mean 'lab'?"),
        ("hf_write", "club/tiny", "ann may only read in 'club'."),
    ],
)
def test_tokens_that_may_not_write(hub, publish, login, repo, message):
    assert message in publish(login=login, repo=repo)["error"]
    assert set(hub.steps()) <= {"info", "whoami"}
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("login", "repo"), [("hf_fine", "ANN/tiny"), ("hf_write", "lab/tiny")]
)
def test_tokens_that_may_write(check, login, repo):
    result = check(login=login, repo=repo)
    assert (result["error"], result["user"]) == (None, "ann")


def test_a_token_may_be_given(check):
    assert check(login="", token="hf_write")["error"] is None


def test_a_gitignore_is_refused(hub, publish):
    hub.add(NAME, {".gitignore": b"*.ckpt", "plan.json": PLAN.encode()})
    assert "has a .gitignore" in publish()["error"]
    assert "commit" not in hub.steps()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "absent.txt", "plots", "a//b"]
)
def test_files_that_cannot_be_published(hub, publish, folder, name):
    write(folder.parent, {"secret": b"x"})
    error = publish(files=["README.md", name])["error"]
    assert "cannot be published" in error
    assert hub.sent == []


def test_no_files(hub, publish):
    assert "no files to publish" in publish(files=[])["error"]


# -- failures of the hub ------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "status"),
    [
        *(("commit", 412), ("commit", 500), ("batch", 403), ("batch", 503)),
        *(("put", 400), ("put", 500), ("put", 507)),
    ],
)
def test_a_failure_leaves_the_publication_as_it_was(
    hub, publish, folder, step, status
):
    publish()
    write(folder, {"README.md": b"# Two", "model.ckpt": b"\0two"})
    (folder / "hyperparams.yaml").unlink()
    before = hub.repos[NAME].files()
    hub.failures.status = {step: status}
    error = publish()["error"]
    assert error.startswith(f"{NAME}: ")
    assert f"(HTTP {status}" in error
    assert "\n" not in error
    assert hub.repos[NAME].files() == before
    hub.failures = Failures()
    assert publish()["error"] is None
    assert state(hub)["README.md"] == b"# Two"
    assert "hyperparams.yaml" not in state(hub)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "does not accept the token"),
        (403, "may not write there"),
        (412, "Someone has changed the branch meanwhile; nothing was"),
        (413, "larger than the hub takes"),
        (429, "Wait some minutes"),
        (500, "Repeat the command: what has arrived is not sent again."),
        (507, "storage of the account is used up"),
    ],
)
def test_what_failed_commits_say(hub, publish, status, advice):
    hub.failures.status = {"commit": status}
    error = publish()["error"]
    assert advice in error
    assert f"(HTTP {status}, 'told to fail')" in error
    url = f"{hub.url}/{NAME}"
    assert f"The repository {url}, made for this, is empty." in error
    assert state(hub) == {}
    hub.failures = Failures()
    sent = len(hub.puts())
    assert publish()["error"] is None
    assert state(hub) == FILES
    assert len(hub.puts()) == sent == len(LARGE)


@pytest.mark.parametrize("step", ["info", "whoami", "create", "branch"])
@pytest.mark.parametrize("status", [403, 500])
def test_failures_before_anything_is_sent(hub, publish, step, status):
    hub.failures.status = {step: status}
    error = publish(revision="int8")["error"]
    assert f"(HTTP {status}" in error
    assert not {"put", "commit"} & set(hub.steps())
    made = f"The repository {hub.url}/{NAME}, made for this, is empty."
    assert (made in error) == (step == "branch") == (NAME in hub.repos)


def test_a_failed_branch_is_gone_on_with(hub, publish):
    """The branch has main's files then, which are not taken for others'."""
    hub.add(NAME, {"float.bin": b"\0"})
    hub.failures.status = {"commit": 500}
    error = publish(revision="int8")["error"]
    assert "The branch 'int8', made for this, stands where main does." in error
    hub.failures = Failures()
    assert publish(revision="int8")["error"] is None
    assert state(hub, "int8") == FILES
    assert state(hub) == {"float.bin": b"\0"}


def test_a_commit_between_is_not_overwritten(hub, publish, folder):
    publish()
    write(folder, {"README.md": b"# Two"})
    hub.failures.moved = True
    error = publish()["error"]
    assert "Someone has changed the branch meanwhile" in error
    assert state(hub) == {**FILES, "other.txt": b"someone else's"}
    assert commits(hub)[-1] == "by someone else"


def test_an_invalid_card_is_said(hub, publish, folder):
    write(folder, {"README.md": b"---\nlicense: [\n---\n"})
    error = publish()["error"]
    assert "Invalid metadata in README.md" in error
    assert state(hub) == {}
    assert hub.puts() == []
    assert '"license" must be one of ...' in error


# -- connections --------------------------------------------------------------


def test_dropped_connections_are_survived(hub, publish):
    """By the client itself, or in earlier versions of it by repeating."""
    hub.failures.drop = {"put": 2}
    while error := publish()["error"]:
        assert "The hub cannot be reached (" in error
    assert hub.failures.drop == {"put": 0}
    assert state(hub) == FILES


def test_what_has_arrived_is_not_sent_again(hub, publish):
    hub.failures.status = {"verify": 403}
    assert "403" in publish()["error"]
    arrived = set(hub.repos[NAME].blobs)
    assert arrived
    hub.failures = Failures()
    del hub.sent[:]
    assert publish()["error"] is None
    assert state(hub) == FILES
    large = {hash_bytes(FILES[name]).sha256 for name in LARGE}
    assert set(hub.puts()) == large - arrived


@pytest.mark.parametrize("step", ["info", "whoami", "put", "commit"])
def test_a_connection_that_stays_broken(hub, publish, step):
    hub.failures.drop = {step: -1}
    error = publish()["error"]
    assert error.startswith(f"{NAME}: The hub cannot be reached (")
    assert "Check the network" in error
    hub.failures = Failures()
    assert publish()["error"] is None
    assert state(hub) == FILES


def test_a_hub_that_does_not_answer(hub, check):
    hub.failures.seconds = {"info": 4}
    error = check()["error"]
    assert error.startswith(f"{NAME}: The hub does not answer (ReadTimeout")
    assert hub.sent == []


def test_ctrl_c_passes_through_and_the_rest_is_sent_later(running, publish):
    hub, client = running
    hub.failures.seconds = {"put": 0.4}
    hub.add(NAME)
    folder_call = threading.Thread(target=lambda: results.append(publish()))
    results: list = []
    folder_call.start()
    deadline = time.monotonic() + 20
    while "batch" not in hub.steps() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    client.process.send_signal(signal.SIGINT)
    folder_call.join()
    assert results == [{"error": "KeyboardInterrupt"}]
    assert state(hub) == {}
    hub.failures = Failures()
    assert publish()["error"] is None
    assert state(hub) == FILES


def test_a_hub_that_is_down(hub, publish):
    with hub.down():
        error = publish()["error"]
    assert error.startswith(f"{NAME}: The hub cannot be reached (Connect")
    assert publish()["error"] is None


def test_offline(hub, offline, folder):
    offline.answer()
    call = {"folder": folder, "files": ["README.md"]}
    offline.start(**call, destination={"repo": NAME})
    error = offline.answer()["error"]
    assert error.startswith(f"{NAME}: Going online is switched off by HF_HUB")
    assert hub.sent == []


def test_manifests_of_others_are_not_believed():
    files = {"model.ckpt": hash_bytes(b"x")}
    data = json.loads(manifest_bytes(files))
    assert read_manifest(json.dumps(data).encode()) == files
    for wrong in ({"format": "x"}, {"files": []}, {"files": {"a": 1}}):
        changed = json.dumps({**data, **wrong}).encode()
        assert read_manifest(changed) is None


# -- end to end ---------------------------------------------------------------

LOAD = """
import sys, torch
from speechbrain.inference.ASR import EncoderASR
from speechbrain.inference.speaker import SpeakerRecognition
kind, inputs, outputs, savedir = sys.argv[1:]
wavs, lens = torch.load(inputs)
torch.set_num_threads(1)
if kind == "asr":
    model = EncoderASR.from_hparams(source="ann/asr", savedir=savedir)
    result = model.transcribe_batch(wavs, lens)[0]
else:
    model = SpeakerRecognition.from_hparams(
        source="ann/speaker", savedir=savedir
    )
    result = model.encode_batch(wavs)
torch.save(result, outputs)
"""


def load_elsewhere(hub, kind, tmp_path, wavs, lens):
    """Return what stock SpeechBrain computes, with nothing but the hub."""
    inputs, outputs = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save((wavs, lens), inputs)
    command = [sys.executable, "-c", LOAD, kind, inputs, outputs]
    env = environment(hub.url, tmp_path / "home")
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "saved")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(outputs)


def test_a_published_recognizer_transcribes(
    hub, publish, published, speech, tmp_path
):
    assert publish(published, repo="ann/asr")["error"] is None
    model = publishing.load_asr(published, tmp_path / "local")
    expected, _ = model.transcribe_batch(*speech)
    words = load_elsewhere(hub, "asr", tmp_path, *speech)
    assert words == expected
    assert any(words)


def test_a_published_speaker_model_embeds(hub, publish, speaker, tmp_path):
    folder, embed, _ = speaker
    assert publish(folder, repo="ann/speaker")["error"] is None
    wavs = publishing.voices(5)
    found = load_elsewhere(
        hub, "speaker", tmp_path, wavs, torch.ones(len(wavs))
    )
    assert torch.equal(found, embed(wavs))
    assert found.std() > 0

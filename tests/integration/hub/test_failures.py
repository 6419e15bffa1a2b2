"""What goes wrong is said, and leaves the hub as it was."""

import re
import signal
import threading
import time

import pytest

from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.hub_errors import explained
from speechbrain_stablequant.publishing.manifest import write_manifest
from tests.integration.hub.publication import (
    FILES,
    LARGE,
    NAME,
    commits,
    hashes,
    state,
    write,
)
from tests.integration.hub.server import Failures

# -- refused before anything is sent ------------------------------------------


@pytest.mark.parametrize(
    ("repo", "hint"),
    [
        ("tiny", "Put your user name or organization first: 'user/tiny'."),
        ("https://huggingface.co/ann/tiny", "Did you mean 'ann/tiny'?"),
        ("ann/my model", "Did you mean 'ann/my-model'?"),
        ("ann/tiny/main", "Did you mean 'ann/tiny'?"),
        ("ann/tiny--x", "--"),
        ("ann/", "is not a valid repository id"),
    ],
)
def test_wrong_names_of_repositories(hub, check, repo, hint):
    assert hint in check(repo=repo)["error"]
    assert hub.sent == []


@pytest.mark.parametrize("branch", ["a b", "refs/pr/1", "../x", "-x", "a" * 40])
def test_wrong_names_of_branches(hub, check, branch):
    error = check(revision=branch)["error"]
    assert re.match(
        f"'{re.escape(branch)}' is (not a valid branch|a commit)", error
    )
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
    assert (result["error"], result["state"]) == (None, "absent")


def test_a_token_may_be_given(check):
    assert check(login="", token="hf_write")["error"] is None


def test_a_gitignore_is_refused(hub, publish):
    hub.add(NAME, {".gitignore": b"*.ckpt"})
    assert "has a .gitignore" in publish()["error"]
    assert "commit" not in hub.steps()


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
    assert f"The repository {url} was made, and may be empty." in error
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
    made = f"The repository {hub.url}/{NAME} was made, and may be empty."
    assert (made in error) == (step == "branch") == (NAME in hub.repos)


def test_a_failed_branch_is_gone_on_with(hub, publish):
    """The branch has main's files then, which are not taken for others'."""
    hub.add(NAME, {"float.bin": b"\0"})
    hub.failures.status = {"commit": 500}
    error = publish(revision="int8")["error"]
    assert "The branch 'int8' was made, and may be as main is." in error
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
    large = {hashes(FILES)[name].sha256 for name in LARGE}
    assert set(hub.puts()) == large - arrived


def test_a_commit_whose_answer_was_lost(hub, publish):
    hub.failures.lost = True
    error = publish()["error"]
    assert "was made, and may be empty." in error
    hub.failures = Failures()
    assert "Nothing has changed since" in publish()["summary"]
    assert state(hub) == FILES
    assert commits(hub) == ["initial commit", "Publish"]


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
    assert error.startswith(f"{NAME}: The hub cannot be reached (ReadTimeout")
    assert hub.sent == []


def test_ctrl_c_passes_through_and_the_rest_is_sent_later(running, publish):
    hub, client = running
    hub.failures.seconds = {"put": 0.4}
    hub.add(NAME)
    results: list = []
    call = threading.Thread(target=lambda: results.append(publish()))
    call.start()
    deadline = time.monotonic() + 20
    while "batch" not in hub.steps() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    client.process.send_signal(signal.SIGINT)
    call.join()
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
    write_manifest(folder)
    offline.start(folder=folder, options={"repo": NAME})
    error = offline.answer()["error"]
    assert error.startswith(f"{NAME}: Going online is switched off by HF_HUB")
    assert hub.sent == []


@pytest.mark.parametrize(
    ("err", "message"),
    [
        (PermissionError("no"), "It failed (PermissionError: no). Repeat"),
        (RuntimeError("a\nb"), "It failed (RuntimeError: a b). Repeat"),
        (TimeoutError(), "The hub cannot be reached (TimeoutError). Check"),
        (
            type("XetAuthenticationError", (PermissionError,), {})(),
            "The hub does not accept the token.",
        ),
    ],
)
def test_errors_of_other_kinds(err, message):
    with pytest.raises(PublishError) as caught, explained(NAME):
        raise err
    assert str(caught.value).startswith(f"{NAME}: {message}")


@pytest.mark.parametrize("err", [KeyboardInterrupt(), KeyError("x")])
def test_what_passes_through(err):
    with pytest.raises(type(err)) as caught, explained(NAME):
        raise err
    assert caught.value is err

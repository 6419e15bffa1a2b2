"""Fixtures: a hub, clients of it, and what publishes with them."""

from pathlib import Path

import pytest

from tests.integration.hub.client import Client
from tests.integration.hub.publication import FILES, NAME, names, write
from tests.integration.hub.server import Hub


@pytest.fixture(scope="session")
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

"""Fixtures: a hub, clients of it, and what publishes with them."""

from pathlib import Path

import pytest

from speechbrain_stablequant.publishing.manifest import write_manifest
from tests.integration.hub.client import Client
from tests.integration.hub.publication import FILES, NAME, write
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

    def run(where=folder, login="hf_write", **options):
        write_manifest(where)
        client.start(
            folder=where,
            options={"repo": NAME, "message": "Publish", **options},
            login=login,
        )
        return client.answer()

    return run


@pytest.fixture
def check(running, hub):
    client = running[1]

    def run(login="hf_write", token=None, **options):
        client.start(
            function="check_repository",
            options={"repo": NAME, **options},
            token=token,
            login=login,
        )
        return client.answer()

    return run

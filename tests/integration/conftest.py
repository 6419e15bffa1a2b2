"""Fixtures of the integration tests: a trained toy recipe, files by hash."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.integration import publishing, toy


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums of floats must not depend on how many cores are free."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Train the toy recipe once for all workers, without the plugin."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the whole run
    folder, ready = base / "toy_trained", base / "toy_trained.ready"
    with FileLock(base / "toy_trained.lock"):
        if not ready.exists():
            toy.run(toy.load(folder, block=""), tests=())
            ready.touch()
    return folder


@pytest.fixture
def experiment(trained, tmp_path) -> Path:
    """Return a copy of the trained experiment folder."""
    return copy_experiment(trained, tmp_path / "experiment")


def copy_experiment(trained: Path, folder: Path) -> Path:
    """Copy an experiment folder, times included."""
    shutil.copytree(trained, folder, copy_function=shutil.copy2)
    return folder


@pytest.fixture(scope="session")
def float_run(trained, tmp_path_factory):
    """Evaluate without the plugin: folder, Brain, losses."""
    folder = tmp_path_factory.mktemp("float") / "experiment"
    copy_experiment(trained, folder)
    brain, losses = toy.run(toy.load(folder, block=""))
    return folder, brain, losses


@pytest.fixture(scope="session")
def block_run(trained, tmp_path_factory):
    """Evaluate with the smallest block: folder, Brain, losses."""
    folder = tmp_path_factory.mktemp("block") / "experiment"
    copy_experiment(trained, folder)
    brain, losses = toy.run(toy.load(folder))
    return folder, brain, losses


@pytest.fixture
def published(block_run, tmp_path) -> Path:
    """Return a published folder of the toy recognizer."""
    folder, _, _ = block_run
    return publishing.publish_asr(folder, tmp_path / "published")


@pytest.fixture
def speech():
    """Return a batch of utterances and their relative lengths."""
    return publishing.speech()


@pytest.fixture(scope="session")
def speaker(tmp_path_factory):
    """Return a published speaker model, and what it was made of."""
    folder = tmp_path_factory.mktemp("speaker") / "published"
    return (folder, *publishing.publish_speaker(folder))

"""An experiment of the smallest block, what is published of it, and copies."""

import shutil

import pytest

from speechbrain_stablequant.publishing import (
    PublishOptions,
    make_folder,
)
from tests.integration.publications.experiments import as_recipe


@pytest.fixture(scope="session")
def run(block_run, tmp_path_factory):
    """Return the experiment of the smallest block."""
    folder = tmp_path_factory.mktemp("publish") / "experiment"
    return as_recipe(block_run[0], folder)


@pytest.fixture(scope="session")
def publication(run, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("hub") / "toy")
    options = PublishOptions(
        repo="me/toy", language="en", license="apache-2.0", output=output
    )
    return make_folder(run, options)


@pytest.fixture
def experiment(run, tmp_path):
    """Return a copy to spoil; its YAML names the folder of the original."""
    folder = tmp_path / "experiment"
    shutil.copytree(run, folder)
    return folder

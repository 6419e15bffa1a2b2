"""Every Python and YAML block of the README and the pages works."""

import re

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_stablequant import PostTrainingQuantizer
from speechbrain_stablequant.layers.base import _REGISTRY
from speechbrain_stablequant.methods.calibration import OBSERVERS
from speechbrain_stablequant.methods.search import METHODS
from tests.docs import setups
from tests.docs.markdown import FRONT, READMES, blocks, name
from tests.recipes.test_hparams import RECIPE

PAGES = sorted({b.path for b in blocks(FRONT, "python")})
YAML = blocks(FRONT, "yaml")
# What a snippet may refer to; one that it defines itself is left out
PREAMBLE = re.split(r"\n(?=\w)", RECIPE.strip())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled models of all pages: several show the same one."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch, cache):
    """Run in a folder of its own; forget what the snippets register."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABLEQUANT_CACHE", cache)
    registries = (OBSERVERS, METHODS, _REGISTRY)
    kept = [dict(registry) for registry in registries]
    yield
    for registry, before in zip(registries, kept):
        registry.clear()
        registry.update(before)


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_blocks_run(path):
    """In the order of the page, which later blocks may rely on."""
    names = {"__name__": "__main__"}
    for block in blocks([path], "python"):
        if block.skipped:
            continue
        how, _, setup = block.remark.partition(" with ")
        assert how == "run", f"{block}: says neither 'run' nor 'skip, why'"
        if setup:
            names.update(getattr(setups, setup)())
        code = "\n" * block.line + block.text
        exec(compile(code, str(path), "exec"), names)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_blocks_load(block, tmp_path):
    """With all that they refer to, as a recipe would have it."""
    if block.skipped:
        pytest.skip(block.remark)
    own = set(re.findall(r"^(\w+):", block.text, re.MULTILINE))
    given = [p for p in PREAMBLE if p.partition(":")[0] not in own]
    text = "\n".join([*given, block.text]).replace("{folder}", str(tmp_path))
    loaded = load_hyperpyyaml(text)
    assert own
    assert own <= set(loaded)
    if "ptq" in own:
        assert isinstance(loaded["ptq"], PostTrainingQuantizer)


def test_skipped_blocks_give_a_reason():
    every = [*blocks([*FRONT, *READMES], "python"), *YAML]
    for block in every:
        if block.remark.startswith("skip"):
            assert len(block.remark) > len("skip, why"), str(block)

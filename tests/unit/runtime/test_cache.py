"""Compiled models on disk: quick, and never the wrong one."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from speechbrain_stablequant.runtime import (
    accelerate,
    runtime_report,
)
from speechbrain_stablequant.runtime.cache import (
    CompiledCache,
    default_cache_folder,
)
from speechbrain_stablequant.runtime.processor import detect_processor
from tests.unit.runtime import helpers
from tests.unit.runtime.cache_helpers import (
    change_bias,
    files,
    start,
    was_cached,
)
from tests.unit.runtime.helpers import LONGER, Pair, X, distance, quantized_pair

# -- a second start ------------------------------------------------------------------

SCRIPT = """
import json, sys, torch
from tests.unit.runtime.helpers import LONGER, X, quantized_pair
from speechbrain_stablequant.runtime import accelerate, runtime_report

torch.set_num_threads(1)
torch.manual_seed(7)
model = accelerate(quantized_pair())
results = [model(x).tolist() for x in (X, LONGER, X[:1])]
report = runtime_report(model)
unit = report.units[0]
print(json.dumps([results, unit.cached, unit.difference, report.summary()]))
"""
ROOT = Path(__file__).parents[3]


def run_script(folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={
            **os.environ,
            "STABLEQUANT_CACHE": str(folder),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_later_process_loads_what_the_first_two_compiled(tmp_path):
    """The first two start together, and agree."""
    with ThreadPoolExecutor(2) as pool:
        first, other = pool.map(run_script, [tmp_path] * 2)
    later = run_script(tmp_path, PYTHONHASHSEED="5")
    assert not (first[1] and other[1])
    assert not first[2] is other[2] is None
    assert later[1] is True
    assert later[2] is None  # every axis was compared by the first processes
    assert later[0] == first[0] == other[0]
    assert later[3] == first[3] == "2 of 2 layers executed in int8"
    assert len(files(tmp_path)) == 2


def test_a_cached_graph_is_compared_where_it_never_was(pair, tmp_path):
    expected = pair(LONGER)
    start(pair, tmp_path)
    result, units = start(pair, tmp_path, LONGER)
    assert units[0].cached
    assert units[0].difference is not None
    assert distance(result, expected) < 1e-5
    assert start(pair, tmp_path, LONGER)[1][0].difference is None


def test_structures_of_results_survive(tmp_path):
    class Nested(Pair):
        def forward(self, x):
            y = self.both(x)
            return {"a": [y, (y.argmax(-1), None)], "b": 2, "c": y > 0}

    model = quantized_pair(Nested)
    expected = model(X)
    for cached in (False, True):
        result, units = start(model, tmp_path)
        assert units[0].cached is cached
        assert distance(result, expected) < 1e-5
        assert (result["b"], result["a"][1][1]) == (2, None)
        assert result["a"][1][0].dtype == torch.long
        assert isinstance(result["a"][1], tuple)


def test_reports_of_weight_only_layers_survive(tmp_path):
    model = quantized_pair(bits="W4")
    start(model, tmp_path)
    report = runtime_report(model).to_dict()["layers"]
    assert was_cached(model, tmp_path)
    assert runtime_report(model).to_dict()["layers"] == report
    assert report[0]["weights"] == "int4"


def test_remarks_survive_and_are_made_once(pair, tmp_path, monkeypatch):
    """The limit binds our rule here, not the runtime, which has started."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    notes = []
    for cached in (False, True):
        assert was_cached(pair, tmp_path) is cached
        with torch.no_grad():
            pair(X[0])  # another graph of the same layers
        notes.append(runtime_report(pair).notes)
    assert notes[0] == notes[1]
    assert len(notes[0]) == (1 if detect_processor().saturates else 0)


def test_no_folder_keeps_nothing(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLEQUANT_CACHE", str(tmp_path))
    assert not was_cached(pair, False)
    assert not was_cached(pair, False)
    assert not files(tmp_path)
    assert not was_cached(pair, True)
    assert was_cached(pair, True)


def test_the_folder_is_where_the_user_says(monkeypatch):
    monkeypatch.setenv("STABLEQUANT_CACHE", "/a/b")
    assert default_cache_folder() == Path("/a/b")
    monkeypatch.delenv("STABLEQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_cache_folder().parts[:2] == ("/", "c")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path.home() in default_cache_folder().parents


def test_files_hold_json_and_the_runtimes_own_format(pair, tmp_path):
    start(pair, tmp_path)
    (description,), (blob,) = files(tmp_path, ".json"), files(tmp_path, ".blob")
    assert json.loads(description.read_text())["proven"]
    assert not blob.read_bytes().startswith(b"\x80")  # a pickle would
    assert not files(tmp_path, ".pkl")


# -- broken files ------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def replace_json(change):
    def damage(path):
        data = json.loads(path.read_text())
        path.write_text(json.dumps(change(data)))

    return damage


def without(name):
    return replace_json(
        lambda data: {k: v for k, v in data.items() if k != name}
    )


DAMAGES = {
    "blob cut": (".blob", truncate),
    "blob flipped": (".blob", flip),
    "blob empty": (".blob", lambda path: path.write_bytes(b"")),
    "blob gone": (".blob", Path.unlink),
    "json cut": (".json", truncate),
    "json empty": (".json", lambda path: path.write_bytes(b"")),
    "json binary": (".json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "json gone": (".json", Path.unlink),
    "json a list": (".json", replace_json(lambda data: [data])),
    "json a number": (".json", replace_json(lambda data: 3)),
    "no structure": (".json", without("structure")),
    "no shapes": (".json", without("example_shapes")),
    "no layers": (".json", without("layers")),
    "no proof": (".json", without("proven")),
    "no notes": (".json", without("notes")),
    "no digest": (".json", without("sha256")),
    "odd structure": (
        ".json",
        replace_json(lambda data: {**data, "structure": {"spec": "x"}}),
    ),
    "odd layers": (
        ".json",
        replace_json(lambda data: {**data, "layers": [{"x": 1}]}),
    ),
    "odd proof": (".json", replace_json(lambda data: {**data, "proven": 3})),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return a model, its result, and a folder that it is cached in."""
    model, folder = quantized_pair(), tmp_path_factory.mktemp("compiled")
    expected = model(X)
    start(model, folder)
    return model, expected, folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_file_is_compiled_again(compiled, tmp_path, damage):
    model, expected, folder = compiled
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ending, break_it = DAMAGES[damage]
    break_it(files(tmp_path, ending)[0])
    result, units = start(model, tmp_path)
    assert not units[0].cached
    assert distance(result, expected) < 1e-5
    assert was_cached(model, tmp_path)


def test_a_blob_that_no_runtime_wrote_is_compiled_again(pair, tmp_path):
    expected = pair(X)
    start(pair, tmp_path)
    name = files(tmp_path, ".blob")[0].stem
    cache = CompiledCache(tmp_path)
    meta, _ = cache.load(name)
    cache.store(name, meta, b"nonsense" * 100)
    result, units = start(pair, tmp_path)
    assert not units[0].cached
    assert distance(result, expected) < 1e-5


def test_files_that_vanish_while_a_model_runs(pair, tmp_path):
    accelerate(pair, cache_folder=tmp_path)
    with torch.no_grad():
        pair(X)
        for path in files(tmp_path):
            path.unlink()
        pair(LONGER)  # an axis that was never compared
    assert was_cached(pair, tmp_path) is False


def test_a_folder_that_cannot_be_made_costs_nothing_else(pair, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        assert not was_cached(pair, folder)
        with torch.no_grad():
            pair(LONGER)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="nothing is read-only to root",
)
def test_a_folder_that_cannot_be_written(pair, tmp_path):
    start(pair, tmp_path)
    tmp_path.chmod(0o500)
    try:
        assert was_cached(pair, tmp_path)
        with torch.no_grad():
            pair(LONGER)
        change_bias(pair)
        assert not was_cached(pair, tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_place_that_is_no_disk_costs_nothing_else(pair):
    """Not even root can make files there."""
    assert not was_cached(pair, Path("/dev/null"))
    assert not was_cached(pair, Path("/proc/stablequant"))


# -- several writers -----------------------------------------------------------------------


def test_writers_and_readers_never_see_half_of_a_file(tmp_path):
    cache, stop = CompiledCache(tmp_path), threading.Event()
    blobs = [bytes([n]) * 20000 for n in range(4)]
    seen = []

    def read():
        while not stop.is_set():
            found = cache.load("k")
            if found is not None:
                seen.append(found[0]["n"] == found[1][0])
                cache.update("k", {"proven": [1]})

    def write(n):
        for _ in range(25):
            cache.store("k", {"n": n}, blobs[n])

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        list(pool.map(write, range(4)))
        stop.set()
        for reader in readers:
            reader.result()
    assert all(seen)
    assert not list(tmp_path.glob(".*"))
    cache.store("k", {"n": 1}, blobs[1])
    assert cache.load("k")[1] == blobs[1]


def test_update_and_remove_of_what_is_not_there(tmp_path):
    cache = CompiledCache(tmp_path)
    cache.update("k", {"a": 1})
    cache.remove("k")
    assert cache.load("k") is None
    assert not files(tmp_path)
    nowhere = CompiledCache(None)
    nowhere.store("k", {}, b"")
    nowhere.remove("k")
    assert nowhere.load("k") is None


def test_helpers_do_not_use_the_cache_of_the_user(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("STABLEQUANT_CACHE", str(tmp_path))
    helpers.compare(pair, [(X,)])
    assert not files(tmp_path)

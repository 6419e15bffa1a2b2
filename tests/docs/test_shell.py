"""Commands of the README, the pages and the recipes can be typed as they are.

Nothing is run: scripts, YAML files, subcommands and options have to exist.
"""

import os
import re
import shlex
from pathlib import Path

import pytest
import speechbrain as sb
import yaml

from speechbrain_stablequant.cli import build_parser
from tests.docs.markdown import FRONT, READMES, ROOT, blocks

SHELL = blocks([*FRONT, *READMES], "shell")
UPSTREAM = "$SPEECHBRAIN_ROOT"


def commands(block) -> list[list[str]]:
    """Return the commands of a block, each as words."""
    text = re.sub(r"\\\n\s*", "", block.text)
    words = (shlex.split(line, comments=True) for line in text.splitlines())
    return [line for line in words if line]


def folder_of(block) -> Path:
    """Return where a block is typed."""
    if block.path in FRONT:
        where = block.remark.removeprefix("in ") or "."
        if where.startswith(UPSTREAM):
            root = os.environ.get("SPEECHBRAIN_ROOT")
            if not root:
                pytest.skip("SPEECHBRAIN_ROOT is not set")
            return Path(root) / where[len(UPSTREAM) + 1 :]
        return ROOT / where
    inside = block.path.parent
    for line in commands(block):
        script = line[1] if line[0] == "python" and len(line) > 1 else ""
        if script.startswith(("benchmarks/", "recipes/")) or script == "-m":
            return ROOT
    return inside


def keys(path: Path) -> set[str]:
    """Return the top-level keys of a YAML, which options override."""
    lines = path.read_text().splitlines()
    return {m[1] for m in map(re.compile(r"^(\w+):").match, lines) if m}


def check_options(line, known: set[str], where) -> None:
    """Check that a recipe has all options of a command."""
    _, _, overrides = sb.parse_arguments(line)
    for key in yaml.safe_load(overrides or "{}") or {}:
        assert key in known, f"{where}: there is no option --{key}"


def check_script(script: Path, rest, folder, made, where) -> None:
    """Check a ``python script.py ...``: its YAML and its options."""
    assert script.is_file(), f"{where}: there is no {script}"
    # A benchmark of a recipe is given the recipe's script and YAML first
    recipe = next((i for i, w in enumerate(rest) if w.endswith(".yaml")), None)
    if recipe is not None:
        for word in rest[:recipe]:
            assert (folder / word).is_file(), f"{where}: there is no {word}"
        name = rest[recipe]
        known = made.get(name) or keys(folder / name)
        check_options([name, *rest[recipe + 1 :]], known, where)
        return
    sources = [script, *script.parent.glob("*.py")]
    text = "".join(source.read_text() for source in sources)
    for word in rest:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert f'"{option}"' in text, f"{where}: no option {option}"


def check_python(line, folder, made, where) -> None:
    """Check a line that starts with ``python``."""
    if line[1] == "-m":
        script = ROOT / (line[2].replace(".", "/") + ".py")
        rest = line[3:]
    else:
        script, rest = folder / line[1], line[2:]
    rest = [word for word in rest if word != "..."]
    placeholders = {"TRAIN", "YAML"}
    if placeholders & set(rest):
        return
    check_script(script, rest, folder, made, where)


def check_cat(line, folder, made, where) -> None:
    """Check ``cat a.yaml b.yaml > c.yaml`` and remember what c has."""
    *sources, mark, target = line[1:]
    assert mark == ">", where
    found = set()
    for source in sources:
        path = Path(source.replace("path/to/", f"{ROOT}/"))
        found |= keys(path if path.is_absolute() else folder / path)
    made[target] = found


def check_make(line, where) -> None:
    """Check that the Makefile has a target."""
    text = (ROOT / "Makefile").read_text()
    assert f"\n{line[1]}:" in text, f"{where}: no target {line[1]}"


def check_install(line, where) -> None:
    """Check that the extras of ``pip install`` exist."""
    text = (ROOT / "setup.cfg").read_text()
    for extra in re.findall(r"\[(.+?)\]", " ".join(line)):
        for name in extra.split(","):
            assert f"\n{name} =\n" in text, f"{where}: no extra {name}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_exist(block):
    if block.skipped:
        pytest.skip(block.remark)
    folder, made = folder_of(block), {}
    for line in commands(block):
        where = f"{block}: {shlex.join(line)}"
        if line[0] == "cd":
            folder = (folder / line[1]).resolve()
            assert folder.is_dir(), where
        elif line[0] == "python":
            check_python(line, folder, made, where)
        elif line[0] == "stablequant":
            build_parser().parse_args(line[1:])
        elif line[0] == "cat":
            check_cat(line, folder, made, where)
        elif line[0] == "make":
            check_make(line, where)
        elif line[0] == "pip":
            check_install(line, where)
        else:
            pytest.fail(f"{where}: no check for {line[0]!r}")


@pytest.mark.parametrize(
    "line",
    [
        "train.py hparams/wav2vec2_small.yaml --ptq_bitz W4A8",
        "train.py hparams/wav2vec2_smal.yaml",
        "trian.py hparams/wav2vec2_small.yaml",
    ],
)
def test_a_wrong_command_is_found(line):
    """The checks above can fail."""
    folder = ROOT / "recipes/SpeechCommands/ASR/CTC"
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_python(["python", *line.split()], folder, {}, "here")

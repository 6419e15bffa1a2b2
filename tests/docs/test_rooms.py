"""CONTRIBUTING's table and drawing of rooms are those of contract and code."""

import ast
import re

import pytest

from tests.docs.markdown import ROOT, blocks, name

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PACKAGE = ROOT / "speechbrain_stablequant"
EXTENDING = ROOT / "docs" / "extending.md"


def contract() -> list[set[str]]:
    """Return the rooms of each floor by pyproject.toml, from the bottom."""
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r"^layers = (\[.*?\])", text, re.MULTILINE | re.DOTALL)
    floors = ast.literal_eval(layers[1])
    return [set(floor.split(" | ")) for floor in reversed(floors)]


def drawn() -> dict[str, set[str]]:
    """Return the arrows of the drawing."""
    [drawing] = blocks([CONTRIBUTING], "mermaid")
    arrows = re.findall(r"(\w+) --> (.+)", drawing.text)
    return {room: set(targets.split(" & ")) for room, targets in arrows}


def imported(room: str) -> set[str]:
    """Return the rooms that a room imports from."""
    folder = PACKAGE / room
    files = folder.rglob("*.py") if folder.is_dir() else [PACKAGE / "errors.py"]
    text = "\n".join(file.read_text() for file in files)
    found = re.findall(r"(?:from|import) speechbrain_stablequant\.(\w+)", text)
    return set(found) - {room}


def reached(room: str) -> set[str]:
    """Return the rooms that a room has a path to in the drawing."""
    near = drawn().get(room, set())
    return near.union(*map(reached, near))


def test_table_is_the_contract():
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|",
        CONTRIBUTING.read_text(),
        re.MULTILINE,
    )
    floors = contract()
    assert len(rows) == sum(map(len, floors))
    for number, rooms in enumerate(floors, 1):
        assert {room for floor, room in rows if int(floor) == number} == rooms


def test_rooms_are_the_folders():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set().union(*contract()) == folders | {"errors"}


@pytest.mark.parametrize("room", sorted(set().union(*contract())))
def test_drawing_is_that_of_the_imports(room):
    assert drawn().get(room, set()) <= imported(room)
    assert imported(room) <= reached(room)


@pytest.mark.parametrize("page", [CONTRIBUTING, EXTENDING], ids=name)
def test_paths_exist(page):
    """Those in backquotes, below the package or the repository."""
    paths = re.findall(r"`([a-z_]+/[\w/.]*)`", page.read_text())
    assert len(paths) > 5
    folders = (ROOT, PACKAGE, PACKAGE / "methods")
    made = {"docs/_build/html"}  # by a command
    for path in set(paths) - made:
        assert any((folder / path).exists() for folder in folders), path

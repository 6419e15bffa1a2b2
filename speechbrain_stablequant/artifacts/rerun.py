"""The command that runs a recipe once more, to measure a plan."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import yaml

from speechbrain_stablequant.artifacts.float_model import origin
from speechbrain_stablequant.artifacts.hyperparams import Definitions, plain
from speechbrain_stablequant.errors import StableQuantError

__all__ = ["measure_command"]

_GIVEN = "!PLACEHOLDER"  # a value that the command line has to give


def measure_command(folder: Path, plan: Path) -> str:
    """Return a command that scores a plan on the recipe's test sets.

    It runs the recipe in its own folder, on the YAML that the experiment was
    started with, and overrides the values that differ in the experiment.

    Arguments
    ---------
    folder : Path
        Output folder of the recipe.
    plan : Path
        The plan.
    """
    definitions = Definitions.load(folder / "hyperparams.yaml")
    source = origin(definitions)
    if source is None or not source.is_file():
        source = (folder / "hyperparams.yaml").resolve()
    script = _script(folder, source)
    start, name = script.parent, script.name
    words = ["python", name, _relative(source, start), "--test_only"]
    for key, value in _changed(definitions, source, folder):
        words += [f"--{key}", value]
    words += _plan_override("ptq_plan" in definitions, plan.resolve())
    command = " ".join(map(shlex.quote, words))
    return f"cd {shlex.quote(str(start))} && {command}"


def _script(folder: Path, source: Path) -> Path:
    """Return the recipe's script: SpeechBrain keeps a copy of it."""
    kept = [path.name for path in sorted(folder.glob("*.py"))] or ["train.py"]
    near = [source.parent.parent, source.parent, folder.resolve()]
    found = (place / name for place in near for name in kept)
    return next((p for p in found if p.is_file()), near[0] / kept[0])


def _relative(path: Path, start: Path) -> str:
    try:
        return str(path.relative_to(start))
    except ValueError:
        return str(path)


def _changed(
    definitions: Definitions, source: Path, folder: Path
) -> Iterator[tuple[str, str]]:
    """Yield values that the experiment was given on the command line."""
    original = _load(source)
    if original is None or source.parent == folder.resolve():
        return
    for name, node in original.values():
        now = definitions.get(name)
        if name == "output_folder":  # where the trained weights are
            yield name, str(folder.resolve())
        elif now is None or not (_is_value(node) and _is_value(now)):
            continue
        elif plain(node) != plain(now):
            yield name, str(now.value)


def _load(source: Path) -> Optional[Definitions]:
    try:
        return Definitions.load(source)
    except StableQuantError:  # edited since, and not valid YAML now
        return None


def _is_value(node) -> bool:
    """Whether a node is a single value, or a placeholder for one."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    return node.tag == _GIVEN or not node.tag.startswith("!")


def _plan_override(has_variable: bool, plan: Path) -> list[str]:
    """Return the arguments that give the plan to the ``ptq`` block."""
    if has_variable:
        return ["--ptq_plan", str(plan)]
    text = yaml.safe_dump(
        {"plan": str(plan)},
        default_flow_style=True,
        width=1 << 16,  # a long path with spaces would become several lines
    )
    return ["--ptq", text.strip()]

"""Run a recipe with a block of a benchmark in place of its own."""

import runpy
import sys
import tempfile
from pathlib import Path

__all__ = ["run_recipe"]


def run_recipe(block: str, script: str, hparams: str, *arguments: str) -> None:
    """Run a recipe's script with its ``ptq`` block replaced.

    Arguments
    ---------
    block : str
        Qualified name of the class of the block.
    script : str
        The recipe's ``train.py``.
    hparams : str
        Its YAML.
    *arguments : str
        What else the recipe is given.
    """
    with open(hparams, encoding="utf-8") as file:
        text = file.read()
    lines, inside = [], False
    for line in text.splitlines():
        inside = line.startswith("ptq:") or (inside and line[:1] in (" ", ""))
        if not inside:
            lines.append(line)
    lines += [
        "",
        f"ptq: !new:{block}",
        "   checkpointer: !ref <checkpointer>",
        "   plots: False",
    ]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(hparams).name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sys.argv = [script, str(path), "--test_only", *arguments]
        runpy.run_path(script, run_name="__main__")

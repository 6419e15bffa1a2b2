"""A wheel came without the template of the report's page.

Tests run beside the source, where the file is always found.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_build_has_the_template(tmp_path):
    source, target = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    package = "speechbrain_stablequant"
    shutil.copytree(ROOT / package, source / package)
    command = "from setuptools import setup; setup()"
    options = ("build_py", "--build-lib", target)
    subprocess.run(
        [sys.executable, "-c", command, *options], cwd=source, check=True
    )
    template = Path(package) / "report" / "page" / "template"
    built = {path.name for path in (target / template).iterdir()}
    assert built == {path.name for path in (ROOT / template).iterdir()}

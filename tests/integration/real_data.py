"""Real speech and upstream recipes, where a folder says they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETS = {"LibriSpeech": "librispeech_mini", "VoxCeleb": "voxceleb_mini"}


def data_folder(name: str, cache: Path) -> Path:
    """Return a data set below ``STABLEQUANT_DATA``, unpacked, or skip."""
    value = os.environ.get("STABLEQUANT_DATA")
    if not value:
        pytest.skip("needs real speech: set STABLEQUANT_DATA to its folder")
    folder = Path(value)
    if (folder / name).is_dir():
        return (folder / name).resolve()
    script = folder / "unpack.py"
    if not script.is_file() or not list(folder.glob(f"{SETS[name]}.tar*")):
        pytest.skip(f"STABLEQUANT_DATA ({folder}) has no {name}")
    command = [sys.executable, str(script), str(cache), SETS[name]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return cache / name


def recipe_folder(path: str) -> Path:
    """Return a recipe of an upstream checkout, or skip."""
    value = os.environ.get("SPEECHBRAIN_ROOT")
    if not value:
        pytest.skip(
            "needs a checkout of speechbrain/speechbrain: set SPEECHBRAIN_ROOT"
        )
    folder = Path(value) / "recipes" / path
    if not folder.is_dir():
        pytest.skip(f"SPEECHBRAIN_ROOT ({value}) has no recipes/{path}")
    return folder.resolve()


def run_recipe(
    folder: Path, script: str, yaml: Path, debug=False, flags=(), **overrides
) -> None:
    """Run an unmodified recipe as a user would.

    Arguments
    ---------
    folder : Path
        The recipe; also the working directory.
    script : str
        Its training script.
    yaml : Path
        Hyperparameters.
    debug : bool
        Two batches an epoch; SpeechBrain then keeps no checkpoints.
    flags : list of str
        Given as they are: ``--test_only``.
    **overrides
        Given as ``--name value``.
    """
    arguments = [str(yaml), "--noprogressbar", "--device", "cpu"]
    arguments += [*(["--debug"] if debug else []), *flags]
    for name, value in overrides.items():
        arguments += [f"--{name}", str(value)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the checkout is not ours to change
    }
    result = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert result.returncode == 0, output

"""The command that ``stablequant apply`` prints was cut into two lines.

YAML folds long texts at spaces: the path of a plan, longer than a line and
with a space in it, could not be pasted into a shell.
"""

import shlex

from speechbrain_stablequant.artifacts.rerun import measure_command


def test_a_long_path_with_spaces_stays_in_one_line(tmp_path):
    folder = tmp_path / " ".join(["results", *["of a long name"] * 8])
    folder.mkdir()
    plan = folder / "a: plan.json"
    hyperparams = folder / "hyperparams.yaml"
    hyperparams.write_text(f"output_folder: {folder}\n")
    command = measure_command(folder, plan)
    assert "\n" not in command
    assert str(plan) in shlex.split(command)[-1]

"""A script without a Brain waited for ever under torchrun.

The first process alone wrote the results, in a function that ends with a
broadcast: the processes were one collective operation apart from then on.
"""

import subprocess
import sys

SCRIPT = """
import datetime
import sys
from pathlib import Path

import torch
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import distributed, nn

from speechbrain_stablequant import PostTrainingQuantizer

folder = Path(sys.argv[1])
limit = datetime.timedelta(seconds=60)
distributed.init_process_group("gloo", timeout=limit)
model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
if distributed.get_rank() == 0:
    torch.save(model.state_dict(), folder / "model.ckpt")
distributed.barrier()
pretrainer = Pretrainer(
    loadables={"model": model}, paths={"model": str(folder / "model.ckpt")}
)
PostTrainingQuantizer(
    pretrainer=pretrainer, bits="W8", output_folder=folder / "ptq", plots=False
)
pretrainer.collect_files()
pretrainer.load_collected()
total = torch.ones(1)
distributed.all_reduce(total)
print(f"processes: {int(total)}")
# Threads of gloo that still run at exit may abort the interpreter.
distributed.destroy_process_group()
"""


def test_two_processes_end(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc_per_node", "2", "--standalone"),
            *(str(script), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("processes: 2") == 2
    assert (tmp_path / "ptq" / "report.json").is_file()

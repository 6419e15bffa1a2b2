"""Modules as one ModuleDict, and evaluation mode for a while."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.layers.modules import as_module_dict, evaluating


def test_compiled_modules_are_unwrapped():
    inner = nn.Linear(2, 2)
    found = as_module_dict({"a": torch.compile(inner), "b": nn.ReLU()})
    assert found["a"] is inner
    assert list(found) == ["a", "b"]


def test_modules_of_ddp_are_unwrapped(tmp_path):
    dist.init_process_group(
        "gloo", f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        inner = nn.Linear(2, 2)
        wrapped = nn.parallel.DistributedDataParallel(inner)
        assert as_module_dict({"a": wrapped})["a"] is inner
    finally:
        dist.destroy_process_group()


def test_what_is_no_module_is_named():
    with pytest.raises(KnobError, match="'a' is a dict, not a module"):
        as_module_dict({"a": {}})
    with pytest.raises(StableQuantError, match="no module to quantize"):
        as_module_dict({})


def test_each_part_has_its_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating([model]):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]

"""The frame of a candidate of the runtime benchmark.

A candidate prepares its files once (`Candidate.prepare`, in a process of its
own) and then serves from them (`Candidate.load`), so that load time, memory
and bytes on disk are those of a deployment and not of a conversion.
"""

import importlib
from pathlib import Path

from benchmarks.runtime_case import Case
from benchmarks.runtime_machine import cpu_flags

__all__ = [
    "Candidate",
    "Unavailable",
    "module_caller",
    "need_bfloat16",
    "num_layers",
]


class Unavailable(Exception):
    """A candidate cannot do this here; says why, in words."""


def need_bfloat16() -> None:
    """Raise unless the CPU has bfloat16 instructions.

    Without them OpenVINO takes 60 times as long as in float32.
    """
    if not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        raise Unavailable("this CPU has no bfloat16 instructions")


class Candidate:
    """One row of the table.

    Arguments
    ---------
    title : str
        What the table calls it.
    artefact : str
        Folder of its files; candidates that serve from the same files share
        it and its preparation.
    packages : tuple of str
        What must be importable to serve.
    tools : tuple of str
        What must be importable to prepare, too.
    """

    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def __init__(self, title: str, artefact: str):
        self.title, self.artefact = title, artefact

    def check(self, preparing: bool) -> None:
        """Import what is needed, before anything is measured.

        Arguments
        ---------
        preparing : bool
            Whether it is to prepare, or to serve. Who only serves does not
            load converters, which take more memory than some models.

        Raises
        ------
        Unavailable
            If something that this needs is missing.
        """
        for package in self.packages + (self.tools if preparing else ()):
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as err:
                # A package that lacks one of its own is broken, not absent.
                if err.name != package:
                    raise
                raise Unavailable(f"{package} is not installed") from err

    def prepare(self, case: Case, threads: list[int]) -> dict:
        """Write files; return facts for the JSON.

        Arguments
        ---------
        case : Case
            The model and its inputs.
        threads : list of int
            Numbers of threads that will be served with.

        Returns
        -------
        dict
            What was chosen, and from what.
        """
        return {}

    def load(self, case: Case, threads: int):
        """Return what maps an input array to an output array."""
        raise NotImplementedError

    def files(self, case: Case) -> list[Path]:
        """Return the files that must be shipped."""
        folder = case.artefact(self.artefact)
        return [path for path in folder.rglob("*") if path.is_file()]

    def facts(self, case: Case) -> dict:
        """Say how it runs; called after the first inference.

        Returns
        -------
        dict
            ``int8_layers``: how many layers run in int8, and of how many
            linear and convolution layers with weights, where that is known.
        """
        return {}


def module_caller(module):
    """Return what maps arrays to arrays through a module."""
    import torch

    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(floats, torch.float32)

    def call(array):
        with torch.inference_mode():
            tensor = torch.from_numpy(array)
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
            return module(tensor).float().numpy()

    return call


def num_layers(case) -> int:
    """Return how many linear and convolution layers a model has."""
    from torch import nn

    # In attention of PyTorch three of four layers are one bare parameter.
    packed = [
        m
        for m in case.skeleton().modules()
        if isinstance(m, nn.MultiheadAttention)
    ]
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    found = [m for m in case.skeleton().modules() if isinstance(m, kinds)]
    return len(found) + len(packed)

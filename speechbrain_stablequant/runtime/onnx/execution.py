"""Which layers of an ONNX Runtime session run on integer kernels."""

from collections import defaultdict
from typing import NamedTuple

from torch import nn

from speechbrain_stablequant.runtime.backend import layer_executions
from speechbrain_stablequant.runtime.execution import LayerExecution
from speechbrain_stablequant.runtime.onnx.lowering import QdqLowering

__all__ = ["read_execution"]

# Operators whose first input is integers by definition, and float ones that
# use weights.
_INTEGER = (
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
_FLOAT = (
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "Gather",
    "Gemm",
    "MatMul",
    "MatMulNBits",
)
_NARROW = (21, 22)  # UINT4, INT4


class _Kernel(NamedTuple):
    """An operator that computes with the weight of a layer."""

    kernel: str
    weights: str

    @property
    def precision(self) -> str:
        return "int8" if self.kernel in _INTEGER else "f32"


def read_execution(
    optimized, module: nn.Module, lowering: QdqLowering
) -> list[LayerExecution]:
    """Read from an optimized graph how each quantized layer really runs.

    Arguments
    ---------
    optimized : onnx.ModelProto
        What ONNX Runtime executes, as it writes it to a file.
    module : torch.nn.Module
        What was exported.
    lowering : QdqLowering
        Knows the names of weights.

    Returns
    -------
    list of LayerExecution
        One for each quantized layer of the module.
    """
    kernels = _kernels_by_layer(optimized.graph, lowering)
    return layer_executions(module, lambda _, layer: kernels[id(layer)])


def _kernels_by_layer(graph, lowering) -> dict[int, list[_Kernel]]:
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    kernels = defaultdict(list)
    for name in lowering.expanded:
        kernels[id(lowering.owner(name))].append(_Kernel("", "expanded"))
    for tensor in graph.initializer:
        layer = lowering.owner(tensor.name)
        if layer is None:  # repacked by the runtime
            layer = lowering.owner(tensor.name.removesuffix("_T"))
        if layer is not None and len(tensor.dims) > 1:
            weights = "int4" if tensor.data_type in _NARROW else "int8"
            for node in _kernels_of(tensor.name, users):
                kernels[id(layer)].append(_kernel(node, weights))
    return kernels


def _kernel(node, weights: str) -> _Kernel:
    if node.op_type == "MatMulNBits":
        bits = next(a.i for a in node.attribute if a.name == "bits")
        weights = f"int{bits}"
    return _Kernel(node.op_type, weights)


def _kernels_of(name: str, users):
    """Follow a weight through casts and layouts to what multiplies by it."""
    for node in users[name]:
        if node.op_type in _INTEGER or node.op_type in _FLOAT:
            yield node
        else:
            for output in node.output:
                yield from _kernels_of(output, users)

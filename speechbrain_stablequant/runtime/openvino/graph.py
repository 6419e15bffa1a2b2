"""Which layers of an OpenVINO graph run in int8, and 4-bit weights.

The compiler fuses and renames operators, so that a kernel does not say which
layer it computes. Integer constants are therefore named after their layer
before the graph is compiled (`name_weights`), and kernels are told by their
constants afterwards (`read_execution`).
"""

from collections import defaultdict

import numpy as np
from torch import nn

from speechbrain_stablequant.core.packing import pack_nibbles
from speechbrain_stablequant.layers import QuantizedEmbedding, QuantizedModule
from speechbrain_stablequant.runtime.backend import (
    layer_executions,
    quantized_layers,
)
from speechbrain_stablequant.runtime.execution import LayerExecution

__all__ = ["name_weights", "pack_low_bit", "read_execution"]

# Names in a graph begin with the path of the module that was traced.
_PREFIX = "__module.module"
# Fusions may rename a kernel, but they keep the name of its weight.
_WEIGHT = "weight of "
_RECURRENT = ("RNNSeq", "RNNCell")
_KERNELS = (
    "FullyConnected",
    "Convolution",
    "GroupConvolution",
    "Deconvolution",
    "MatMul",
    "Gather",
    *_RECURRENT,
)
_INT8 = ("i8", "u8")


def _layer_of(name: str) -> str:
    """Return the path of the module in whose call an operator was traced."""
    return name.partition("/")[0].removeprefix(_PREFIX).lstrip(".")


def name_weights(model) -> None:
    """Name integer constants after the layer whose weights they are.

    Arguments
    ---------
    model : openvino.Model
        The converted model; changed in place.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and _is_int8(node):
            for target in node.output(0).get_target_inputs():
                user = target.get_node().get_friendly_name()
                if user.startswith(_PREFIX):
                    node.set_friendly_name(_WEIGHT + _layer_of(user))


def read_execution(runtime_model, module: nn.Module) -> list[LayerExecution]:
    """Read from an execution graph how each quantized layer really runs.

    The precision that the plugin reports for a layer is not enough: it is "i8"
    for a float layer with compressed weights, too. What counts is that the
    kernel is an integer one and that its input arrives as integers.

    Arguments
    ---------
    runtime_model : openvino.Model
        ``compiled_model.get_runtime_model()``.
    module : torch.nn.Module
        What was compiled.

    Returns
    -------
    list of LayerExecution
        One for each quantized layer of the module.
    """
    scopes = _kernels_by_scope(runtime_model)

    def kernels_of(name, layer):
        found = scopes.get(name, [])
        if not isinstance(layer, QuantizedEmbedding):
            found = [n for n in found if n.type != "Gather"]
        # Products of two activations, as in attention, have no weight.
        return [n for n in found if n.has_constant_weight] or found

    return layer_executions(module, kernels_of)


class _Kernel:
    """One node of an execution graph that multiplies or looks up weights."""

    def __init__(self, node, info):
        self.type, self.kernel = info["layerType"], info["primitiveType"]
        sources = [source.get_node() for source in node.input_values()]
        constants = [
            source
            for source in sources[: 1 if self.type == "Gather" else 2]
            if _rt_info(source)["layerType"] == "Const"
        ]
        self.layers = {
            _layer_of(name)
            for name in info["originalLayersNames"].split(",")[:1]
            if name.startswith(_PREFIX)
        }
        for constant in constants:
            name = constant.get_friendly_name()
            if name.startswith(_WEIGHT):
                self.layers = {name.removeprefix(_WEIGHT)}
        if self.type in _RECURRENT:  # their own names do not contain the layer
            self.layers |= {
                _layer_of(name)
                for name in (s.get_friendly_name() for s in sources)
                if name.startswith(_PREFIX)
            }
        types = [_rt_info(c)["outputPrecisions"] for c in constants]
        self.has_constant_weight = bool(constants)
        self.weights = "expanded"
        for name in types:
            if name in ("i4", "u4"):
                self.weights = "int4"
            elif name in _INT8:
                self.weights = "int8"
        arriving = _rt_info(sources[0])
        ending = self.kernel.rpartition("_")[2].lower()
        if ending in _INT8 and arriving["outputPrecisions"] in _INT8:
            self.precision = "int8"
        elif ending in _INT8 or ending == "undef":
            self.precision = "f32"
        else:
            self.precision = ending


def _rt_info(node) -> dict[str, str]:
    info = node.get_rt_info()
    return {
        key: info[key].astype(str) if key in info else ""
        for key in (
            "layerType",
            "primitiveType",
            "outputPrecisions",
            "originalLayersNames",
        )
    }


def _kernels_by_scope(runtime_model) -> dict[str, list[_Kernel]]:
    """Return kernels by the path of the layer that they compute."""
    scopes = defaultdict(list)
    for node in runtime_model.get_ops():
        info = _rt_info(node)
        if info["layerType"] in _KERNELS:
            kernel = _Kernel(node, info)
            for layer in kernel.layers:
                scopes[layer].append(kernel)
    return scopes


def pack_low_bit(model, module: nn.Module) -> None:
    """Store weights of weight-only layers of up to 4 bits as 4-bit constants.

    Arguments
    ---------
    model : openvino.Model
        The converted model; changed in place.
    module : torch.nn.Module
        What was converted.
    """
    import openvino
    from openvino import opset13

    narrow = {
        name
        for name, layer, planned in quantized_layers(module)
        if not planned and _is_low_bit(layer)
    }
    if not narrow:
        return
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        if _layer_of(node.get_friendly_name()) not in narrow:
            continue
        constant = _integer_source(node.input_value(1).get_node())
        if constant is None:
            continue
        values = constant.data.astype(np.int8)
        if values.min() < -8 or values.max() > 7:
            continue
        if values.shape[-1] % 2:  # OpenVINO misreads 4-bit rows of odd length
            continue
        packed = openvino.Tensor(openvino.Type.i4, openvino.Shape(values.shape))
        packed.data[:] = pack_nibbles(values).view(packed.data.dtype)
        replacement = opset13.constant(packed)
        replacement.set_friendly_name(constant.get_friendly_name())
        for target in list(constant.output(0).get_target_inputs()):
            target.replace_source_output(replacement.output(0))


def _is_low_bit(layer: QuantizedModule) -> bool:
    return all(
        not s.is_float and s.bits <= 4 for s in layer._weight_schemes.values()
    )


def _integer_source(node):
    """Follow the dequantization of a weight back to its integer constant."""
    while node.get_type_name() != "Constant":
        if node.get_input_size() == 0 or node.get_type_name() not in (
            "Convert",
            "Multiply",
            "Subtract",
            "Reshape",
            "Transpose",
        ):
            return None
        node = node.input_value(0).get_node()
    return node if _is_int8(node) else None


def _is_int8(node) -> bool:
    import openvino

    return node.get_element_type() == openvino.Type.i8

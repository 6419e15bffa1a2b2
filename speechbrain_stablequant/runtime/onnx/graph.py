"""Passes over an exported ONNX graph that put integers in place.

The exporter knows neither integer weights nor 4-bit types. It writes
placeholders for weights; the passes here replace them, and arrange
quantization such that ONNX Runtime recognises integer kernels.

To be imported where the package onnx is needed, not before: it is optional.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from speechbrain_stablequant.runtime.onnx.lowering import QdqLowering
from speechbrain_stablequant.runtime.onnx.weights import WeightNodes

__all__ = ["finish"]

_OPSET, _IR_VERSION = 21, 10  # the first with 4-bit integers and groups
# Operators that only move values: moving integers gives the same.
_MOVEMENTS = (
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def finish(model, lowering: QdqLowering) -> None:
    """Put integers in place, next to the operators that use them.

    Arguments
    ---------
    model : onnx.ModelProto
        As exported with `QdqLowering`; changed in place.
    lowering : QdqLowering
        Knows what placeholders stand for.
    """
    graph = model.graph
    for rewrite in (
        lambda nodes: _place_weights(graph, nodes, lowering),
        _delay_dequantization,
        lambda nodes: _integer_convolutions(graph, nodes),
    ):
        nodes = rewrite(list(graph.node))
        del graph.node[:]
        graph.node.extend(nodes)
    _drop_unused(graph)
    _set_versions(model)


def _set_versions(model) -> None:
    """Declare the opset; the exporter's newest knows no 4-bit integers."""
    # Of all operators that an exporter of opset 20 writes, none means
    # something else in 21.
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", _OPSET))
    model.ir_version = _IR_VERSION
    model.producer_name = "speechbrain_stablequant"


def _attributes(node) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


# -- weights ------------------------------------------------------------------


def _place_weights(graph, nodes, lowering):
    """Replace placeholders by integers and what makes them real."""
    made: dict[str, WeightNodes] = {}
    found: dict[str, WeightNodes] = {}
    aliases: dict[str, str] = {}
    result = []
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = aliases.get(name, name)
        if node.domain == "stablequant":
            name = _attributes(node)["name"].decode("utf-8")
            if name not in made:  # a layer may be called several times
                made[name] = WeightNodes(
                    graph,
                    result,
                    name,
                    lowering.weights[name],
                    not lowering.is_planned(name),
                )
            found[node.output[0]] = made[name]
        elif any(name in found for name in node.input):
            _connect(node, found, aliases, result)
        else:
            result.append(node)
    return result


def _connect(node, found, aliases, result) -> None:
    """Connect one user of weights with them."""
    attributes, inputs = _attributes(node), list(node.input)
    weight = found.get(inputs[0])
    if weight is not None and weight.is_matrix:
        if node.op_type == "Transpose":
            aliases[node.output[0]] = weight.columns()
            return
        if node.op_type == "Gather" and not attributes.get("axis"):
            weight.gather(inputs[1], node.output[0])
            return
    if node.op_type == "Gemm" and attributes.get("transB") == 1:
        result += _product(node, found[inputs[1]].columns())
        return
    for index, name in enumerate(inputs):
        if name in found:
            node.input[index] = found[name].real()
    result.append(node)


def _product(gemm, columns: str):
    """Return the nodes of a product of matrices plus a bias.

    ONNX Runtime has Gemm on integers only with an integer bias, and fuses
    MatMul and Add into Gemm. An extra axis keeps the two apart.
    """
    x, out = gemm.input[0], gemm.output[0]
    one, sums, two = f"{out}/one", f"{out}/sums", f"{out}/product"
    axis = f"{out}/axis"
    zero = helper.make_tensor(axis, TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("Constant", [], [axis], value=zero),
        helper.make_node("Unsqueeze", [x, axis], [one]),
        helper.make_node("MatMul", [one, columns], [sums]),
    ]
    if len(gemm.input) < 3:
        return [*nodes, helper.make_node("Squeeze", [sums, axis], [out])]
    return [
        *nodes,
        helper.make_node("Squeeze", [sums, axis], [two]),
        helper.make_node("Add", [two, gemm.input[2]], [out]),
    ]


# -- activations --------------------------------------------------------------


def _delay_dequantization(nodes):
    """Move values about as integers, and dequantize them afterwards.

    ONNX Runtime uses an integer kernel only where DequantizeLinear comes
    immediately before the operator. Integers are also a quarter of the bytes.
    """
    scales = {}  # of each real tensor that was an integer: (integer, rest)
    kinds = _constants(nodes)
    result = []
    for node in nodes:
        if node.op_type == "DequantizeLinear" and not node.attribute:
            scales[node.output[0]] = (node.input[0], list(node.input[1:]))
        if node.op_type == "Shape" and node.input[0] in scales:
            node.input[0] = scales[node.input[0]][0]
        moved = _moved_inputs(node, scales, kinds)
        if moved is None:
            result.append(node)
            continue
        rest = scales[node.input[0]][1]
        for index, name in moved.items():
            node.input[index] = name
        result.append(node)
        for index, name in enumerate(node.output):
            integer = f"{name}/levels"
            node.output[index] = integer
            scales[name] = (integer, rest)
            result.append(
                helper.make_node("DequantizeLinear", [integer, *rest], [name])
            )
    return result


def _moved_inputs(node, scales, constants):
    """Return the integers to move in place of real inputs, or None."""
    if node.op_type not in _MOVEMENTS or node.input[0] not in scales:
        return None
    if node.op_type != "Concat":
        return {0: scales[node.input[0]][0]}
    rest = [constants.get(n, n) for n in scales[node.input[0]][1]]
    for name in node.input:
        if name not in scales or rest != [
            constants.get(n, n) for n in scales[name][1]
        ]:
            return None
    return {i: scales[name][0] for i, name in enumerate(node.input)}


def _constants(nodes) -> dict[str, bytes]:
    """Return the values of small constants, to be compared."""
    return {
        node.output[0]: node.attribute[0].t.SerializeToString()
        for node in nodes
        if node.op_type == "Constant"
        and node.attribute[0].name == "value"
        and len(node.attribute[0].t.dims) == 0
    }


# -- convolutions in many groups ----------------------------------------------


def _integer_convolutions(graph, nodes):
    """Use ConvInteger for convolutions that are not matrix products.

    Those in many groups are left (see `convolution.MAX_GROUPS`).
    """
    producers = {name: node for node in nodes for name in node.output}
    arrays = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.name.endswith(("/scale", "/zero"))
    }
    for node in nodes:
        if node.op_type == "Constant" and not node.attribute[0].t.dims:
            tensor = node.attribute[0].t
            arrays[node.output[0]] = numpy_helper.to_array(tensor)
    result = []
    for node in nodes:
        sources = [producers.get(name) for name in node.input[:2]]
        if node.op_type == "Conv" and all(
            s is not None and s.op_type == "DequantizeLinear" for s in sources
        ):
            result += _integer_convolution(graph, node, *sources, arrays)
        else:
            result.append(node)
    return result


def _integer_convolution(graph, node, x, weight, arrays):
    """Return the nodes of one convolution of integers, scaled afterwards."""
    zero = arrays.get(weight.input[2]) if len(weight.input) > 2 else None
    scale = arrays.get(weight.input[1])
    if scale is None or (zero is not None and zero.any()):
        return [node]  # ConvInteger has no zero point for each channel
    axes = len(_attributes(node)["kernel_shape"])
    out = node.output[0]

    def channels(name, values):
        values = values.reshape(1, -1, *[1] * axes).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    step = channels(f"{out}/step", scale * arrays[x.input[1]])
    nodes = [
        helper.make_node(
            "ConvInteger",
            [x.input[0], weight.input[0], x.input[2]],
            [f"{out}/sum"],
            **_attributes(node),
        ),
        helper.make_node(
            "Cast", [f"{out}/sum"], [f"{out}/real"], to=TensorProto.FLOAT
        ),
    ]
    if len(node.input) < 3:
        nodes.append(helper.make_node("Mul", [f"{out}/real", step], [out]))
        return nodes
    shape = np.array([1, -1] + [1] * axes, dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(shape, f"{out}/shape"))
    return [
        *nodes,
        helper.make_node("Mul", [f"{out}/real", step], [f"{out}/scaled"]),
        helper.make_node(
            "Reshape", [node.input[2], f"{out}/shape"], [f"{out}/bias"]
        ),
        helper.make_node("Add", [f"{out}/scaled", f"{out}/bias"], [out]),
    ]


def _drop_unused(graph) -> None:
    """Remove nodes and constants that nothing uses any more."""
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in used for name in node.output):
            kept.append(node)
            used.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    # Shapes and types that the exporter inferred are those of other nodes.
    del graph.value_info[:]

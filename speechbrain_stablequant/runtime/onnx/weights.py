"""Integer weights as initializers and nodes of an ONNX graph."""

from typing import Optional

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from speechbrain_stablequant.core.packing import pack_nibbles
from speechbrain_stablequant.runtime.lowering import Constant

__all__ = ["WeightNodes"]


class WeightNodes:
    """One weight of integers, and the nodes that its users need.

    Initializers are named after the weight: ``layer.weight``, with a suffix
    after a slash for its scale and for other layouts of it. `execution` finds
    by these names which operator computes with which layer.

    Arguments
    ---------
    graph : onnx.GraphProto
        Where initializers go.
    nodes : list
        Where nodes go.
    name : str
        Name of the weight.
    constant : Constant
        Its values.
    weight_only : bool
        Whether inputs of the layer are real.
    """

    def __init__(
        self, graph, nodes, name: str, constant: Constant, weight_only: bool
    ):
        self.graph, self.nodes, self.name = graph, nodes, name
        self.weight_only = weight_only
        self.block = constant.values.shape[-1] if constant.groups else None
        self.axis = 1 if constant.groups else constant.axis
        values = constant.values
        self.values = values.flatten(-2) if constant.groups else values
        self.scale = self._along_axis(constant.scale)
        self.zero_point = self._along_axis(constant.zero_point)
        self.is_narrow = _fits_four_bits(self.values)
        self._made: set[str] = set()

    @property
    def is_matrix(self) -> bool:
        """Whether the weight has two axes."""
        return self.values.dim() == 2

    def _along_axis(self, tensor) -> Optional[torch.Tensor]:
        """Return scales as DequantizeLinear wants them."""
        if tensor is None:
            return None
        if self.block is not None:
            shape = (self.values.shape[0], -1)
            return tensor.squeeze(-1).expand(*shape).contiguous()
        if tensor.numel() == 1:
            return tensor.reshape(())
        return tensor.flatten()

    # -- what users ask for ---------------------------------------------------

    def real(self) -> str:
        """Return the name of the real weight, in the layer's layout."""
        if self.block is not None and not self.weight_only:
            return self._expanded()
        packed = self.is_narrow and self.weight_only
        integers = self._packed() if packed else self._bytes()
        return self._dequantized(integers, "real", self.axis)

    def columns(self) -> str:
        """Return the name of the real weight, transposed."""
        if self.block is not None and not self.weight_only:
            name = f"{self.name}/columns"
            return self._node(
                "Transpose", [self._expanded()], name, perm=[1, 0]
            )
        name = f"{self.name}/transposed"
        if self.is_narrow and self.weight_only:
            self._add(name, self.values.t(), True)
        else:
            self._node("Transpose", [self._bytes()], name, perm=[1, 0])
        axis = None if self.axis is None else 1 - self.axis
        flip = self.block is not None
        return self._dequantized(name, "columns", axis, flip)

    def _expanded(self) -> str:
        """Return the name of the real weight, without DequantizeLinear.

        If the inputs of the product are integers, too, ONNX Runtime overlooks
        that a DequantizeLinear has groups, and fails.
        """
        rows = self.values.shape[0]
        blocks = self._add(
            f"{self.name}/blocks", torch.tensor([rows, -1, self.block])
        )
        flat = self._add(f"{self.name}/flat", torch.tensor([rows, -1]))

        def step(kind, inputs, suffix, **attributes):
            name = f"{self.name}/{suffix}"
            return self._node(kind, inputs, name, **attributes)

        x = step("Cast", [self._bytes()], "cast", to=TensorProto.FLOAT)
        x = step("Reshape", [x, blocks], "grouped")
        if self.zero_point is not None:
            zero = self.zero_point[..., None].to(torch.float32)
            zero = self._add(f"{self.name}/group zero", zero)
            x = step("Sub", [x, zero], "centred")
        scale = self._add(f"{self.name}/group scale", self.scale[..., None])
        x = step("Mul", [x, scale], "scaled")
        return step("Reshape", [x, flat], "real")

    def gather(self, indices: str, output: str) -> None:
        """Look up rows as integers, and dequantize only those."""
        if self.block is not None or self.axis == 1:
            self._node("Gather", [self.real(), indices], output, axis=0)
            return
        levels = f"{output}/levels"
        self._node("Gather", [self._bytes(), indices], levels, axis=0)
        real = self._node(
            "Cast", [levels], f"{output}/cast", to=TensorProto.FLOAT
        )
        if self.zero_point is not None:
            zero = self._rows("zero rows", self.zero_point, indices, output)
            real = self._node("Sub", [real, zero], f"{output}/centred")
        scale = self._rows("scale rows", self.scale, indices, output)
        self._node("Mul", [real, scale], output)

    def _rows(self, suffix, tensor, indices, output) -> str:
        """Return what belongs to the rows that are looked up."""
        name = f"{self.name}/{suffix}"
        tensor = tensor.to(torch.float32)
        if tensor.dim() == 0:
            return self._add(name, tensor)
        self._add(name, tensor[:, None])
        result = f"{output}/{suffix}"
        return self._node("Gather", [name, indices], result, axis=0)

    # -- initializers and nodes -----------------------------------------------

    def _packed(self) -> str:
        """Return the name of the integers as they are in the file."""
        return self._add(self.name, self.values, self.is_narrow)

    def _bytes(self) -> str:
        """Return the name of the integers, one in a byte."""
        if not self.is_narrow:
            return self._packed()
        # The runtime unpacks them once, on loading.
        unsigned = self.values.dtype == torch.uint8
        kind = TensorProto.UINT8 if unsigned else TensorProto.INT8
        name = f"{self.name}/bytes"
        return self._node("Cast", [self._packed()], name, to=kind)

    def _dequantized(self, integers, suffix, axis, flip=False) -> str:
        """Return the name of integers made real, with scales transposed."""
        ending = "/transposed " if flip else "/"
        inputs = [integers]
        for part, tensor in (("scale", self.scale), ("zero", self.zero_point)):
            if tensor is not None:
                packed = self.is_narrow and self.weight_only and part == "zero"
                tensor = tensor.t() if flip else tensor
                name = f"{self.name}{ending}{part}"
                inputs.append(self._add(name, tensor, packed))
        attributes = {} if self.scale.dim() == 0 else {"axis": axis}
        if self.block is not None:
            attributes["block_size"] = self.block
        return self._node(
            "DequantizeLinear", inputs, f"{self.name}/{suffix}", **attributes
        )

    def _add(self, name: str, tensor: torch.Tensor, packed=False) -> str:
        if name in self._made:
            return name
        self._made.add(name)
        array = np.ascontiguousarray(tensor.numpy())
        if packed:
            unsigned = tensor.dtype == torch.uint8
            kind = TensorProto.UINT4 if unsigned else TensorProto.INT4
            raw = pack_nibbles(array).tobytes()
            made = helper.make_tensor(name, kind, array.shape, raw, raw=True)
        else:
            made = numpy_helper.from_array(array, name)
        self.graph.initializer.append(made)
        return name

    def _node(self, kind: str, inputs, output: str, **attributes) -> str:
        if output not in self._made:
            self._made.add(output)
            self.nodes.append(
                helper.make_node(kind, inputs, [output], **attributes)
            )
        return output


def _fits_four_bits(values: torch.Tensor) -> bool:
    low, high = int(values.min()), int(values.max())
    if values.dtype == torch.uint8:
        return high < 16
    return low >= -8 and high < 8

"""Products in 8-bit integers, each token quantised by itself, for ONNX Runtime on the processor.

ONNX Runtime's own dynamic quantisation takes one scale for a whole micro-batch, so that a text's label can
depend on its neighbours (``decisions/0012-int8.md``). Here each row of a layer's input, that is each token,
has its own scale s_x = max|x| / 127, and each column of the weights its own, s_w = max|w| / 127:

    x W  ~  s_x (round(x / s_x) round(W / s_w)) s_w

The product in the middle is exact, so a row depends on nothing but itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from snugtune.errors import UserInputError
from snugtune.model.pooling import cache_folder
from snugtune.predict.onnx import LARGEST_FILE_BYTES, OPSET, write_onnx

FORMAT = 1
"""Goes up when the graphs become others; part of the name under which they are cached."""

INT8_TOKENS = 2048
"""Padded tokens per micro-batch: what lies between two products then stays in the processor's caches."""

STEPS = 127
"""Steps from zero to the largest value."""

MIDDLE = 128
"""What stands for zero in a layer's input: unsigned times signed numbers is what processors are fast at."""

EMBEDDING_ROWS = 1024
"""Tables of fewer rows (positions, token types) stay in float: they are small and added to every token."""

_SMALLEST = 1e-12
Floats = NDArray[np.float32]


def int8_graph(model: PreTrainedModel) -> Path:
    """The graph of ``model`` (float32, on the CPU) in 8-bit integers, made once and kept in the user's cache.

    Its name is made from the model's configuration and weights.

    Raises:
        UserInputError: the packages are missing or the architecture cannot be exported.
    """
    target = cache_folder() / f"int8-{_content_name(model)}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            write_int8(model, made / "model.onnx")
            made.chmod(0o755)
            _rename(made, target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return target / "model.onnx"


def write_int8(model: PreTrainedModel, path: Path) -> None:
    """Write ``model`` (float32, on the CPU) in 8-bit integers as the graph ``path``.

    Raises:
        UserInputError: as ``write_onnx``.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "model.onnx"
        write_onnx(model, whole)
        quantize_rows(whole, path)


def quantize_rows(source: Path, target: Path) -> None:
    """Write the float32 graph ``source`` as ``target``, its large matrices in 8-bit integers.

    Quantised are products with a constant matrix, but for the last one, the head, and embedding tables of at
    least ``EMBEDDING_ROWS`` rows. Heads and poolers that see one row a text (``Gemm``) stay in float as well.

    Raises:
        UserInputError: the graph has no such product.
    """
    import onnx

    proto = onnx.load(source)
    graph = _Graph(proto.graph)
    last = max(i for i, node in enumerate(proto.graph.node) if node.op_type in ("MatMul", "Gemm"))
    rewritten = [
        new
        for i, node in enumerate(proto.graph.node)
        for new in (graph.rewrite(node) if i != last else [node])
    ]
    if not graph.products:
        raise UserInputError("This model has no layers that can be computed in int8; export it to onnx.")
    graph.replace(rewritten)
    if all(opset.domain != "com.microsoft" for opset in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    large = proto.ByteSize() > LARGEST_FILE_BYTES
    onnx.save(proto, target, save_as_external_data=large, location=f"{target.name}.data")


@dataclass
class _Graph:
    """An ONNX graph while its nodes are rewritten; ``products`` were."""

    proto: Any
    products: int = 0
    quantized_inputs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.proto.initializer}

    def rewrite(self, node: Any) -> Iterable[Any]:
        """The nodes that take the place of ``node``: itself, or its computation in integers."""
        if node.op_type == "MatMul" and self._matrix(node.input[1]) is not None:
            self.products += 1
            return [*self._quantized(node.input[0], node.input[1]), *self._product(node)]
        if node.op_type == "Gather" and self._is_table(node):
            return self._lookup(node)
        return [node]

    def replace(self, nodes: list[Any]) -> None:
        """Make ``nodes`` the graph's, and drop constants that none of them reads."""
        read = {name for node in nodes for name in node.input}
        kept = [tensor for name, tensor in self.constants.items() if name in read]
        for values, new in ((self.proto.node, nodes), (self.proto.initializer, kept)):
            del values[:]
            values.extend(new)
        # Types and shapes of values in between; ONNX Runtime finds them itself.
        del self.proto.value_info[:]

    def _quantized(self, x: str, weight: str) -> Iterator[Any]:
        """``x`` (..., H) as ``x.q``, unsigned around 128, and ``x.scale`` (..., 1); once for each x."""
        if x in self.quantized_inputs:
            return
        self.quantized_inputs.add(x)
        width = self.constants[weight].dims[0]
        last, flat = self._integers("last", [-1]), self._integers("flat", [-1])
        rows = self._integers(f"rows_of_{width}", [-1, width])
        smallest = self._constant("smallest", np.float32(_SMALLEST))
        step = self._constant("step", np.float32(1 / STEPS))
        yield _node("ReduceMax", [x, last], f"{x}.highest", keepdims=1)
        yield _node("ReduceMin", [x, last], f"{x}.lowest", keepdims=1)
        yield _node("Neg", [f"{x}.lowest"], f"{x}.negated")
        yield _node("Max", [f"{x}.highest", f"{x}.negated", smallest], f"{x}.largest")
        yield _node("Mul", [f"{x}.largest", step], f"{x}.scale")
        # QuantizeLinear takes a scale a row only as a vector, so x is a matrix meanwhile.
        yield _node("Reshape", [f"{x}.scale", flat], f"{x}.scales")
        yield _node("Shape", [f"{x}.scales"], f"{x}.n_rows")
        yield _node("ConstantOfShape", [f"{x}.n_rows"], f"{x}.zeros", value=_one(MIDDLE))
        yield _node("Reshape", [x, rows], f"{x}.rows")
        yield _node("QuantizeLinear", [f"{x}.rows", f"{x}.scales", f"{x}.zeros"], f"{x}.integers", axis=0)
        yield _node("Shape", [x], f"{x}.shape")
        yield _node("Reshape", [f"{x}.integers", f"{x}.shape"], f"{x}.q")

    def _product(self, node: Any) -> Iterator[Any]:
        x, product = node.input[0], node.output[0]
        matrix = self._matrix(node.input[1])
        assert matrix is not None
        integers, scale = quantized(matrix, axis=0)
        # Each product has constants of its own, even where layers share them (ALBERT): ONNX Runtime fails
        # where it converts a shared one twice for processors without VNNI.
        inputs = [
            f"{x}.q",
            self._constant(f"{product}.weight", integers),
            self._constant("one", np.float32(1)),
            self._constant(f"{product}.weight_scale", scale[0]),
            self._constant("middle", np.uint8(MIDDLE)),
            self._constant(f"{product}.weight_zero", np.int8(0)),
        ]
        yield _node("MatMulIntegerToFloat", inputs, f"{product}.unscaled", domain="com.microsoft")
        yield _node("Mul", [f"{product}.unscaled", f"{x}.scale"], product)

    def _lookup(self, node: Any) -> Iterator[Any]:
        import onnx

        table, ids, output = node.input[0], node.input[1], node.output[0]
        matrix = self._matrix(table)
        assert matrix is not None
        integers, scale = quantized(matrix, axis=1)
        names = [self._constant(f"{table}.q", integers), self._constant(f"{table}.scale", scale)]
        yield _node("Gather", [names[0], ids], f"{output}.q", axis=0)
        yield _node("Gather", [names[1], ids], f"{output}.scale", axis=0)
        yield _node("Cast", [f"{output}.q"], f"{output}.unscaled", to=onnx.TensorProto.FLOAT)
        yield _node("Mul", [f"{output}.unscaled", f"{output}.scale"], output)

    def _is_table(self, node: Any) -> bool:
        by_row = all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
        matrix = self._matrix(node.input[0])
        return by_row and matrix is not None and len(matrix) >= EMBEDDING_ROWS

    def _matrix(self, name: str) -> Floats | None:
        """The constant ``name`` if it is a matrix in float32."""
        import onnx

        tensor = self.constants.get(name)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        matrix: Floats = onnx.numpy_helper.to_array(tensor)
        return matrix

    def _integers(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, dtype=np.int64))

    def _constant(self, name: str, value: Any) -> str:
        import onnx

        if name not in self.constants:
            self.constants[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
        return name


def quantized(matrix: Floats, *, axis: int) -> tuple[NDArray[np.int8], Floats]:
    """``matrix`` as integers in -127..127 times a scale for each of its vectors along ``axis``.

    The scales keep both dimensions, so that ``integers * scale`` is the matrix again, to half a scale.
    """
    largest = np.abs(matrix).max(axis, keepdims=True)
    scale = np.maximum(largest / STEPS, _SMALLEST).astype(np.float32)
    return np.rint(matrix / scale).astype(np.int8), scale


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    import onnx

    return onnx.helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes)


def _one(value: int) -> Any:
    import onnx

    return onnx.helper.make_tensor("value", onnx.TensorProto.UINT8, [1], [value])


def _rename(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # else another process made the same one first
            raise


def _content_name(model: nn.Module) -> str:
    config: Any = model.config
    described = json.dumps([FORMAT, OPSET, config.to_dict()], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""A classifier as an ONNX graph: written by torch's exporter, quantised and run by ONNX Runtime on the CPU.

Why these tools and settings: ``decisions/0019-onnx-and-int8.md``.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from snugtune.errors import UserInputError

OPSET = 20
"""The first with GELU. Since 23 rotary positions are an operator; ONNX Runtime 1.32 refuses it in batches."""

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"

LARGEST_FILE_BYTES = 1_500_000_000
"""Graphs with more weights keep them in a file of their own: protocol buffers end at 2 GiB."""

BITS = 8
BLOCK = 32
"""Inputs and weights of a product share a scale by so many along the inner dimension."""

INT8_ARITHMETIC = 4
"""``accuracy_level`` of ONNX Runtime's ``MatMulNBits``: inputs are quantised to 8 bits, too, by blocks."""


def require_onnx() -> None:
    """Check that what exports and runs ONNX graphs is installed.

    Raises:
        UserInputError: it is not.
    """
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise UserInputError("ONNX and int8 need more packages; run: pip install 'snugtune[onnx]'.")


def write_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write ``model``, a sequence classifier in float32 on the CPU, as the graph ``path``.

    Its inputs are ``input_ids`` and ``attention_mask``, int64 (batch, length), both sizes free; its output is
    ``logits``, float32 (batch, n_classes). The model must have been loaded with attention of Transformers'
    own, which the exporter can look into. Weights of more than ``LARGEST_FILE_BYTES`` go into
    ``PATH.data``.

    Raises:
        UserInputError: the packages are missing, or the architecture cannot be exported.
    """
    require_onnx()
    sizes: dict[int, str] = {0: "batch", 1: "length"}
    try:
        with _quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                _Logits(model).eval(),
                _example(int(model.config.get_text_config().pad_token_id)),
                path,
                input_names=INPUTS,
                output_names=[OUTPUT],
                dynamic_shapes=dict.fromkeys(INPUTS, sizes),
                opset_version=OPSET,
                external_data=weight_bytes(model) > LARGEST_FILE_BYTES,
                dynamo=True,
                verbose=False,
            )
    except (MemoryError, OSError):
        raise
    except Exception as error:
        # The exporter passes on whatever the model's code and its own translation raise.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserInputError(
            f"Models of type {model.config.model_type} cannot be exported to ONNX ({reason}); "
            "export it with --to merged."
        ) from error


def write_int8(model: PreTrainedModel, path: Path, *, embeddings: bool = False) -> None:
    """Write ``model`` (float32, on the CPU) in 8-bit integers as the graph ``path``; see ``quantize``.

    Raises:
        UserInputError: as ``write_onnx``.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        write_onnx(model, whole)
        quantize(whole, path, embeddings=embeddings)


def quantize(source: Path, target: Path, *, embeddings: bool = False) -> None:
    """Write the float32 graph ``source`` as ``target``, products with constant matrices in 8-bit integers.

    The last of them, the head, stays in float32: it is small, and classes are told apart there. So do word
    embeddings, which are looked up and not multiplied, unless ``embeddings`` asks for them, too: most of a
    small or multilingual model is these, and a page has to be downloaded.
    ``MatMulNBits`` (github.com/microsoft/onnxruntime, docs/ContribOperators.md) gives each block of ``BLOCK``
    inputs and weights a scale of its own, so a text's logits depend on nothing but the text.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.onnx_model import ONNXModel

    whole = ONNXModel(onnx.load(source))
    # Layers that are written as one operation with their bias, as all of GPT-2's, are products as well.
    whole.replace_gemm_with_matmul()
    products = [node.name for node in whole.model.graph.node if node.op_type == "MatMul"]
    settings = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ARITHMETIC, bits=BITS
    )
    with _quiet_exporter():
        quantizer = MatMulNBitsQuantizer(whole.model, nodes_to_exclude=products[-1:], algo_config=settings)
        quantizer.process()
    proto = quantizer.model.model
    if embeddings:
        _quantize_lookups(proto.graph)
    # Not the size of the whole message: past 2 GiB it is not computed.
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > LARGEST_FILE_BYTES
    onnx.save(proto, target, save_as_external_data=large, location=f"{target.name}.data")


def _quantize_lookups(graph: Any) -> None:
    """Tables that rows are looked up in, in place: 8-bit integers, each row with a scale of its own.

    In operators that every runtime has: ``Gather`` of the integers times ``Gather`` of the scales.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    tables = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    uses = [name for node in graph.node for name in node.input]
    nodes = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        is_large = table is not None and table.data_type == TensorProto.FLOAT and np.prod(table.dims) >= 2**12
        if table is None or axis or not is_large or uses.count(table.name) > 1:
            nodes.append(node)
            continue
        weights = numpy_helper.to_array(table)
        scales = np.maximum(np.abs(weights).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        rounded, name = np.rint(weights / scales).astype(np.int8), table.name
        graph.initializer.remove(table)
        graph.initializer.extend(
            [
                numpy_helper.from_array(rounded, f"{name}_int8"),
                numpy_helper.from_array(scales.astype(np.float32), f"{name}_scale"),
            ]
        )
        ids, out = node.input[1], node.output[0]
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{out}_int8"]),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"]),
            helper.make_node("Cast", [f"{out}_int8"], [f"{out}_whole"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}_whole", f"{out}_scale"], [out]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _example(pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Two texts of unlike length, so that padding is part of what is traced."""
    input_ids = torch.full((2, 8), 1 if pad_token_id != 1 else 2)
    attention_mask = torch.ones_like(input_ids)
    input_ids[1, 5:], attention_mask[1, 5:] = pad_token_id, 0
    return input_ids, attention_mask


class _Logits(nn.Module):
    """A classifier whose only output are its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes to its developers off the terminal."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime.quantization.matmul_nbits_quantizer")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class OnnxModel(nn.Module):
    """A graph of ``write_onnx`` with the interface of the Transformers model it was made from, on the CPU.

    It has no parameters: what it computes with is ONNX Runtime's, on as many threads as torch uses.

    Raises:
        UserInputError: the packages are missing, or the graph is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # Its exceptions have no base of their own.
            raise UserInputError(f"The graph {path} cannot be loaded ({_first_line(error)}).") from error

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Logits (batch, n_classes) of right-padded ids and their mask, (batch, length) both."""
        arrays = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits,) = self._session.run([OUTPUT], arrays)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

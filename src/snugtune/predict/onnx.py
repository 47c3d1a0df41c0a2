"""A classifier as an ONNX graph: written by torch's exporter, run by ONNX Runtime on the processor."""

from __future__ import annotations

import logging
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

OPSET = 23
"""The first with operators for attention and GELU: ONNX Runtime computes a graph of those a sixth faster."""

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"

LARGEST_FILE_BYTES = 1_500_000_000
"""Graphs with more weights keep them in a file of their own: protocol buffers end at 2 GiB."""


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
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
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
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if not torch.cpu._is_vnni_supported():
            # Such processors add two 8-bit products in 16 bits, which would overflow.
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Logits (batch, n_classes) of right-padded ids and their mask, (batch, length) both."""
        arrays = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits,) = self._session.run([OUTPUT], arrays)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))

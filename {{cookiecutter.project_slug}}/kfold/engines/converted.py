"""Models converted for OpenVINO or ONNX Runtime, two optional packages that are fast on CPUs; kept in memory only."""

import importlib
import io
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from kfold.errors import UserError

Forward = Callable[[torch.Tensor], torch.Tensor]

PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx")}  # PyTorch's export asks for onnx


def in_whole_batches(forward: Forward, size: int) -> Forward:
    """`forward` for batches of `size` only: a smaller one is filled up with its last image, whose results are cut off.

    Another shape would mean another conversion, or compilation.
    """

    def padded(images: torch.Tensor) -> torch.Tensor:
        missing = max(0, size - len(images))
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        return forward(filled)[: len(images)]

    return padded


def make_converted(model: nn.Module, engine: str, dtype: str, batch_size: int) -> Forward:
    """(B, 3, H, W) float32 on the CPU -> logits (B, C) float32.

    Raises UserError where the package is not there; the result does where it cannot convert the model.
    """
    convert = CONVERTERS[engine]
    package = import_engine(engine)
    made: dict[torch.Size, Forward] = {}  # a view may have another size than the image

    def forward(images: torch.Tensor) -> torch.Tensor:
        if images.shape not in made:
            # Tracing notes that Python's own branches are fixed: they depend on shapes alone, which are fixed here.
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")
                try:
                    made[images.shape] = convert(package, model, torch.zeros(images.shape), dtype)
                except Exception as error:  # each package, and the tracer, has classes of its own
                    reason = " ".join(str(error).split())[:160]
                    raise UserError(
                        f"--engine {engine}: cannot convert this model ({reason}): use --engine torch"
                    ) from None
        return made[images.shape](images)

    return in_whole_batches(forward, batch_size)


def import_engine(engine: str) -> ModuleType:
    packages = PACKAGES[engine]
    try:
        return [importlib.import_module(package) for package in packages][0]
    except ImportError as error:
        install = f"pip install {' '.join(packages)}"
        raise UserError(f"--engine {engine}: cannot be imported ({error}): {install}, or use --engine torch") from None


def to_openvino(openvino: Any, model: nn.Module, example: torch.Tensor, dtype: str) -> Forward:
    converted = openvino.convert_model(model, example_input=example, input=list(example.shape))
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    # Its own default is the fastest format of the processor, which need not be float32.
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0])


def to_onnxruntime(onnxruntime: Any, model: nn.Module, example: torch.Tensor, dtype: str) -> Forward:
    file = io.BytesIO()
    # dynamo=True would need a third package.
    torch.onnx.export(model, (example,), file, dynamo=False, input_names=["images"])
    options = onnxruntime.SessionOptions()
    # Each model has threads of its own, which would wait for its next batch at the cost of the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


CONVERTERS: dict[str, Callable[[Any, nn.Module, torch.Tensor, str], Forward]] = {
    "openvino": to_openvino,
    "onnxruntime": to_onnxruntime,
}

"""The ways to run a model for predictions: plain values, kept in manifests, so that all folds of a run go one way."""

from dataclasses import dataclass

import torch

from kfold.errors import UserError

ENGINES = ("torch", "openvino", "onnxruntime")
AS_TRAINED = "as trained"


@dataclass(frozen=True)
class Inference:
    """One way. PLAIN stands for PyTorch as each fold's own model was trained."""

    dtype: str = "float32"  # of autocast; of an engine, the precision that it is told to calculate in
    channels_last: bool = False
    depthwise_float32: bool = False  # depthwise convolutions left out of autocast
    fold_batchnorm: bool = False  # into the convolution before it: kfold/engines/fold_batch_norm.py
    compiled: bool = False  # by torch.compile
    engine: str = "torch"  # of ENGINES

    @property
    def is_plain(self) -> bool:
        return self.dtype == AS_TRAINED

    def __str__(self) -> str:
        names = {
            "channels_last": "channels last",
            "depthwise_float32": "depthwise float32",
            "fold_batchnorm": "BatchNorm folded",
            "compiled": "compiled",
        }
        engine = [] if self.engine == "torch" else [self.engine]
        return ", ".join([*engine, self.dtype, *(text for name, text in names.items() if getattr(self, name))])


PLAIN = Inference(AS_TRAINED)


def device_of(engine: str, device: torch.device) -> torch.device:
    """Where an engine runs: PyTorch on the machine's device, the others on the CPU."""
    return device if engine == "torch" else torch.device("cpu")


def dtypes_of(engine: str, device: torch.device) -> tuple[str, ...]:
    """The number formats that are worth a trial; slow ones lose it by themselves."""
    if engine == "onnxruntime":
        return ("float32",)
    return ("float32", "bfloat16") if device_of(engine, device).type == "cpu" else ("float32", "bfloat16", "float16")


def candidates(engine: str, device: torch.device, precision: str) -> list[Inference]:
    """Ways to compare with the plain one. precision: a number format that the person asked for, or auto.

    Raises UserError where the engine does not have that format.
    """
    if engine == "torch":
        dtypes = dtypes_of(engine, device) if precision == "auto" else (precision,)
        return [Inference(dtype, channels_last=True, fold_batchnorm=True) for dtype in dtypes]
    ways = [Inference(dtype, engine=engine) for dtype in dtypes_of(engine, device) if precision in ("auto", dtype)]
    if not ways:
        raise UserError(f"--engine {engine}: does not calculate in {precision}, as the run does: use --engine torch")
    return ways

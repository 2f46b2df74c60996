"""Does the device at hand train? A real convolution, because a GPU can be listed and still fail at its first one.

It runs in a process of its own, so that a crash or a hang is a line and not the end of the check.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROBE = (sys.executable, "-c", "from kfold.device_probe import probe; probe()")
PROBE_SECONDS = 60  # the first call of a GPU takes up to 20 s


@dataclass
class Diagnosis:
    """Lines for the person: errors stop, warnings do not, notes are worth knowing."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# This process


def check_device(found: Diagnosis, root: Path, command: Sequence[str] = PROBE, seconds: float = PROBE_SECONDS) -> None:
    """A convolution, forward and backward, in a process of its own: it may crash or hang and is named all the same."""
    package_dir = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package_dir), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        # Files, not pipes: they keep what was said before a process that hangs was stopped.
        try:
            code = subprocess.run(command, stdout=output, stderr=errors, timeout=seconds, env=environment).returncode
            failure = "" if code == 0 else describe_end(code)
        except subprocess.TimeoutExpired:
            code, failure = 1, f"no answer within {seconds:g} s"
        for file in (output, errors):
            file.seek(0)
        lines, told = output.read().splitlines(), errors.read().strip().splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    describe_device(found, answers, failure, told[-1] if told and code > 0 else "")


def describe_end(code: int) -> str:
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with {code}"


def describe_device(found: Diagnosis, answers: Sequence[Mapping], failure: str, last_error: str) -> None:
    """answers: of each device what it is, then its `done` or its `error`."""
    devices = {answer["device"]: answer for answer in answers if "name" in answer}
    done = {answer["device"] for answer in answers if "done" in answer}
    errors = {answer["device"]: answer["error"] for answer in answers if "error" in answer}
    if not devices:
        reason = failure or "no device was found"
        found.errors.append(
            f"machine: torch does not start ({reason}{last_error and ': '}{last_error}): install it anew"
        )
    for device, answer in devices.items():
        formats = " and ".join(answer["formats"])
        if device in done:
            found.notes.append(f"machine: {answer['name']} ({device}): a convolution works in {formats}")
            continue
        reason = errors.get(device) or failure + (last_error and f": {last_error}") or "it said nothing"
        what = "the GPU is there" if device != "cpu" else "only the CPU is there"
        found.errors.append(
            f"machine: {what} ({answer['name']}, {device}), but a convolution in {formats} fails: {reason}: "
            + device_remedy(device, reason)
        )
    if list(devices) == ["cpu"] and devices["cpu"].get("has_driver"):
        found.warnings.append(
            "machine: an NVIDIA driver is there, but this torch sees no GPU: install a torch that was built for CUDA"
        )


def device_remedy(device: str, reason: str) -> str:
    if device == "cpu":
        return "install torch anew"
    if "out of memory" in reason:
        return "stop the other processes that use this GPU"
    if device == "mps":
        return "update macOS and torch"
    return "choose T4 x2 in Kaggle's settings, or a torch that was built for this GPU"


# The process of its own


def probe() -> None:
    """In the child: say of each device what it is, then run a training step on it in the formats that are used."""
    import torch  # only here: the other checks need no torch

    from kfold.training.precision import choose_device, choose_precision

    chosen = choose_device()
    devices = [chosen]
    if chosen.type == "cuda":
        devices = [torch.device("cuda", place) for place in range(torch.cuda.device_count())]
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type
        say(device=str(device), name=name, formats=["float32"], has_driver=Path("/proc/driver/nvidia").exists())
        try:
            precision = choose_precision("auto", device)
            formats = list(dict.fromkeys(["float32", str(precision.dtype)[6:]]))
            say(device=str(device), name=name, formats=formats, has_driver=Path("/proc/driver/nvidia").exists())
            for form in formats:
                train_step(device, getattr(torch, form))
        except Exception as error:
            say(device=str(device), error=first_line(str(error)) or type(error).__name__)
        else:
            say(device=str(device), done=True)


def train_step(device, dtype) -> None:
    """One convolution with gradients, as in training; raises whatever the device cannot do."""
    import torch

    model = torch.nn.Conv2d(3, 8, 3, padding=1).to(device)
    images = torch.rand(4, 3, 32, 32, device=device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        outputs = model(images)
    scaler.scale(outputs.float().square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    if not all(parameter.isfinite().all().item() for parameter in model.parameters()):  # item waits for the device
        raise ArithmeticError("the result is not finite")


def say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


def first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200]

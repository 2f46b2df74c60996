"""OpenVINO and ONNX Runtime, where they are installed, predict what PyTorch does."""

import numpy as np
import pytest
import torch
from test_one_pass import CPU, SIZE, batches_of, image_paths, make_card, make_model
from torch import nn

from kfold.engines.converted import CONVERTERS, in_whole_batches, make_converted
from kfold.engines.inference import ENGINES, Inference
from kfold.engines.one_pass import Look, look_at_all
from kfold.engines.ready import make_ready
from kfold.ensemble.tta import make_views
from kfold.errors import UserError

__all__ = ["image_paths"]  # a fixture


def test_every_engine_but_pytorch_has_a_converter():
    assert ["torch", *CONVERTERS] == list(ENGINES)


@pytest.mark.parametrize("engine", CONVERTERS)
@pytest.mark.parametrize("view", ["d4", "scales"])
def test_a_converted_model_predicts_the_same_in_float32(engine, view, image_paths):
    pytest.importorskip(engine, reason=f"{engine} is an optional package: pip install {engine}")
    batches, card = batches_of(image_paths, 9), make_card("regression", 1)  # 23 images: the last batch has 5
    looks = [
        Look(make_ready(make_model(0), card, way, CPU, 9, torch.empty(0)), view, make_views(view, SIZE))
        for way in (Inference(), Inference(engine=engine))
    ]
    plain, converted = (seen.values for seen in look_at_all(looks, batches, 23, CPU))
    assert not np.array_equal(plain, converted)  # it is another program
    assert np.abs(plain - converted).max() < 1e-4


def test_openvino_calculates_in_the_format_that_it_is_told():
    pytest.importorskip("openvino", reason="openvino is an optional package: pip install openvino")
    model, images = make_model(0), torch.randn(4, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = model(images)
        errors = [
            float((make_converted(model, "openvino", dtype, 4)(images) - expected).abs().max())
            for dtype in ("float32", "bfloat16")
        ]
    assert errors[0] < 1e-4
    assert errors[0] < errors[1] or "BF16" not in capabilities()


def capabilities() -> list[str]:
    return pytest.importorskip("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("engine", CONVERTERS)
def test_a_model_that_cannot_be_converted_is_refused_in_one_line(engine):
    pytest.importorskip(engine, reason=f"{engine} is an optional package: pip install {engine}")

    class Odd(nn.Module):
        def forward(self, images):
            return torch.special.i1e(images).mean(dim=(2, 3)).exp2().lgamma()

    with pytest.raises(UserError, match=rf"--engine {engine}: cannot convert this model \(.*\): use --engine torch"):
        make_converted(Odd(), engine, "float32", 2)(torch.rand(2, 3, 8, 8))


def test_a_small_batch_is_filled_up_and_cut_off_again():
    shapes = []
    forward = in_whole_batches(lambda images: shapes.append(tuple(images.shape)) or images.sum(dim=(1, 2, 3)), 4)
    images = torch.rand(6, 3, 2, 2)
    assert torch.equal(torch.cat([forward(images[:4]), forward(images[4:])]), images.sum(dim=(1, 2, 3)))
    assert shapes == [(4, 3, 2, 2)] * 2

import io
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kfold.data.cache_build import size_of
from kfold.data.images import BadImage, decode_image, read_image
from kfold.data.reduce import FORMATS, Rule, decode_reduced, read_by, reduced_shape, side_for


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture, as photographs mostly are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def to_file(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB", orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(image).convert(mode).save(content, kind, exif=exif, **options)
    return content.getvalue()


@given(st.integers(8, 4096), st.floats(0.05, 1), st.integers(0, 600))
def test_the_side_keeps_crops_sharp_up_to_twice_the_size_and_is_shared(size, share, eval_size):
    side = side_for(size, share, eval_size)
    needed = max(min(size / math.sqrt(share), 2 * size), eval_size)
    assert side % 32 == 0
    assert needed <= side < needed + 32


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 1024))
def test_reducing_never_enlarges_and_keeps_the_proportion(height, width, side):
    found = reduced_shape(height, width, side)
    assert min(found) == min(height, width, side)
    assert found[0] <= height
    assert found[1] <= width
    if min(height, width) <= side:
        assert found == (height, width)
    assert abs(found[0] * width - found[1] * height) <= max(height, width)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("BMP", "RGB")]
)
def test_images_that_are_not_larger_keep_their_very_pixels(tmp_path, name, kind, mode):
    path = tmp_path / "image"
    path.write_bytes(to_file(photo(40, 64), kind, mode))
    assert np.array_equal(read_by(Rule(40, name), path), read_image(path))
    assert read_by(Rule(39, name), path).shape[0] == 39


def test_reduced_images_of_jpeg_have_the_colours_of_raw_ones(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(to_file(photo(200, 300), "PNG"))
    raw, jpeg = (read_by(Rule(64, name), path).astype(int) for name in ("raw", "jpeg"))
    assert 0 < np.abs(raw - jpeg).mean() < 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_at_a_reduced_scale_is_the_same_picture(orientation, mode, progressive):
    data = to_file(photo(256, 384), "JPEG", mode, orientation, quality=95, progressive=progressive)
    whole = decode_image(data)
    for side in (128, 100, 64, 32, 31):  # halves, quarters, eighths, and none that fits
        found, was_reduced = decode_reduced(data, side)
        height, width = reduced_shape(*whole.shape[:2], side)
        expected = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        assert was_reduced
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 1.5  # upside down: above 30


def test_a_reduced_decode_leaves_at_least_the_side(monkeypatch):
    shorter = []

    def decode(*given):
        image = decode_image(*given)
        shorter.append(min(image.shape[:2]))
        return image

    monkeypatch.setattr("kfold.data.reduce.decode_image", decode)
    data = to_file(photo(256, 384))
    for side in range(32, 257, 3):
        decode_reduced(data, side)
        assert side <= shorter[-1] < 2 * side or shorter[-1] == 32


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused_at_a_reduced_scale_as_at_the_whole(progressive):
    def outcome(decode, *given) -> str:
        try:
            decode(*given)
        except BadImage as problem:
            return str(problem)
        return "decoded"

    data = to_file(photo(256, 384), progressive=progressive)
    found = [
        [outcome(decode_image, data[:end]), *(outcome(decode_reduced, data[:end], side) for side in (128, 64, 32))]
        for end in [*range(0, len(data), len(data) // 50), len(data) - 3, len(data)]
    ]
    assert all(len(set(outcomes)) == 1 for outcomes in found)
    assert {outcomes[0] == "decoded" for outcomes in found} == {True, False}


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(sorted(FORMATS)))
def test_what_is_no_image_has_the_reason_that_it_always_has(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / "bad"
    path.write_bytes(data)
    with pytest.raises(BadImage) as expected:
        read_image(path)
    with pytest.raises(BadImage) as found:
        read_by(Rule(32, name), path)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_the_forecast_of_raw_pixels_is_exact_and_that_of_jpeg_is_enough(tmp_path, kind):
    for number, (height, width) in enumerate([(40, 64), (200, 300), (300, 200)]):
        path = tmp_path / str(number)
        path.write_bytes(to_file(photo(height, width), kind))
        claimed_width, claimed_height = size_of(str(path))
        assert (claimed_height, claimed_width) == (height, width)
        for name, of in FORMATS.items():
            content, _ = of.pack(path.read_bytes(), 64)
            expected = of.forecast(height, width, path.stat().st_size, 64)
            assert len(content) == expected if name == "raw" else len(content) <= expected

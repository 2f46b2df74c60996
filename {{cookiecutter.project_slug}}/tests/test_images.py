"""kfold/data/images.py: one decoding rule over a zoo of files, and ids that cannot leave their folder."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from kfold.data.images import BadImage, image_path, read_image
from kfold.errors import UserError

# A smooth 48 x 64 picture, so that JPEG changes it little.
SCENE = cv2.resize(np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8), (64, 48))
GREY = cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated_exif():
    exif = Image.Exif()
    exif[274] = 6
    return exif


def png_of(width, height, rows):
    """A PNG whose header promises width x height and whose data are whatever `rows` holds."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def read_bytes(tmp_path, data, name="x.jpg"):
    (tmp_path / name).write_bytes(data)
    return read_image(tmp_path / name)


RGB = Image.fromarray(SCENE)
GOOD = {
    "jpg": (encode(RGB, "JPEG", quality=95), SCENE),
    "png": (encode(RGB, "PNG"), SCENE),
    "bmp named .jpg": (encode(RGB, "BMP"), SCENE),
    "webp": (encode(RGB, "WEBP", quality=95), SCENE),
    "tiff": (encode(RGB, "TIFF"), SCENE),
    "exif orientation 6 jpg": (encode(RGB, "JPEG", quality=95, exif=rotated_exif()), np.rot90(SCENE, -1)),
    "exif orientation 6 png": (encode(RGB, "PNG", exif=rotated_exif()), np.rot90(SCENE, -1)),
    "grey": (encode(Image.fromarray(GREY), "PNG"), np.repeat(GREY[..., None], 3, axis=2)),
    "16-bit grey": (
        encode(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        np.repeat(GREY[..., None], 3, axis=2),
    ),
    "16-bit colour": (cv2.imencode(".png", SCENE[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), SCENE),
    "palette": (encode(RGB.quantize(256), "PNG"), np.array(RGB.quantize(256).convert("RGB"))),
    "rgba": (encode(Image.fromarray(np.dstack([SCENE, GREY])), "PNG"), SCENE),
    "grey with alpha": (encode(Image.fromarray(GREY).convert("LA"), "PNG"), np.repeat(GREY[..., None], 3, axis=2)),
    "cmyk": (encode(RGB.convert("CMYK"), "JPEG", quality=95), SCENE),
    "animation": (encode(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", RGB.size)]), SCENE),
}
JPEG, PNG = GOOD["jpg"][0], GOOD["png"][0]
BAD = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "text": (b"hello", "is not an image"),
    "jpg half": (JPEG[: len(JPEG) // 2], "is damaged or cut short (jpg"),
    "png half": (PNG[: len(PNG) // 2], "is damaged or cut short (png"),
    "png bad byte": (PNG[: len(PNG) // 2] + b"\0\0\0\0" + PNG[len(PNG) // 2 + 4 :], "is damaged or cut short (png"),
    "png with half its rows": (png_of(64, 48, b"".join(b"\0" + row.tobytes() for row in SCENE[:24])), "is damaged"),
    "png of 60000 x 60000": (png_of(60000, 60000, b""), "pixels, more than the cap"),
    "float tiff": (encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "is a TIFF of a kind"),
}


@pytest.mark.parametrize("case", GOOD)
def test_every_good_file_becomes_the_same_rgb_pixels(tmp_path, case):
    data, expected = GOOD[case]
    image = read_bytes(tmp_path, data)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("case", BAD)
def test_every_bad_file_is_refused_with_the_reason(tmp_path, case):
    data, reason = BAD[case]
    with pytest.raises(BadImage) as caught:
        read_bytes(tmp_path, data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(BadImage, match="no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(BadImage, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("image_id", ["1", "000123", "sub/1", "a.b", "..a", "тест 1"])
def test_plain_ids_and_subfolders_are_joined(tmp_path, image_id):
    assert image_path(tmp_path, image_id, ".png") == tmp_path / f"{image_id}.png"


@pytest.mark.parametrize("image_id", ["../x", "a/../../x", "..", "/etc/passwd", "a\0b", "..\\x", "\\x", "", "a/.."])
def test_ids_that_leave_the_folder_are_refused(tmp_path, image_id):
    with pytest.raises(UserError, match="leads out of"):
        image_path(tmp_path, image_id, ".png")


def test_links_out_of_the_folder_are_refused_but_a_linked_folder_is_fine(tmp_path):
    outside, images, linked = tmp_path / "outside", tmp_path / "images", tmp_path / "linked"
    outside.mkdir()
    images.mkdir()
    (outside / "x.png").write_bytes(PNG)
    (images / "x.png").symlink_to(outside / "x.png")
    (images / "sub").symlink_to(outside)
    (images / "y.png").symlink_to(images / "z.png")
    linked.symlink_to(images)
    for image_id in ("x", "sub/x"):
        with pytest.raises(UserError, match="leads out of"):
            image_path(images, image_id, ".png")
    assert image_path(linked, "y", ".png") == linked / "y.png"

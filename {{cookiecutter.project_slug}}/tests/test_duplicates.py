"""kfold/data/scan.py and duplicates.py: copies are found, look-alikes and flat pictures are not."""

import time

import cv2
import numpy as np
import pytest
from PIL import Image

from kfold.data import scan as scan_module
from kfold.data.duplicates import find_pairs, name_groups, near_pairs
from kfold.data.scan import Scan, scan_image, scan_images


def picture(seed, low=0, high=255):
    small = np.random.default_rng(seed).integers(low, high, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (96, 96), interpolation=cv2.INTER_CUBIC)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def groups_of(paths):
    ids = np.array([path.stem for path in paths], object)
    return dict(zip(ids, name_groups(ids, find_pairs(scan_images(paths, "test"))), strict=True))


def test_copies_share_the_smallest_id_and_others_have_no_group(tmp_path):
    scene = picture(1)
    paths = [
        save(tmp_path / "d.png", scene),
        save(tmp_path / "c_jpeg.jpg", scene, quality=60),
        save(tmp_path / "b_smaller.png", cv2.resize(scene, (64, 64), interpolation=cv2.INTER_AREA)),
        save(tmp_path / "a_other.png", picture(2)),
    ]
    (tmp_path / "e_exact.png").write_bytes(paths[0].read_bytes())
    paths.append(tmp_path / "e_exact.png")
    group = "b_smaller"
    assert groups_of(paths) == {"d": group, "c_jpeg": group, group: group, "e_exact": group, "a_other": ""}


def test_flat_pictures_are_copies_only_when_the_files_are_equal(tmp_path):
    flat = [save(tmp_path / f"{level}.png", np.full((32, 32, 3), level, np.uint8)) for level in (0, 1, 200)]
    flat.append(save(tmp_path / "larger.png", np.zeros((64, 64, 3), np.uint8)))
    (tmp_path / "zero.png").write_bytes(flat[0].read_bytes())
    groups = groups_of([*flat, tmp_path / "zero.png"])
    assert groups == {"0": "0", "zero": "0", "1": "", "200": "", "larger": ""}


def test_an_equal_scene_in_another_light_is_not_a_copy():
    scene = np.linspace(0, 200, 256).astype(np.uint8)
    thumbnails = np.stack([scene, scene + 3, scene + 9])
    assert set(map(tuple, near_pairs(np.full(3, 7, np.uint64), thumbnails))) == {(0, 1)}


def test_pictures_with_equal_hashes_but_other_content_are_not_copies():
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    other = np.tile((np.linspace(0, 1, 16) ** 4 * 255).astype(np.uint8), (16, 1))
    hashes = np.array([7, 7, 7], np.uint64)
    assert set(map(tuple, near_pairs(hashes, np.stack([ramp, other, ramp]).reshape(3, -1)))) == {(0, 2)}


def test_dark_pictures_that_differ_only_in_their_few_bright_spots_are_not_copies():
    sky, other_sky = np.zeros((2, 256), np.uint8)
    sky[[20, 100, 180]] = 60
    other_sky[[50, 130, 210]] = 60
    assert len(near_pairs(np.array([5, 5], np.uint64), np.stack([sky, other_sky]))) == 0


def test_every_pair_within_three_bits_is_found_whatever_the_bits():
    generator = np.random.default_rng(0)
    originals = generator.integers(1, 2**63, 300).astype(np.uint64)
    flips = np.array(
        [sum(1 << int(bit) for bit in generator.choice(64, 3, replace=False)) for _ in originals], np.uint64
    )
    hashes = np.concatenate([originals, originals ^ flips])
    thumbnails = np.tile(np.arange(256, dtype=np.uint8), (600, 1))
    assert np.unique(near_pairs(hashes, thumbnails), axis=0).tolist() == [[row, row + 300] for row in range(300)]
    four_bits = np.array([0b1111 << 8, 1 << 40], np.uint64)  # 5 bits apart
    assert len(near_pairs(four_bits, thumbnails[:2])) == 0


def test_a_crowd_of_alike_hashes_stays_fast_and_one_group():
    hashes = np.full(2000, 12345, np.uint64)
    thumbnails = np.tile(np.arange(256, dtype=np.uint8), (2000, 1))
    start = time.perf_counter()
    pairs = near_pairs(hashes, thumbnails)
    assert time.perf_counter() - start < 10
    ids = np.array([f"{row:05d}" for row in range(2000)], object)
    assert set(name_groups(ids, pairs)) == {"00000"}


def test_bad_files_have_no_copies():
    assert len(find_pairs([Scan("is empty"), Scan("is empty"), Scan("no such file")])) == 0


def test_a_pool_of_processes_finds_the_same_as_one_process(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{seed}.png", picture(seed)) for seed in range(5)] + [tmp_path / "missing.png"]
    alone = scan_images(paths, "test")
    monkeypatch.setattr(scan_module, "POOL_BYTES", 0)
    assert scan_images(paths, "test") == alone
    assert alone[-1].problem == "no such file"


def test_the_bar_is_quiet_where_stderr_is_no_terminal(tmp_path, capsys):
    scan_images([save(tmp_path / "a.png", picture(1))], "test")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "image", "options", "note"),
    [
        ("a.png", Image.fromarray(picture(1)[..., 0].astype(np.uint16) * 257), {}, "with 16 bits, scaled to 8"),
        ("a.jpg", Image.fromarray(picture(1)).convert("CMYK"), {}, "CMYK, converted to RGB"),
        ("a.png", Image.fromarray(picture(1)).convert("RGBA"), {}, "with transparency, which is dropped"),
        ("a.jpg", Image.fromarray(picture(1)), {"format": "PNG"}, "png files named .jpg"),
        (
            "a.gif",
            Image.fromarray(picture(1)),
            {"save_all": True, "append_images": [Image.fromarray(picture(2))]},
            "animated, only the first frame is used",
        ),
    ],
)
def test_oddities_are_noted(tmp_path, name, image, options, note):
    image.save(tmp_path / name, **options)
    assert scan_image(tmp_path / name).notes == (note,)


def test_exif_turns_and_plain_files_are_told_apart(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    turned = scan_image(save(tmp_path / "turned.jpeg", picture(1)[:48], exif=exif))
    assert turned.notes == ("turned upright by their EXIF orientation",)
    assert (turned.height, turned.width) == (96, 48)
    assert scan_image(save(tmp_path / "plain.jpeg", picture(1))).notes == ()

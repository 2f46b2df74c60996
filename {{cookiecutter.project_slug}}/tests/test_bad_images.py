"""A table of bad and odd image files, as training and as test images: each decodes by the one rule, or is one line
with file, reason and remedy, in the data check, in training and in prediction. Nothing hangs or fills the memory."""

import io
import json
import os
import re
import resource
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reliability import count
from test_check import check, write_facts
from test_images import png_of
from test_pipeline import prepare

import predict
import train
from kfold.data.augment import eval_transform
from kfold.data.header import claimed_pixels
from kfold.data.images import BadImage, decode_image, image_kind, image_paths, is_cut_short, read_image
from kfold.data.loader import Images
from kfold.data.scan import describe, scan_image
from kfold.errors import UserError

SCENE = cv2.resize(np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8), (64, 48))
GREY = cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY)
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=2)
RGB = Image.fromarray(SCENE)
OTHER = Image.new("RGB", RGB.size)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_orientation(number):
    exif = Image.Exif()
    exif[274] = number
    return encode(RGB, "JPEG", quality=95, exif=exif)


def patch(data, at, *values, form):
    """The file with numbers written over its header."""
    content = bytearray(data)
    struct.pack_into(form, content, at, *values)
    return bytes(content)


def huge_tiff(width, height):
    content = encode(RGB, "TIFF")
    directory = struct.unpack_from("<I", content, 4)[0]
    for entry in range(struct.unpack_from("<H", content, directory)[0]):
        at = directory + 2 + 12 * entry
        tag = struct.unpack_from("<H", content, at)[0]
        if tag in (256, 257):  # width and height as 32-bit numbers
            content = patch(content, at + 2, 4, 1, {256: width, 257: height}[tag], form="<HII")
    return content


def upright(number):
    """What a picture with this EXIF orientation must be turned into (EXIF 2.3, tag 274)."""
    turned = np.rot90(SCENE, {1: 0, 2: 0, 3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}[number])
    return turned[:, ::-1] if number in (2, 4, 5, 7) else turned


JPEG, PNG = encode(RGB, "JPEG", quality=95), encode(RGB, "PNG")
GIF, WEBP, BMP = (encode(RGB, kind) for kind in ("GIF", "WEBP", "BMP"))
PALETTE = np.array(RGB.quantize(256).convert("RGB"))
WHOLE = {
    "jpg": JPEG,
    "progressive jpg": encode(RGB, "JPEG", progressive=True),
    "jpg with restart marks": cv2.imencode(".jpg", SCENE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes(),
    "png": PNG,
    "webp": WEBP,
    "lossless webp": encode(RGB, "WEBP", lossless=True),
    "gif": GIF,
    "bmp": BMP,
    "tiff": encode(RGB, "TIFF"),
    "lzw tiff": encode(RGB, "TIFF", compression="tiff_lzw"),
    "animated png": encode(RGB, "PNG", save_all=True, append_images=[OTHER]),
    "animated webp": encode(RGB, "WEBP", save_all=True, append_images=[OTHER]),
}
ODD = {  # name -> content, the pixels, and what the data check notes
    **{
        f"exif orientation {number}": (with_orientation(number), upright(number), "EXIF" if number > 1 else "")
        for number in range(1, 9)
    },
    "grey": (encode(Image.fromarray(GREY), "PNG"), GREY_AS_RGB, ""),
    "grey jpg": (encode(Image.fromarray(GREY), "JPEG", quality=95), GREY_AS_RGB, ""),
    "one bit": (encode(Image.fromarray(GREY > 99), "PNG"), np.where(GREY_AS_RGB > 99, 255, 0), ""),
    "16-bit grey": (encode(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), GREY_AS_RGB, "16 bits"),
    "16-bit colour": (cv2.imencode(".png", SCENE[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), SCENE, ""),
    "16-bit colour tiff": (cv2.imencode(".tiff", SCENE[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), SCENE, ""),
    "palette": (encode(RGB.quantize(256), "PNG"), PALETTE, ""),
    "rgba": (encode(Image.fromarray(np.dstack([SCENE, GREY])), "PNG"), SCENE, "transparency"),
    "grey with alpha": (encode(Image.fromarray(GREY).convert("LA"), "PNG"), GREY_AS_RGB, "transparency"),
    "cmyk jpg": (encode(RGB.convert("CMYK"), "JPEG", quality=95), SCENE, "CMYK"),
    "animated gif": (encode(RGB, "GIF", save_all=True, append_images=[OTHER]), PALETTE, "animated"),
    "animated webp": (WHOLE["animated webp"], SCENE, "animated"),
    "animated png": (WHOLE["animated png"], SCENE, "animated"),
    "bmp named .png": (BMP, SCENE, "bmp files named .png"),
    "1 x 1": (png_of(1, 1, b"\0\7\7\7"), np.full((1, 1, 3), 7), ""),
    "1 x 10000": (png_of(10000, 1, b"\0" + b"\7" * 30000), np.full((1, 10000, 3), 7), ""),
    "10000 x 1": (png_of(1, 10000, b"\0\7\7\7" * 10000), np.full((10000, 1, 3), 7), ""),
}
CUT_KINDS = ("jpg", "png", "webp", "gif", "bmp", "tiff")
CUT = {
    f"{kind} cut to {share}": (WHOLE[kind][: int(len(WHOLE[kind]) * share)], "")
    for kind in CUT_KINDS
    for share in (0.1, 0.5, 0.9, 0.99, 0.999)
} | {
    f"{kind} without its last 4 bytes": (WHOLE[kind][:-4], "") for kind in ("jpg", "png", "webp", "gif", "bmp", "tiff")
}
MIDDLE = len(PNG) // 2
BAD = {  # name -> content, and a part of the reason
    "zero bytes": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html>404</html>", "web page"),
    "json": (b'{"error": "not found"}', "web page or text"),
    "text": (b"hello", "is not an image"),
    "zeros": (bytes(1000), "is not an image"),
    "pdf": (b"%PDF-1.7\n", "is not an image"),
    **CUT,
    "float tiff": (encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "is a TIFF of a kind"),
    "png of 60000 x 60000": (png_of(60000, 60000, b""), "cap"),
    "jpg of 60000 x 60000": (patch(JPEG, JPEG.index(b"\xff\xc0") + 5, 60000, 60000, form=">HH"), "cap"),
    "webp of 16383 x 16383": (patch(WEBP, WEBP.index(b"\x9d\x01\x2a") + 3, 16383, 16383, form="<HH"), "cap"),
    "lossless webp of 16384 x 16384": (patch(WHOLE["lossless webp"], 21, 2**28 - 1, form="<I"), "cap"),
    "gif of 60000 x 60000": (patch(GIF, 6, 60000, 60000, form="<HH"), "cap"),
    "bmp of 60000 x 60000": (patch(BMP, 18, 60000, 60000, form="<ii"), "cap"),
    "tiff of 60000 x 60000": (huge_tiff(60000, 60000), "cap"),
    "tiff of 2147483647 x 2147483647": (huge_tiff(2**31 - 1, 2**31 - 1), ""),
    "png with a wrong checksum": (PNG[: MIDDLE + 1] + bytes([PNG[MIDDLE + 1] ^ 1]) + PNG[MIDDLE + 2 :], "is damaged"),
    "png with garbage data": (PNG[:MIDDLE] + b"\0garbage" + PNG[MIDDLE + 8 :], "is damaged"),
    "png with half its rows": (png_of(64, 48, b"".join(b"\0" + row.tobytes() for row in SCENE[:24])), "is damaged"),
    "png with data of another kind": (png_of(64, 48, zlib.compress(b"x")), "is damaged"),
    "png without data": (png_of(64, 48, b""), "is damaged"),
    "png header only": (PNG[:33], "is damaged"),
    "jpg of 0 x 0": (patch(JPEG, JPEG.index(b"\xff\xc0") + 5, 0, 0, form=">HH"), "is damaged"),
}


def make_missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_unreadable(path: Path) -> None:
    path.write_bytes(PNG)
    path.chmod(0)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing.png")


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.png"
    outside.write_bytes(PNG)
    path.symlink_to(outside)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


PLACES = {  # name -> what puts it at a path, and a part of the reason
    "missing": (make_missing, "no such file"),
    "a folder": (make_folder, "is a folder"),
    "a pipe": (make_pipe, "is a pipe"),
    "a link to itself": (link_to_itself, "cannot be read (Too many levels of symbolic links)"),
    "a link to nothing": (link_to_nothing, "no such file"),
    "a link out of the folder": (link_out, "leads out of"),
    "a link to an endless device": (link_to_device, "leads out of"),
}
if hasattr(os, "geteuid") and os.geteuid():  # root may read everything
    PLACES["no rights to read"] = (make_unreadable, "cannot be read (Permission denied)")


def put(path: Path, name: str) -> str:
    """Place the bad file of this name at the path; a part of the reason that must be told."""
    path.unlink(missing_ok=True)
    if name in PLACES:
        place, reason = PLACES[name]
        place(path)
        return reason
    content, reason = BAD[name]
    path.write_bytes(content)
    return reason


EVERY_BAD = [*BAD, *PLACES]


# One file


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_becomes_rgb_pixels_by_the_one_rule_and_is_noted(tmp_path, name):
    content, pixels, note = ODD[name]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    image = read_image(path)
    assert (image.dtype, image.shape) == (np.uint8, pixels.shape)
    # Palette and lossy files are near, not equal; a wrong turn, a clipped depth or a lost channel differs by 20.
    assert np.abs(image.astype(int) - pixels).mean() < 6
    assert note in " ".join(scan_image(path).notes)


@pytest.mark.parametrize("name", EVERY_BAD)
def test_a_bad_file_is_refused_with_the_reason_by_whatever_reads_it(tmp_path, name):
    path = tmp_path / "images" / "x.png"
    path.parent.mkdir()
    reason = put(path, name)
    (found,), refused = image_paths(path.parent, ["x"], ".png")
    assert (refused[0] if refused else f"{path}: {scan_image(path).problem}").count(reason)
    images = Images([found], np.zeros((1, 0)), eval_transform(32), 32)
    batch = images.__getitems__([(0, 0)])
    ((row, told),) = batch.problems
    assert row == 0
    assert "\n" not in told
    assert told.startswith(f"{found}: ")
    assert not batch.images.any()


def test_a_file_without_rights_is_refused_though_its_folder_can_be_read(tmp_path, monkeypatch):
    def deny(path, flags, *mode):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.png").write_bytes(PNG)
    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(BadImage, match=r"cannot be read \(Permission denied\)"):
        read_image(tmp_path / "x.png")


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.write(PNG)
        file.truncate(2**36)  # a sparse file: 64 GB that take no room
    with pytest.raises(BadImage, match="more than an image can"):
        read_image(tmp_path / "x.png")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is measured in kilobytes on Linux")
def test_headers_that_claim_huge_pictures_take_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in BAD:
        if " of " in name and " x " in name:
            with pytest.raises(BadImage):
                decode_image(BAD[name][0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # a picture would take 500,000 or more


@pytest.mark.parametrize("name", [*WHOLE, *ODD])
def test_the_header_says_the_size_that_is_decoded_but_for_a_turn(name):
    content = WHOLE[name] if name in WHOLE else ODD[name][0]
    height, width, _ = decode_image(content).shape
    assert claimed_pixels(content, image_kind(content)) == height * width


@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 200), st.integers(0, 255), st.integers(0, 200))
def test_any_damage_to_a_header_is_a_size_or_0_and_never_another_error(name, place, byte, length):
    content = bytearray(WHOLE[name])
    content[place] = byte
    for cut in (content, content[:length]):
        assert claimed_pixels(bytes(cut), image_kind(WHOLE[name])) >= 0


# Cut at every byte


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_at_any_byte_is_refused_or_noted_and_never_gives_other_pixels_unnoted(kind, figures):
    refused, noted, silent = try_cuts(WHOLE[kind])
    assert silent == []
    figures(f"{kind} cut at each of {len(WHOLE[kind])} places: {refused} refused, {noted} noted, 0 silent")


@pytest.mark.parametrize("quality", [30, 98])
def test_busy_pictures_cut_at_any_byte_are_refused_or_noted(quality, figures):
    """Noise fills the bit reader otherwise than a smooth picture does."""
    found = np.zeros(2, int)
    for seed in range(count(3, 60)):
        generator = np.random.default_rng(seed)
        shape = (*generator.integers(8, 40, 2), 3)
        busy = Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8))
        refused, noted, silent = try_cuts(encode(busy, "JPEG", quality=quality, subsampling=seed % 3))
        assert silent == []
        found += refused, noted
    figures(f"noise as JPEG of quality {quality} cut at every place: {found[0]} refused, {found[1]} noted, 0 silent")


def test_a_large_photo_without_its_last_bytes_is_noted_and_cut_earlier_it_is_refused():
    """OpenCV 5.0 decodes a JPEG that lacks its last bytes without a word where the bits of all pixels were there."""
    generator = np.random.default_rng(0)
    large = cv2.resize(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8), (800, 600))
    content = encode(Image.fromarray(large), "JPEG", quality=95)
    for missing in (1, 2, 4):
        noted = False
        try:
            decode_image(content[:-missing])
            noted = any("without an end mark" in note for note in describe(content[:-missing], ".jpg"))
        except BadImage:
            noted = True
        assert noted
    for share in (0.1, 0.5, 0.9, 0.99, 0.999):
        with pytest.raises(BadImage, match="cut short"):
            decode_image(content[: int(len(content) * share)])


def try_cuts(content: bytes) -> tuple[int, int, list[int]]:
    """Of all places to cut: how many were refused, how many noted, and those that were decoded without a note."""
    refused, noted, silent = 0, 0, []
    for place in range(len(content)):
        try:
            decode_image(content[:place])
        except BadImage:
            refused += 1
            continue
        if any("without an end mark" in note for note in describe(content[:place], "")):
            noted += 1
        else:
            silent.append(place)
    return refused, noted, silent


@pytest.mark.parametrize("kind", ["jpg", "progressive jpg", "png", "gif", "webp"])
def test_a_missing_end_is_seen_even_where_a_decoder_forgives_it(kind):
    """Other versions of OpenCV forgive more than the one at hand."""
    for missing in (1, 2, 4):
        assert is_cut_short(WHOLE[kind][:-missing], image_kind(WHOLE[kind]))


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_are_not_called_cut_short(kind):
    assert not is_cut_short(WHOLE[kind], image_kind(WHOLE[kind]))
    assert not is_cut_short(WHOLE[kind] + bytes(3), image_kind(WHOLE[kind]))  # some writers pad their files


# The data check


def test_the_data_check_names_each_bad_file_once_with_its_remedy(tmp_path, figures):
    root = make_data(tmp_path)
    found = check(root)
    told = {"train": 0, "test": 0}
    for row, name in enumerate(EVERY_BAD):
        for side, lines, remedy in (
            ("train", found.errors, "replace it|mend the id"),
            ("test", found.warnings, "prior"),
        ):
            lines = [line for line in lines if names_row(line, side, row)]
            assert len(lines) == 1, (side, name, lines)
            assert re.search(remedy, lines[0]), lines[0]
            assert (BAD | PLACES)[name][1] in lines[0]
            told[side] += 1
    figures(f"{told['train']} bad training and {told['test']} bad test images: each named once with its remedy")


def test_with_the_policy_drop_bad_training_rows_are_left_out_and_ids_that_lead_out_still_stop(tmp_path):
    root = make_data(tmp_path)
    found = check(root, bad_train_images="drop")
    leading_out = [row for row, name in enumerate(EVERY_BAD) if (BAD | PLACES)[name][1] == "leads out of"]
    assert len(found.errors) == len(leading_out)
    assert all("leads out of" in line for line in found.errors)
    assert set(found.table["image_id"]) == {f"good{row:02d}" for row in range(8)}


@pytest.fixture(autouse=True)
def _every_line(monkeypatch):
    """Lists of more than 20 lines are cut; here each line is looked at."""
    monkeypatch.setattr("kfold.data.check_images.shorten", list)
    monkeypatch.setattr("kfold.data.check.shorten", list)


def names_row(line: str, side: str, row: int) -> bool:
    return re.search(rf"{side}{row:02d}(?!\d)", line) is not None


def make_data(root: Path) -> Path:
    """A competition whose images are the whole table, and eight good ones."""
    data = root / "data"
    for side in ("train", "test"):
        folder = data / f"{side}_images"
        folder.mkdir(parents=True)
        for row, name in enumerate(EVERY_BAD):
            put(folder / f"{side}{row:02d}.png", name)
    for row in range(8):
        noise = np.random.default_rng(row).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        (data / "train_images" / f"good{row:02d}.png").write_bytes(encode(Image.fromarray(noise), "PNG"))
    train_ids = [f"train{row:02d}" for row in range(len(EVERY_BAD))] + [f"good{row:02d}" for row in range(8)]
    labels = [("cat", "dog")[row % 2] for row in range(len(train_ids))]
    test_ids = [f"test{row:02d}" for row in range(len(EVERY_BAD))]
    pd.DataFrame({"image_id": train_ids, "label": labels}).to_csv(data / "train.csv", index=False)
    pd.DataFrame({"image_id": test_ids}).to_csv(data / "test.csv", index=False)
    sample = pd.DataFrame({"image_id": test_ids, "label": "cat"})
    sample.to_csv(data / "sample_submission.csv", index=False)
    write_facts(root)
    return root


# Training and prediction


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """A tiny run, trained on good images, then predicted with every bad and odd file among the test images."""
    root = prepare(tmp_path_factory.mktemp("bad"), "multiclass", 60, 10, epochs=1)
    train.main(root=root)
    names = [*EVERY_BAD, *ODD, "an id that leads out"]
    ids = [*(f"x{row:03d}" for row in range(len(names) - 1)), "../train_images/x"]
    for image_id, name in zip(ids, names, strict=True):
        path = root / "data" / "test_images" / f"{image_id}.png"
        if name in ODD:
            path.write_bytes(ODD[name][0])
        elif name in EVERY_BAD:
            put(path, name)
    sample = pd.read_csv(root / "data" / "sample_submission.csv", dtype=str)
    for table_name in ("test", "sample_submission"):
        path = root / "data" / f"{table_name}.csv"
        table = pd.read_csv(path, dtype=str)
        more = pd.DataFrame({column: sample.iloc[0][column] for column in table.columns}, index=range(len(ids)))
        pd.concat([table, more.assign(**{table.columns[0]: ids})]).to_csv(path, index=False)
    return root, dict(zip(ids, names, strict=True))


def test_no_bad_test_image_stops_the_prediction_each_gets_the_prior_and_is_listed(predicted, capfd, figures):
    root, name_of = predicted
    predict.main(root=root)
    told = capfd.readouterr().err.splitlines()
    bad = [image_id for image_id, name in name_of.items() if name not in ODD]
    folds = pd.read_csv(root / "folds.csv", dtype=str)
    for number in range(3):
        folder = root / "runs" / "baseline" / f"fold{number}"
        listed = json.loads((folder / "manifest.json").read_text())["unreadable_test_ids"]
        assert sorted(listed) == sorted(bad)
        shares = folds[folds["fold"] != str(number)]["label"].value_counts(normalize=True)
        rows = pd.read_parquet(folder / "test.parquet").set_index("id")
        prior = np.array([shares.get(name[2:], 0) for name in rows.columns])
        is_prior = np.isclose(rows.to_numpy(), prior, atol=1e-6).all(axis=1)
        assert set(rows.index[is_prior]) == set(bad)
    for image_id in bad:
        lines = [line for line in told if f"id '{image_id}' gets the prior prediction" in line]
        assert len(lines) == 3  # one a fold
        assert name_of[image_id] not in BAD | PLACES or (BAD | PLACES)[name_of[image_id]][1] in lines[0]
    assert not [line for line in told if "Traceback" in line]
    figures(f"{len(bad)} bad test images got the prior prediction and were listed, {len(ODD)} odd ones were predicted")


def test_a_bad_training_image_stops_the_training_with_file_reason_and_remedy(predicted):
    root = predicted[0]
    folds = pd.read_csv(root / "folds.csv", dtype=str)
    path = root / "data" / "train_images" / f"{folds['id'][0]}.png"
    kept = path.read_bytes()
    put(path, "jpg cut to 0.5")
    with pytest.raises(UserError) as refusal:
        train.main(name="other", root=root)
    path.write_bytes(kept)
    (problem,) = refusal.value.problems
    assert problem.startswith(f"{path}: is damaged or cut short (jpg")
    assert "run make_folds.py --check" in problem

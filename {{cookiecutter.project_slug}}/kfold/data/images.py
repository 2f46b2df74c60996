"""One rule from an image file to pixels, used for training, testing and the data check alike.

OpenCV decodes by content, whatever the suffix: the EXIF orientation is applied, 16 bits are scaled to 8, grey, palette
and CMYK become RGB, alpha is dropped, an animation gives its first frame. (torchvision.io kills the process on a
damaged PNG.) Whatever is not decoded whole is refused, never guessed.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from kfold.data.header import claimed_pixels
from kfold.errors import UserError

# Processes read images side by side, so OpenCV needs no threads of its own. Set here, once, before it starts any: a
# worker forked from a process whose OpenCV threads ran waited for ever in setNumThreads (opencv 5.0).
cv2.setNumThreads(0)

KINDS = {  # first bytes of a file -> what it is
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"RIFF": "webp",
}
MAX_PIXELS = 178_956_970  # 0.5 GB decoded; as Pillow's, and as kfold/__init__.py tells OpenCV
MAX_BYTES = 2**31  # of a file: 8 bytes for each pixel under the cap fit in, and OpenCV takes no more


class BadImage(ValueError):
    """The text is the reason why a file cannot be used as an image."""


def image_path(folder: Path, image_id: str, suffix: str) -> Path:
    """Where the image lies: folder/<id><suffix>, where an id may name a subfolder.

    Raises UserError for an id that leads out of the folder, by its text or through a symbolic link.
    """
    path = folder / f"{image_id}{suffix}"
    parts = re.split(r"[/\\]", image_id)
    outside = "\0" in image_id or ".." in parts or not parts[0] or Path(image_id).is_absolute()
    # Resolving takes 20 times as long as joining, so plain ids are only asked whether they are links.
    if not outside and (len(parts) > 1 or os.path.islink(path)):
        # realpath, because Path.resolve raises on links in a circle (Python 3.12): reading says that then.
        outside = not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    if outside:
        raise UserError(f"id {image_id!r} leads out of {folder}: mend the id, or put a file where a link is")
    return path


def image_paths(folder: Path, ids: Sequence[str], suffix: str) -> tuple[list[Path], dict[int, str]]:
    """Where the images lie, in order, and for each row whose id leads out of the folder what is wrong.

    The path of such a row is the null device, which no reader takes for an image.
    """
    paths, refused = [], {}
    for row, image_id in enumerate(ids):
        try:
            paths.append(image_path(folder, image_id, suffix))
        except UserError as error:
            refused[row] = str(error)
            paths.append(Path(os.devnull))
    return paths, refused


def read_image(path: Path) -> np.ndarray:
    """The pixels, (H, W, 3) uint8 RGB. Raises BadImage with the reason."""
    return decode_image(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises BadImage with the reason."""
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadImage("is a pipe or a device, not a file")
            if status.st_size > MAX_BYTES:
                raise BadImage(f"has {status.st_size} bytes, more than an image can")
            return file.read()
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except IsADirectoryError:
        raise BadImage("is a folder, not a file") from None
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None


def open_without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe would wait for ever for somebody to write to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode_image(data: bytes, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """The pixels of an image file's bytes, (H, W, 3) uint8 RGB. Raises BadImage with the reason.

    flags: of OpenCV, for a JPEG at half its size or less (kfold/data/reduce.py).
    """
    if not data:
        raise BadImage("is empty (0 bytes)")
    if (pixels := claimed_pixels(data, image_kind(data))) > MAX_PIXELS:
        raise BadImage(f"has {pixels} pixels, more than the cap of {MAX_PIXELS} (kfold/data/images.py)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        too_large = "MAX_IMAGE" in str(error)
        raise BadImage("has more pixels than the cap" if too_large else "is damaged") from None
    if image is None:
        raise BadImage(explain(data))
    return image


def image_kind(data: bytes) -> str:
    """jpg, png, gif, bmp, tif or webp by the first bytes; empty when it is none of these."""
    return next((kind for start, kind in KINDS.items() if data.startswith(start)), "")


def is_cut_short(data: bytes, kind: str) -> bool:
    """Whether a file that was decoded all the same lacks its end: OpenCV forgives that where the pixels are there."""
    if kind == "jpg":  # compressed data hold neither marker, so the last start of a scan comes before the last end
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if kind == "png":
        return b"IEND\xaeB`\x82" not in data  # with its checksum
    if kind == "gif":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "webp":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def explain(data: bytes) -> str:
    if data[:100].lstrip()[:1] in (b"<", b"{"):
        return "is a web page or text, not an image"
    kind = image_kind(data)
    if not kind:
        return f"is not an image (it starts with {data[:8]!r})"
    if kind == "tif":
        return "is a TIFF of a kind that OpenCV cannot read (such as float pixels), or damaged"
    return f"is damaged or cut short ({kind}, {len(data)} bytes)"

"""How many pixels an image file claims to have, by its first bytes: asked before anything is decoded.

A header of a few bytes can claim a picture of gigabytes. OpenCV has a cap of its own, but reads it when it is imported,
which a user's `import cv2` may do before this package can set it.
"""

import struct

SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of JPEG: the start of a frame; the three are tables


def claimed_pixels(data: bytes, kind: str) -> int:
    """Width x height by the header; 0 where it cannot be told, which the decoder must then refuse or not."""
    width, height = claimed_size(data, kind)
    return width * height


def claimed_size(data: bytes, kind: str) -> tuple[int, int]:
    """Width and height by the header, as stored (an EXIF orientation may swap them); 0, 0 where it cannot be told."""
    try:
        width, height = SIZES[kind](data)
    except (KeyError, struct.error, IndexError):
        return 0, 0
    return abs(width), abs(height)


def png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", data, 16)


def gif_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", data, 6)


def bmp_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<ii", data, 18)  # a negative height: stored from the top


def webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments, each a marker and a length, up to the frame."""
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker in SIZE_MARKERS:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        has_length = not (marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01)
        place += 2 + struct.unpack_from(">H", data, place + 2)[0] if has_length else (1 if marker == 0xFF else 2)
    return 0, 0


def tiff_size(data: bytes) -> tuple[int, int]:
    """Tags 256 and 257 of the first directory, as 16 or 32 bits."""
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "I", data, 4)[0]
    found = {}
    for entry in range(struct.unpack_from(order + "H", data, directory)[0]):
        tag, form = struct.unpack_from(order + "HH", data, directory + 2 + 12 * entry)
        if tag in (256, 257):
            found[tag] = struct.unpack_from(order + ("H" if form == 3 else "I"), data, directory + 10 + 12 * entry)[0]
    return found.get(256, 0), found.get(257, 0)


SIZES = {"png": png_size, "gif": gif_size, "bmp": bmp_size, "webp": webp_size, "jpg": jpeg_size, "tif": tiff_size}

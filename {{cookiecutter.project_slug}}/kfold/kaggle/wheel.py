"""A wheel made of a package as it is installed here: the same version there as here, and no network is asked.

The format: packaging.python.org/en/latest/specifications/binary-distribution-format
"""

import base64
import hashlib
import io
import zipfile
from importlib.metadata import PackageNotFoundError, distribution

from kfold.errors import UserError

OF_THIS_MACHINE = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # written anew, or not part of a wheel


def repack(name: str) -> tuple[str, bytes]:
    """File name and content of the wheel. Raises UserError where the package is not there, or not pure Python."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise UserError(f"{name}: not installed, so no wheel of it can be taken along: pip install {name}") from None
    folder = next(path.parts[0] for path in found.files or () if path.parts[0].endswith(".dist-info"))
    if "Root-Is-Purelib: true" not in (found.read_text("WHEEL") or ""):
        raise UserError(f"{name}: is not pure Python, its wheel would not fit Kaggle's machines: leave it out")
    kept = [
        path for path in found.files if not {"..", "__pycache__"} & set(path.parts) and path.name not in OF_THIS_MACHINE
    ]
    files = {path.as_posix(): path.locate().read_bytes() for path in sorted(kept)}
    record = f"{folder}/RECORD"
    lines = [f"{path},sha256={digest(data)},{len(data)}\n" for path, data in files.items()]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            wheel.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), data)  # the same bytes each time
    return f"{folder.removesuffix('.dist-info')}-py3-none-any.whl", content.getvalue()


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

"""A competition's archive, fetched by Kaggle's own command into a folder that holds nothing else."""

from pathlib import Path

from tqdm import tqdm

from kfold.errors import UserError
from kfold.kaggle.command import call_kaggle

SECONDS = 24 * 3600.0  # the largest competitions have 0.5 TB
SCRATCH = ".download"  # folder within the target; what a kill left there, the command goes on with
MARKER = ".competition"  # file within the target: whose data these are


def refuse_other_data(slug: str, into: Path) -> bool:
    """Whether the folder holds all of this competition's data. Raises UserError where it holds other files."""
    marker = into / MARKER
    owner = marker.read_text(encoding="utf-8", errors="replace").strip() if marker.is_file() else ""
    if owner == slug:
        return not (into / SCRATCH).exists()  # there until all is unpacked
    there = sorted(path.name for path in into.iterdir() if path.name[0] != ".") if into.is_dir() else []
    if there:
        shown = ", ".join(there[:3]) + (" ..." if len(there) > 3 else "")
        whose = f"of {owner}" if owner else "of the demo, or put there by hand"
        raise UserError(
            f"{into}: holds other data ({shown}), {whose}: move it, or give --into another folder (--overwrite "
            f"replaces files of the same name, and the others stay)"
        )
    return False


def fetch(slug: str, into: Path, again: bool = False) -> Path:
    """Where the archive lies, after `kaggle competitions download`. again: though a copy is there.

    Raises UserError, one line with what to do, when the command is missing or refuses.
    """
    scratch = into / SCRATCH
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        (into / MARKER).write_text(slug + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{into}: cannot be written ({error.strerror}): mend its rights") from None
    words = ["competitions", "download", slug, f"--path={scratch}", *(["--force"] if again else [])]
    address = f"kaggle.com/competitions/{slug}"
    with tqdm(desc="downloading", unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def show() -> None:
            bar.update(sum(path.stat().st_size for path in scratch.iterdir() if path.is_file()) - bar.n)

        answer = call_kaggle(words, SECONDS, f"download it at {address}/data", f"{address}/data", show)
    archives = sorted(scratch.glob(f"{slug}.*"))
    if answer.code != 0 or not archives:
        remedy = answer.remedy(slug, f"look at {address}/data")
        raise UserError(f"kaggle: not downloaded ({answer.last[:200]}): {remedy}")
    return archives[0]

"""A folder of any fsspec address (s3://bucket/prefix, gs://, file://) between nodes that share no disk.

    inputs/<sha256 of the list>.json     a repository's code, folds and data: sha256 of each file by its name
    objects/<sha256>                     the files; each is sent once
    runs/<run>-<identity>/, .../fold<k>/ what the nodes trained, or are training

Sent to the nodes as it is: imports nothing of this repository.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

STATES = ("previous.pt", "state.pt")
LAST = (*STATES, "manifest.json")  # sent in this order after all others: what they vouch for is there before
AT_ONCE = 500  # files in one call, which the object stores send side by side


def connect(url: str):
    """The file system of an address, and the path in it."""
    import fsspec  # here: only a fan-out with --storage needs it

    return fsspec.core.url_to_fs(url.rstrip("/"))


def push_inputs(url: str, root: Path, names: Sequence[str]) -> str:
    """Send the named files of a repository, those that are not there yet; the sha256 of their list."""
    system, base = connect(url)
    digests = {name: sha256(root / name) for name in sorted(names)}
    text = json.dumps(digests, indent=0)
    system.makedirs(f"{base}/objects", exist_ok=True)
    system.makedirs(f"{base}/inputs", exist_ok=True)
    there = {Path(path).name for path in system.ls(f"{base}/objects", detail=False)}
    missing = {digest: str(root / name) for name, digest in digests.items() if digest not in there}
    send(system, {source: f"{base}/objects/{digest}" for digest, source in missing.items()})
    digest = hashlib.sha256(text.encode()).hexdigest()
    system.pipe_file(f"{base}/inputs/{digest}.json", text.encode())
    return digest


def pull_inputs(url: str, digest: str, node_dir: Path) -> Path:
    """The root of a repository with these inputs on this node. Raises ValueError where a file came damaged."""
    system, base = connect(url)
    root, objects = node_dir / digest[:16], node_dir / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    with FileLock(node_dir / ".lock"):  # folds of one node start at once
        if (root / ".complete").exists():
            return root
        digests = json.loads(system.cat_file(f"{base}/inputs/{digest}.json"))
        missing = [its for its in dict.fromkeys(digests.values()) if not (objects / its).exists()]
        for first in range(0, len(missing), AT_ONCE):
            part = missing[first : first + AT_ONCE]
            paths = [objects / f".{its}.part" for its in part]
            system.get([f"{base}/objects/{its}" for its in part], [str(path) for path in paths])
            for its, path in zip(part, paths, strict=True):
                if sha256(path) != its:
                    raise ValueError(f"{url}/objects/{its}: damaged on its way")
                path.replace(objects / its)
        for name, its in digests.items():
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(objects / its, target)
        (root / ".complete").touch()
    return root


def run_url(url: str, run: str, identity: str) -> str:
    """Where a run lies. identity: a digest of its settings and folds, so that another run of its name is not it."""
    return f"{url.rstrip('/')}/runs/{run}-{identity}"


def pull_fold(url: str, run_dir: Path, fold: str) -> None:
    """Put what is known of a fold in its place on this node, from the address of its run; the run's own files first.

    What a run of other settings left under this name on the node is deleted. A fold that is done here stays as it is:
    the storage may lack its last files.
    """
    system, base = connect(url)
    origin = run_dir / ".origin"
    with FileLock(run_dir.with_name(f".{run_dir.name}.lock")):
        if not origin.exists() or origin.read_text() != url:
            shutil.rmtree(run_dir, ignore_errors=True)
            run_dir.mkdir(parents=True)
            receive(system, base, run_dir)
            origin.write_text(url)
        if not (run_dir / "speed.json").exists():  # the first fold has made it since
            receive(system, base, run_dir)
    if not (run_dir / fold / "manifest.json").exists():
        receive(system, f"{base}/{fold}", run_dir / fold)


def push_run(url: str, run_dir: Path, known: set) -> None:
    """Send the run's own files, such as its settings, that changed since `known`; what is there is replaced."""
    push_files(url, run_dir, known)


def push_fold(url: str, run_dir: Path, fold: str, known: set) -> None:
    """Send the fold's files that changed since `known`, which notes them; the states go when the fold is done."""
    push_files(f"{url}/{fold}", run_dir / fold, known)
    system, base = connect(f"{url}/{fold}")
    if (run_dir / fold / "manifest.json").exists():
        for name in (*STATES, "output.log"):
            if system.exists(f"{base}/{name}"):
                system.rm_file(f"{base}/{name}")


def is_done_there(url: str, fold: str) -> bool:
    system, base = connect(url)
    return system.exists(f"{base}/{fold}/manifest.json")


# Files


def push_files(url: str, folder: Path, known: set) -> None:
    system, base = connect(url)
    system.makedirs(base, exist_ok=True)
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    for path in sorted(paths, key=lambda path: (LAST.index(path.name) + 1 if path.name in LAST else 0, path.name)):
        try:
            status = path.stat()
            mark = (path.name, status.st_mtime_ns, status.st_size)
            if mark not in known:
                system.put_file(str(path), f"{base}/{path.name}")
                known.add(mark)
        except FileNotFoundError:
            continue  # training deletes its states when the fold is done


def send(system, targets: dict[str, str]) -> None:
    sources = list(targets)
    for first in range(0, len(sources), AT_ONCE):
        part = sources[first : first + AT_ONCE]
        system.put(part, [targets[source] for source in part])


def receive(system, base: str, folder: Path) -> None:
    """Every file (not folder) of `base`, each put in place whole."""
    system.invalidate_cache()
    if not system.exists(base):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for entry in system.ls(base, detail=True):
        if entry["type"] == "file":
            name = Path(entry["name"]).name
            system.get_file(entry["name"], str(folder / f".{name}.part"))
            (folder / f".{name}.part").replace(folder / name)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Archives: good ones come back whole, hostile ones are named and nothing is written, cut ones are never half there."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import tempfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability import count

import unpack as unpack_stage
from kfold.data import archive as archive_module
from kfold.data.archive import unpack
from kfold.data.archive_rules import Entry, Limits, find_clashes, find_odd
from kfold.errors import UserError

TREE = {
    "train.csv": b"image_id,label\n" + b"".join(b"%d,cat\n" % number for number in range(400)),
    "train_images/a.png": random.Random(1).randbytes(3000),
    "train_images/deep/er/b.png": random.Random(2).randbytes(700),
    "empty.txt": b"",
}
SMALL = Limits(num_entries=50, num_bytes=10**6, ratio_from=10**4, total_ratio=50, total_ratio_from=10**5)
PACKERS = {"tar": lambda data: data, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
FORMATS = ["zip", *PACKERS]


def zip_bytes(files: list[tuple[str, bytes]], change: Callable[[list[zipfile.ZipInfo]], object] | None = None) -> bytes:
    """A zip; `change` may alter the entries of its central directory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is in it twice
        for name, content in files:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
        if change:
            change(archive.filelist)
    return file.getvalue()


def tar_bytes(files: list[tuple[str, bytes]], packer: str = "tar", **attributes) -> bytes:
    """A tar; `attributes` are set on its last entry."""
    data = b""
    for position, (name, content) in enumerate(files):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in attributes.items() if position == len(files) - 1 else ():
            setattr(info, key, value)
        data += info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + content + bytes(-len(content) % 512)
    return PACKERS[packer](data + bytes(-len(data) % 10240 or 10240))


def pack(tree: dict[str, bytes], form: str) -> bytes:
    files = list(tree.items())
    return zip_bytes(files) if form == "zip" else tar_bytes(files, form)


def tree_of(folder: Path) -> dict[str, bytes]:
    """Contents by path, without the lock; a folder counts only by its files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir() and not path.name.startswith(".lock")
    }


def set_first(**attributes) -> Callable[[list[zipfile.ZipInfo]], None]:
    def change(infos: list[zipfile.ZipInfo]) -> None:
        for key, value in attributes.items():
            setattr(infos[0], key, value)

    return change


def overlapping(infos: list[zipfile.ZipInfo]) -> None:
    """Many entries share one content, as in the zip bomb that needs no nesting."""
    for number in range(20):
        copy = zipfile.ZipInfo(f"copy{number}")
        copy.file_size, copy.compress_size, copy.CRC = infos[0].file_size, infos[0].compress_size, infos[0].CRC
        copy.header_offset, copy.compress_type = 0, infos[0].compress_type
        infos.append(copy)


def endless_headers() -> bytes:
    """Thousands of headers that each announce the name of the next one."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    return (info.tobuf(tarfile.GNU_FORMAT) + b"abc\0".ljust(512, b"\0")) * 3000 + bytes(1024)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


ONE = [("a.txt", b"hello " * 20)]
NOISE = random.Random(3).randbytes(900)
HOSTILE_NAMES = {  # name -> what the message says
    "../canary": "leads out",
    "a/../../canary": "leads out",
    "..": "leads out",
    "..\\canary": "leads out",
    "a\\..\\..\\canary": "leads out",
    "/canary": "absolute",
    "\\canary": "absolute",
    "\\\\server\\share\\canary": "absolute",
    "C:\\canary": "absolute",
    "c:canary": "absolute",
    "new\nline": "control character",
    "bell\x07": "control character",
    "\x1b[2Jclears the screen": "control character",
    "x" * 300: "too long",
    "a/" * 100 + "b": "too long",
    ".git/config": "git repository",
    "data/.GIT/hooks/post-checkout": "git repository",
    ".unpacking/a": "needs",
}
LINK = (stat.S_IFLNK | 0o777) << 16
DEVICE = (stat.S_IFBLK | 0o644) << 16
HOSTILE = {  # what it is -> archive, what the message says
    **{f"zip {name[:20]!a}": (zip_bytes([(name, b"x")]), expected) for name, expected in HOSTILE_NAMES.items()},
    **{f"tar {name[:20]!a}": (tar_bytes([(name, b"x")]), expected) for name, expected in HOSTILE_NAMES.items()},
    "zip nul": (zip_bytes([("good\0.png", b"x")]), "control character"),
    "zip link": (zip_bytes([("a", b"/etc/passwd")], set_first(external_attr=LINK)), "symbolic link"),
    "zip device": (zip_bytes(ONE, set_first(external_attr=DEVICE)), "device"),
    "zip encrypted": (zip_bytes(ONE, set_first(flag_bits=1)), "is encrypted, only"),
    "zip deflate64": (zip_bytes(ONE, set_first(compress_type=9)), "method 9"),
    "zip twice": (zip_bytes([("a", b"1"), ("b", b"1"), ("a", b"2")]), "'a': is in it twice"),
    "zip twice by dot": (zip_bytes([("a", b"1"), ("./a", b"2")]), "is in it twice"),
    "zip twice by backslash": (zip_bytes([("a/b", b"1"), ("a\\b", b"2")]), "is in it twice"),
    "zip case": (zip_bytes([("a.png", b"1"), ("A.png", b"2")]), "many disks take it for 'a.png'"),
    "zip case of a folder": (zip_bytes([("cat/1", b"1"), ("Cat/2", b"2")]), "many disks take its folder for 'cat'"),
    "zip sharp s": (zip_bytes([("stra\u00dfe", b"1"), ("STRASSE", b"2")]), "many disks"),
    "zip accent": (zip_bytes([("caf\u00e9", b"1"), ("cafe\u0301", b"2")]), "many disks"),
    "zip file and folder": (zip_bytes([("a", b"1"), ("a/b", b"2")]), "'a': is a file and also a folder"),
    "zip file and Folder": (zip_bytes([("A/b", b"1"), ("a", b"2")]), "'a': is a file and also a folder"),
    "zip without a name": (zip_bytes([(".", b"1")]), "without a name"),
    "zip overlap": (zip_bytes([("a", NOISE)], overlapping), "overlap"),
    "zip bomb, one": (zip_bytes([("a", bytes(50_000)), ("b", NOISE)]), "would grow from"),
    "zip bomb, many": (zip_bytes([(f"{n}", bytes(9000)) for n in range(40)]), "would grow from"),
    "zip too many": (zip_bytes([(f"{n}", b"") for n in range(51)]), "51 entries"),
    "zip says more": (zip_bytes(ONE, set_first(file_size=500)), "not as long as declared"),
    "zip says less": (zip_bytes(ONE, set_first(file_size=5)), "damaged"),
    "zip says 5 TB": (zip_bytes(ONE, set_first(file_size=5 * 2**40)), "would grow from"),
    "zip wrong crc": (zip_bytes(ONE, set_first(CRC=1)), "damaged"),
    "zip other name inside": (zip_bytes(ONE, set_first(filename="other")), "damaged"),
    "zip damaged content": (flipped(zip_bytes([("a", NOISE)]), 500), "damaged"),
    "zip that says another number": (flipped(zip_bytes(ONE), len(zip_bytes(ONE)) - 12), "list of entries is damaged"),
    "zip of nothing": (zip_bytes([]), "holds no files"),
    "zip of folders": (zip_bytes([("a/", b"")]), "holds no files"),
    "tar symlink": (tar_bytes([("a", b"")], type=tarfile.SYMTYPE, linkname="/etc"), "symbolic link"),
    "tar link, then through it": (
        tar_bytes([("a", b""), ("out", b"")], type=tarfile.SYMTYPE, linkname=".."),
        "'out': is a symbolic link",
    ),
    "tar hard link": (tar_bytes([("a", b"")], type=tarfile.LNKTYPE, linkname="/etc/passwd"), "hard link"),
    "tar device": (tar_bytes([("a", b"")], type=tarfile.CHRTYPE, devmajor=1, devminor=5), "device"),
    "tar pipe": (tar_bytes([("a", b"")], type=tarfile.FIFOTYPE), "pipe"),
    "tar sparse": (tar_bytes(ONE, type=tarfile.GNUTYPE_SPARSE), "sparse"),
    "tar unknown kind": (tar_bytes(ONE, type=b"Z"), "unknown kind"),
    "tar twice": (tar_bytes([("a", b"1"), ("a", b"2")]), "is in it twice"),
    "tar case": (tar_bytes([("a", b"1"), ("A", b"2")]), "many disks"),
    "tar not unicode": (tar_bytes([("b\udcff", b"1")]), "not Unicode"),
    "tar.gz bomb": (tar_bytes([("a", bytes(90_000))], "tar.gz"), "would grow from"),
    "tar.bz2 bomb": (tar_bytes([("a", bytes(10**6))], "tar.bz2"), "would grow from"),
    "tar.xz bomb": (tar_bytes([("a", bytes(10**6))], "tar.xz"), "would grow from"),
    "tar too many": (tar_bytes([(f"{n}", b"") for n in range(52)]), "51 entries"),
    "tar backwards": (tar_bytes([("a", b"1"), ("b", b"")], size=-1024), "damaged"),
    "tar says more": (tar_bytes(ONE, size=90_000), "damaged"),
    "tar of a huge header": (tar_bytes([("x" * 17_000_000, b"")]), "damaged"),
    "tar of endless headers": (endless_headers(), "damaged"),
    "tar damaged header": (flipped(tar_bytes([("a", b"1"), ("b", b"")]), 1030), "damaged"),
    "tar without an end": (tar_bytes(ONE)[:1024], "damaged"),
    "tar and more": (tar_bytes(ONE) + tar_bytes(ONE), "damaged"),
    "gzip of a text": (gzip.compress(b"image_id,label\n" * 60), "damaged"),
    "gzip damaged": (flipped(tar_bytes([("a", NOISE)], "tar.gz"), 300), "damaged"),
    "web page": (b"\xef\xbb\xbf\n<!DOCTYPE html><html>Please log in</html>", "web page"),
    "error message": (b'{"code": 403, "message": "You must accept the rules"}', "error message"),
    "nothing": (b"", "is empty"),
    "zeros": (bytes(5000), "zero bytes"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + NOISE, "7z archive"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + NOISE, "RAR archive"),
    "an image": (b"\x89PNG\r\n\x1a\n" + NOISE, "no .zip or .tar"),
}


def test_every_hostile_archive_is_refused_by_name_and_nothing_is_written(tmp_path, figures):
    for number, (what, (data, expected)) in enumerate(HOSTILE.items()):
        folder = tmp_path / f"case{number}" / "outer"
        folder.mkdir(parents=True)
        archive = folder / "team.zip"
        archive.write_bytes(data)
        problems = refusals(archive, folder / "data")
        assert any(expected in problem for problem in problems), (what, problems)
        for problem in problems:
            assert problem.startswith(f"{archive}: "), what
            assert problem.isprintable(), what
            assert len(problem) < 400 + len(str(archive)), what
        assert tree_of(folder.parent) == {"outer/team.zip": data}, what
    assert len(HOSTILE) >= 20
    figures(f"{len(HOSTILE)} of {len(HOSTILE)} hostile archives named, 0 files written")


def refusals(archive: Path, into: Path) -> list[str]:
    try:
        unpack(archive, into, limits=SMALL)
    except UserError as error:
        return error.problems
    return []


def test_all_bad_entries_are_named_at_once(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_bytes([("../a", b""), ("good", b""), ("/b", b""), *[(f"../{n}", b"") for n in range(30)]]))
    with pytest.raises(UserError) as refusal:
        unpack(archive, tmp_path / "data")
    assert "'../a'" in refusal.value.problems[0]
    assert "'/b'" in refusal.value.problems[1]
    assert "12 more of this kind" in refusal.value.problems[-1]


def test_the_limits_themselves_stop_a_bomb_and_pass_a_table(tmp_path):
    bomb, table = tmp_path / "bomb.zip", tmp_path / "table.zip"
    bomb.write_bytes(zip_bytes([("zeros", bytes(110 * 2**20))]))
    with pytest.raises(UserError, match="would grow from"):
        unpack(bomb, tmp_path / "data")
    rows = b"id,label\n" + b"".join(b"%06d,0.5\n" % number for number in range(100_000))
    table.write_bytes(zip_bytes([("sample_submission.csv", rows), ("blank_mask.npy", bytes(4 * 2**20))]))
    assert unpack(table, tmp_path / "data").written == 2


@pytest.mark.parametrize("form", FORMATS)
def test_a_good_archive_is_unpacked_whole_and_again_does_nothing(tmp_path, form):
    archive, data = tmp_path / f"a.{form}", tmp_path / "data"
    archive.write_bytes(pack(TREE, form))
    assert unpack(archive, data).written == len(TREE)
    assert tree_of(data) == TREE
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    again = unpack(archive, data)
    assert (again.written, again.already) == (0, len(TREE))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (data / "train.csv").unlink()
    assert unpack(archive, data).written == 1
    assert tree_of(data) == TREE


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=8)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(st.dictionaries(PATHS, st.binary(max_size=300), min_size=1, max_size=8), st.sampled_from(FORMATS))
@settings(max_examples=count(60, 2000), suppress_health_check=list(HealthCheck))
def test_any_tree_survives_or_its_odd_name_is_refused(tree, form):
    entries = [Entry(name, "file", 1) for name in tree]
    is_good = not any(map(find_odd, entries)) and not find_clashes(entries)
    with tempfile.TemporaryDirectory() as folder:
        archive, data = Path(folder, "archive"), Path(folder, "data")
        archive.write_bytes(pack(tree, form))
        try:
            unpack(archive, data)
        except UserError:
            assert not is_good
            assert not data.exists()
        else:
            assert {entry.path: tree[entry.name] for entry in entries} == tree_of(data)
            assert len(list(Path(folder).iterdir())) == 2


@given(st.lists(PATHS, min_size=2, max_size=6, unique=True))
@settings(max_examples=count(100, 2000))
def test_names_that_a_disk_may_take_for_one_always_clash(names):
    for change in (str.upper, str.lower, lambda name: unicodedata.normalize("NFD", name)):
        changed = change(names[0])
        if changed != names[0] and changed.lower() == names[0].lower() and Entry(changed, "file", 1).path:
            assert find_clashes([Entry(name, "file", 1) for name in [*names, changed]])


@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_archive_is_refused_or_nothing_of_it_is_missing(tmp_path, form, figures):
    whole = pack(TREE, form)
    tries = count(40, len(whole))
    refused = 0
    for number, length in enumerate(sorted({round(part * (len(whole) - 1) / tries) for part in range(tries)})):
        archive, data = tmp_path / "cut", tmp_path / f"data{number}"
        archive.write_bytes(whole[:length])
        try:
            unpack(archive, data)
        except UserError:
            refused += 1
            assert not data.exists() or tree_of(data) == {}
        else:
            assert form == "tar", length  # the zeros that fill it up may be missing
            assert tree_of(data) == TREE
    figures(f"{form} cut at {number + 1} places: {refused} refused, {number + 1 - refused} lacked only padding")


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "tar"])  # it has no checksum of contents
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path, form, figures):
    whole = pack(TREE, form)
    places = random.Random(form).sample(range(len(whole)), min(len(whole), count(60, 6000)))
    refused = 0
    for number, place in enumerate(places):
        archive, data = tmp_path / "flipped", tmp_path / f"data{number}"
        archive.write_bytes(flipped(whole, place))
        try:
            unpack(archive, data)
        except UserError:
            refused += 1
            assert not data.exists() or tree_of(data) == {}
        else:
            assert tree_of(data) == TREE, place
    figures(f"{form} with one of {len(places)} bytes flipped: {refused} refused, the others unpacked to equal bytes")


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_kill_at_any_step_leaves_only_whole_files_and_the_next_run_goes_on(tmp_path, form):
    archive = tmp_path / "a"
    archive.write_bytes(pack(TREE, form))
    for step in range(2 * len(TREE)):
        data = tmp_path / f"data{step}"
        child = os.fork()
        if child == 0:
            die_at(step)
            try:
                unpack(archive, data)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found = {path: content for path, content in tree_of(data).items() if not path.startswith(".unpacking/")}
        assert found.items() <= TREE.items()
        assert len(found) == max(0, step - len(TREE))
        unpack(archive, data)
        assert tree_of(data) == TREE


def die_at(step: int) -> None:
    """Let this process end without a word in the middle of the write, or before the move, of this number."""
    calls = iter(range(1000))
    write, replace = archive_module.write_file, os.replace

    def dying_write(content, target, entry):
        if next(calls) == step:
            target.write_bytes(content.read(5))
            os._exit(9)
        write(content, target, entry)

    def dying_replace(source, target):
        if next(calls) == step:
            os._exit(9)
        replace(source, target)

    archive_module.write_file, os.replace = dying_write, dying_replace


def test_a_full_disk_is_told_before_and_during(tmp_path, monkeypatch):
    archive, data = tmp_path / "a.zip", tmp_path / "data"
    archive.write_bytes(pack(TREE, "zip"))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive_module, "write_file", fail)
    with pytest.raises(UserError, match=r"No space left on device.*free space"):
        unpack(archive, data)
    assert tree_of(data) == {}
    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda _: shutil_usage(100))
    with pytest.raises(UserError, match=r"needs 2.,... bytes in .*, where 100 are free"):
        unpack(archive, data)


def shutil_usage(free: int):
    return type("Usage", (), {"free": free})


def test_other_files_in_the_way_are_kept_unless_overwritten(tmp_path):
    archive, data = tmp_path / "a.zip", tmp_path / "data"
    archive.write_bytes(pack(TREE, "zip"))
    data.mkdir()
    (data / "notes.txt").write_bytes(b"mine too")
    for mine in (b"mine", b"x" * len(TREE["train.csv"])):  # of another length, and of the same
        (data / "train.csv").write_bytes(mine)
        with pytest.raises(UserError, match=r"train\.csv: is there already and differs"):
            unpack(archive, data)
        assert tree_of(data) == {"train.csv": mine, "notes.txt": b"mine too"}
    unpack(archive, data, overwrite=True)
    assert tree_of(data) == {**TREE, "notes.txt": b"mine too"}


def test_files_folders_and_links_of_the_wrong_kind_are_never_replaced(tmp_path):
    archive, data, outside = tmp_path / "a.zip", tmp_path / "data", tmp_path / "outside"
    archive.write_bytes(pack(TREE, "zip"))
    data.mkdir()
    outside.mkdir()
    (data / "train_images").symlink_to(outside)
    (data / "train.csv").mkdir()
    with pytest.raises(UserError) as refusal:
        unpack(archive, data, overwrite=True)
    assert [problem.split(": ")[1][:14] for problem in refusal.value.problems] == ["is a link out ", "is a folder, a"]
    (data / "train_images").unlink()
    (data / "train_images").write_bytes(b"")
    with pytest.raises(UserError, match="is a file, and the archive has a folder"):
        unpack(archive, data, overwrite=True)
    assert list(outside.iterdir()) == []


def test_a_link_in_a_files_place_is_replaced_and_not_followed(tmp_path):
    archive, data, outside = tmp_path / "a.zip", tmp_path / "data", tmp_path / "outside.csv"
    archive.write_bytes(pack(TREE, "zip"))
    data.mkdir()
    outside.write_bytes(TREE["train.csv"])  # equal today
    (data / "train.csv").symlink_to(outside)
    with pytest.raises(UserError, match=r"train\.csv: is there already and differs"):
        unpack(archive, data)
    unpack(archive, data, overwrite=True)
    assert not (data / "train.csv").is_symlink()
    assert outside.read_bytes() == TREE["train.csv"]
    assert tree_of(data) == TREE


def test_unpacked_files_carry_no_rights_of_the_archive(tmp_path):
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_bytes(ONE, mode=0o6777))
    unpack(archive, tmp_path / "data")
    assert not (tmp_path / "data" / "a.txt").stat().st_mode & 0o7111


def test_names_that_windows_cannot_have_are_only_told(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_bytes([("con.png", b"1"), ("what?.png", b"2"), ("good.png", b"3"), ("dot.", b"4")]))
    unpacked = unpack(archive, tmp_path / "data")
    assert unpacked.written == 4
    assert unpacked.warnings == [
        f"{archive}: 3 of 4 names cannot be files on Windows, the first is 'con.png'",
    ]


def test_two_at_once_do_not_mix(tmp_path):
    archive, data = tmp_path / "a.zip", tmp_path / "data"
    archive.write_bytes(pack(TREE, "zip"))
    with archive_module.locked(data), pytest.raises(UserError, match="in use by process"):
        unpack(archive, data)
    assert tree_of(data) == {}


def test_the_stage_unpacks_into_the_competitions_data_folder_and_says_so(tmp_path, capsys):
    (tmp_path / "competition.yaml").write_text(
        "project_name: Test\ntask: binary\ntarget_columns: [label]\ndata_dir: elsewhere\n"
    )
    archive = tmp_path / "a.zip"
    archive.write_bytes(pack(TREE, "zip"))
    unpack_stage.main(archive, root=tmp_path)
    assert capsys.readouterr().out == f"{archive}: 4 files unpacked into {tmp_path / 'elsewhere'}\n"
    unpack_stage.main(archive, root=tmp_path)
    assert "already unpacked, all 4 files are in" in capsys.readouterr().out
    assert tree_of(tmp_path / "elsewhere") == TREE


@pytest.mark.parametrize("into", [".", "..", "kfold", "tests", ".git"])
def test_an_archive_is_not_unpacked_among_the_repositorys_code(tmp_path, into):
    root = tmp_path / "repository"
    root.mkdir()
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_bytes([("conftest.py", b"raise SystemExit")]))
    with pytest.raises(UserError, match="holds this repository's code"):
        unpack_stage.main(archive, root / into, root)
    assert list(root.iterdir()) == []


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file: download it there"):
        unpack(tmp_path / "none.zip", tmp_path / "data")

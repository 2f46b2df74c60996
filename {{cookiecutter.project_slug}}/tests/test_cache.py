import os
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kfold.data import cache_build
from kfold.data.cache import CacheReader, Pixels
from kfold.data.cache_build import data_path_of, fill, forecast, index_path_of, look_up
from kfold.data.images import BadImage
from kfold.data.reduce import FORMATS, Format, Rule, read_by
from kfold.errors import Interrupted, UserError

RAW, JPEG = Rule(32, "raw"), Rule(32, "jpeg")


def nothing() -> None:
    pass


def write_images(folder, count: int, first: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(first)
    paths = []
    for number in range(first, first + count):
        coarse = noise.integers(0, 256, (4, 4, 3), np.uint8)
        size = (int(noise.integers(20, 70)), int(noise.integers(20, 70)))
        paths.append(str(folder / f"{number}.png"))
        cv2.imwrite(paths[-1], cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
    return paths


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("sources"), 40)


@pytest.fixture
def paths(tmp_path):
    return write_images(tmp_path / "images", 40)


@pytest.fixture
def made(monkeypatch):
    """The files that were packed, counted by format."""
    counts = []

    def counting(of: Format) -> Format:
        def pack(data: bytes, side: int):
            counts.append(len(data))
            return of.pack(data, side)

        return Format(pack, of.unpack, of.forecast)

    for name, of in list(FORMATS.items()):
        monkeypatch.setitem(FORMATS, name, counting(of))
    return counts


def reader_of(folder, rule, paths) -> CacheReader:
    return Pixels(rule, folder, fill(folder, rule, paths, "cache", nothing)).reader(paths)


def assert_right(reader, rule, paths) -> None:
    for row, path in enumerate(paths):
        assert np.array_equal(reader(row), read_by(rule, path)), path


# What it gives


@pytest.mark.parametrize("rule", [RAW, JPEG], ids=["raw", "jpeg"])
def test_a_cache_gives_the_pixels_that_the_rule_gives_without_one(sources, tmp_path, rule):
    assert_right(reader_of(tmp_path / "cache", rule, sources), rule, sources)
    backwards = sources[::-1] + sources[:3]
    assert_right(reader_of(tmp_path / "cache", rule, backwards), rule, backwards)


def test_pixels_of_a_cache_cannot_be_written_to(sources, tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        reader_of(tmp_path / "cache", RAW, sources)(0)[0] = 1


def test_a_bad_file_has_its_reason_in_the_cache_until_it_is_mended(paths, tmp_path, made):
    good = Path(paths[3]).read_bytes()
    Path(paths[3]).write_bytes(good[: len(good) // 2])
    os.remove(paths[5])
    for _ in range(2):  # made, then read from the index
        reader = reader_of(tmp_path / "cache", RAW, paths)
        with pytest.raises(BadImage, match="damaged or cut short"):
            reader(3)
        with pytest.raises(BadImage, match="no such file"):
            reader(5)
    assert len(made) == 39
    Path(paths[3]).write_bytes(good)
    Path(paths[5]).write_bytes(good)
    assert_right(reader_of(tmp_path / "cache", RAW, paths), RAW, paths)


def test_a_problem_of_the_disk_is_not_remembered(paths, tmp_path, monkeypatch):
    def fail(path):
        raise BadImage("cannot be read (Input/output error)")

    with monkeypatch.context() as broken:
        broken.setattr(cache_build, "read_bytes", fail)
        with pytest.raises(BadImage, match="Input/output"):
            reader_of(tmp_path / "cache", RAW, paths)(0)
    assert_right(reader_of(tmp_path / "cache", RAW, paths), RAW, paths)


# What is made, and when


def test_a_cache_is_made_once_and_then_only_what_changed_or_was_added(paths, tmp_path, made):
    folder = tmp_path / "cache"
    reader_of(folder, RAW, paths)
    assert len(made) == 40
    (folder / ".lock").unlink()
    reader_of(folder, RAW, paths)
    reader_of(folder, RAW, paths[:7])  # others were removed
    assert len(made) == 40
    assert not (folder / ".lock").exists()  # a whole cache can lie where nobody may write
    write_images(tmp_path / "images", 1, first=3)
    paths += write_images(tmp_path / "images", 2, first=90)
    assert_right(reader_of(folder, RAW, paths), RAW, paths)
    assert len(made) == 43


def test_a_file_of_the_same_size_and_a_new_time_is_made_again(paths, tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    for level, seconds in ((10, 1e9), (200, 1e9 + 1)):
        path = str(tmp_path / "a.bmp")
        cv2.imwrite(path, image + level)
        os.utime(path, (seconds, seconds))
        assert reader_of(tmp_path / "cache", RAW, [path])(0).max() == level


def test_a_cache_that_is_mostly_garbage_starts_anew(tmp_path, capsys):
    folder, kept = tmp_path / "cache", write_images(tmp_path / "kept", 3)
    for first in range(7):
        changed = [tmp_path / f"{number}.png" for number in range(8)]
        for path, target in zip(write_images(tmp_path / "images", 8, 10 * first), changed, strict=True):
            os.replace(path, target)
        paths = [*kept, *map(str, changed)]
        assert_right(reader_of(folder, RAW, paths), RAW, paths)
        used = sum(entry.num_bytes for entry in look_up(folder, RAW, paths)[0].values())
        assert data_path_of(folder).stat().st_size <= 3.5 * used
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("after", [0, 1])
def test_what_was_finished_before_a_stop_is_kept(paths, tmp_path, made, after, capsys):
    calls = []

    def stop_later():
        calls.append(1)
        if len(calls) > after:
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        fill(tmp_path / "cache", RAW, paths, "cache", stop_later)
    kept = len(look_up(tmp_path / "cache", RAW, paths)[0])
    assert kept >= 16 * (after + 1)
    made.clear()
    assert_right(reader_of(tmp_path / "cache", RAW, paths), RAW, paths)
    assert len(made) == 40 - kept
    assert capsys.readouterr().err == ""  # nothing was found damaged


KILLED = """
import os, sys, threading
from dataclasses import replace
from pathlib import Path
from kfold.data import cache_build
from kfold.data.reduce import FORMATS, Rule

folder, num_listed, *paths = sys.argv[1:]
index, raw, lock = cache_build.index_path_of(Path(folder)), FORMATS["raw"], threading.Lock()

def pack(data, side):
    with lock:
        if index.read_bytes().count(b"\\n") > int(num_listed):
            os._exit(9)
    return raw.pack(data, side)

FORMATS["raw"] = replace(raw, pack=pack)
cache_build.num_cores = lambda: THREADS
cache_build.fill(Path(folder), Rule(32, "raw"), paths, "cache", lambda: None)
"""
THREADS = 4


@pytest.mark.parametrize("num_listed", [1, 5, 15])
def test_a_kill_costs_what_the_threads_had_in_their_hands_and_no_more(paths, tmp_path, made, num_listed, capsys):
    """Killed again and again: each time the listed images stay, and no more are made than were lacking."""
    folder, project, kept = tmp_path / "cache", Path(__file__).resolve().parent.parent, 0
    for _ in range(2):
        words = [str(folder), str(kept + num_listed), *paths]
        code = KILLED.replace("THREADS", str(THREADS))
        assert subprocess.run([sys.executable, "-c", code, *words], cwd=project, check=False).returncode == 9
        before, kept = kept, len(look_up(folder, RAW, paths)[0])
        assert before + num_listed <= kept <= before + num_listed + THREADS
    assert_right(reader_of(folder, RAW, paths), RAW, paths)
    assert len(made) == 40 - kept
    assert capsys.readouterr().err == ""  # a kill is no damage
    sizes = [entry.num_bytes for entry in look_up(folder, RAW, paths)[0].values()]
    assert data_path_of(folder).stat().st_size <= sum(sizes) + 2 * max(sizes)


def test_a_second_process_waits_and_makes_nothing(paths, tmp_path, made, capsys, monkeypatch):
    is_inside, may_go_on, raw = threading.Event(), threading.Event(), FORMATS["raw"]

    def pack(data, side):
        is_inside.set()
        may_go_on.wait(20)
        return raw.pack(data, side)

    monkeypatch.setitem(FORMATS, "raw", replace(raw, pack=pack))
    waiting = []

    def let_go():  # called while it waits for the lock
        waiting.append(1)
        may_go_on.set()

    first = threading.Thread(target=fill, args=(tmp_path / "cache", RAW, paths, "cache", nothing))
    first.start()
    is_inside.wait(20)
    found = fill(tmp_path / "cache", RAW, paths, "cache", let_go)
    first.join()
    assert waiting
    assert len(found) == len(made) == 40
    assert capsys.readouterr().err.count("waiting for it") == 1


def test_memory_stays_flat_while_a_cache_is_made(tmp_path):
    paths = []
    for number in range(300):
        paths.append(str(tmp_path / f"{number}.bmp"))
        cv2.imwrite(paths[-1], np.zeros((64, 64, 3), np.uint8))
    tracemalloc.start()
    fill(tmp_path / "cache", Rule(64, "raw"), paths, "cache", nothing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data_path_of(tmp_path / "cache").stat().st_size == 300 * 64 * 64 * 3
    assert peak < 1_500_000  # of 3.7 MB


def test_the_forecast_is_what_raw_takes(paths, tmp_path):
    lacking = look_up(tmp_path / "cache", RAW, paths)[1]
    expected = forecast(lacking, RAW, nothing)
    fill(tmp_path / "cache", RAW, paths, "cache", nothing)
    assert data_path_of(tmp_path / "cache").stat().st_size == expected


def test_a_disk_that_refuses_is_named(paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fill(tmp_path / "file" / "cache", RAW, paths, "cache", nothing)


# Damage


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "cache"
    fill(folder, RAW, sources[:12], "cache", nothing)
    return index_path_of(folder).read_bytes(), data_path_of(folder).read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_of_a_cache_ever_changes_a_pixel(sources, whole, tmp_path, data):
    """Either file cut short anywhere, or a byte of it changed: named or made again, before, or when it is read."""
    index, content = whole
    victim = data.draw(st.sampled_from(["index", "content"]))
    damaged = bytearray(index if victim == "index" else content)
    place = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        del damaged[place:]
    else:
        damaged[place] ^= data.draw(st.integers(1, 255))
    folder = tmp_path / "cache"
    folder.mkdir(exist_ok=True)
    index_path_of(folder).write_bytes(damaged if victim == "index" else index)
    data_path_of(folder).write_bytes(content if victim == "index" else damaged)
    for _ in range(2):
        assert_right(reader_of(folder, RAW, sources[:12]), RAW, sources[:12])


def test_a_damaged_image_is_named_read_from_its_file_and_made_again_at_the_next_start(sources, tmp_path, made, capsys):
    reader_of(tmp_path / "cache", RAW, sources)
    with data_path_of(tmp_path / "cache").open("r+b") as file:
        file.seek(1000)
        file.write(bytes(byte ^ 1 for byte in b"0123"))
    made.clear()
    assert_right(reader_of(tmp_path / "cache", RAW, sources), RAW, sources)
    (line,) = capsys.readouterr().err.splitlines()
    assert "pixels.bin: damaged at the image " in line
    assert_right(reader_of(tmp_path / "cache", RAW, sources), RAW, sources)
    assert len(made) == 1
    assert capsys.readouterr().err == ""


def test_a_file_that_is_cut_short_is_named_when_it_is_opened(sources, tmp_path, capsys):
    folder = tmp_path / "cache"
    reader_of(folder, RAW, sources)
    os.truncate(data_path_of(folder), data_path_of(folder).stat().st_size - 1)
    look_up(folder, RAW, sources)
    assert "pixels.bin: cut short: 1 images are made again" in capsys.readouterr().err


def test_a_line_that_a_kill_cut_short_costs_its_own_image_only(sources, tmp_path, made, capsys):
    index_path = index_path_of(tmp_path / "cache")
    reader_of(tmp_path / "cache", RAW, sources)
    os.truncate(index_path, index_path.stat().st_size - 5)
    made.clear()
    for _ in range(2):
        assert_right(reader_of(tmp_path / "cache", RAW, sources), RAW, sources)
        assert len(made) == 1
    assert capsys.readouterr().err == ""  # a kill is no damage


def test_a_checksum_is_asked_for_once_in_a_process(sources, tmp_path, monkeypatch):
    reader, asked = reader_of(tmp_path / "cache", RAW, sources), []
    monkeypatch.setattr("zlib.crc32", lambda content: asked.append(1) or reader.entries[0, 6])
    for _ in range(3):
        reader(0)
    assert len(asked) == 1

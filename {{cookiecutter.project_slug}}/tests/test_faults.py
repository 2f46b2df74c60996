"""A disk that fails at any single operation of a save, or a kill there: a whole state is left, always."""

import errno
import fcntl
import os
import signal
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from reliability import count

from kfold import files
from kfold.errors import UserError
from kfold.files import atomic_write, locked
from kfold.training.state import read_state, write_state

FAULTS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES, "kill": None}
OPERATIONS = ("open", "close", "chmod", "fsync", "replace")  # of the module os


class FaultyDisk:
    """Counts the operations of a save; at number `fail_at` (from 0) the disk fails, or the process is killed."""

    def __init__(self, monkeypatch, fail_at: int | None = None, fault: str = "EIO"):
        self.fail_at, self.fault, self.count = fail_at, fault, 0
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self.failing(getattr(os, name)))
        monkeypatch.setattr(tempfile, "mkstemp", self.failing(tempfile.mkstemp))
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda path, mode="r", **more: self.watch(opened(path, mode, **more), mode))

    def failing(self, operation):
        def run(*arguments, **options):
            self.step()
            return operation(*arguments, **options)

        return run

    def watch(self, file, mode):
        if "w" not in mode:
            return file
        write = file.write

        def half_then_fail(content):
            try:
                self.step()
            except OSError:
                write(content[: len(content) // 2])
                raise
            return write(content)

        return WatchedFile(file, half_then_fail)

    def step(self):
        number, self.count = self.count, self.count + 1
        if number != self.fail_at:
            return
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(FAULTS[self.fault], os.strerror(FAULTS[self.fault]))


class WatchedFile:
    def __init__(self, file, write):
        self.file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.file.close()


def make_state(number: int) -> dict:
    return {"number": number, "weights": torch.full((300, 50), float(number))}


def in_a_child(action) -> int:
    """The exit status of a forked process that does it: 0, 1 for a UserError, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except UserError:
            os._exit(1)
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def status_of(action, fault: str) -> int:
    """What `in_a_child` says; only a kill needs a process of its own."""
    if fault == "kill":
        return in_a_child(action)
    try:
        action()
    except UserError:
        return 1
    return 0


def readable_numbers(folder: Path) -> list[int]:
    found = []
    for name in ("state.pt", "previous.pt"):
        if (folder / name).exists():
            state = read_state(folder / name)  # a torn file under its real name would raise here
            assert (state["weights"] == state["number"]).all()
            found.append(state["number"])
    return found


def test_a_fault_at_every_operation_of_a_save_loses_no_state(tmp_path, figures):
    def save(folder: Path, number: int) -> None:
        write_state(folder / "state.pt", folder / "previous.pt", make_state(number))

    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyDisk(patch)
        save(tmp_path / "counted", 1)
    num_operations = disk.count
    assert num_operations >= 10  # make, write (body and seal), chmod, fsync of file and folder, two renames ...
    tried = 0
    for history in (0, 1, 2):  # states that are there already
        for fault in FAULTS:
            for fail_at in range(num_operations):
                folder = tmp_path / f"{history}{fault}{fail_at}"
                for number in range(1, history + 1):
                    save(folder, number)

                def failing_save(folder=folder, fail_at=fail_at, fault=fault, number=history + 1):
                    with pytest.MonkeyPatch.context() as patch:
                        FaultyDisk(patch, fail_at, fault)
                        save(folder, number)

                status = status_of(failing_save, fault)
                assert status == (-signal.SIGKILL if fault == "kill" else 1)
                left = readable_numbers(folder)
                assert not history or max(left) >= history, (history, fault, fail_at, left)
                save(folder, history + 1)  # the disk is well again
                assert max(readable_numbers(folder)) == history + 1
                tried += 1
    figures(f"{tried} faults (EIO, ENOSPC, EACCES, SIGKILL) at each of {num_operations} operations of a save: 0 lost")


def test_a_fault_at_every_operation_leaves_the_old_file_or_the_new_one(tmp_path, figures):
    tried = 0
    for fault in FAULTS:
        for fail_at in range(30):
            path = tmp_path / f"{fault}{fail_at}" / "config.yaml"
            atomic_write(path, "old" * 1000)

            def failing_write(path=path, fail_at=fail_at, fault=fault):
                with pytest.MonkeyPatch.context() as patch:
                    FaultyDisk(patch, fail_at, fault)
                    atomic_write(path, "new" * 1000)

            status = status_of(failing_write, fault)
            assert path.read_text() in ("old" * 1000, "new" * 1000)
            if status == 0:  # past the last operation
                break
            tried += 1
            if fault != "kill":
                assert [other.name for other in path.parent.iterdir()] == ["config.yaml"]  # no litter
        else:
            raise AssertionError("more operations than expected")
    figures(f"{tried} faults at each operation of an atomic write: the old file or the new one, never a torn one")


def test_a_save_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def seen_fsync(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def seen_replace(source, target):
        calls.append(f"-> {Path(target).name}")
        replace(source, target)

    write_state(tmp_path / "state.pt", tmp_path / "previous.pt", make_state(1))
    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_state(tmp_path / "state.pt", tmp_path / "previous.pt", make_state(2))
    assert calls == ["file", "-> previous.pt", "-> state.pt", "folder"]


def test_a_real_limit_of_the_file_size_at_any_byte_loses_no_state(tmp_path, figures):
    """The kernel refuses the write, not a stand-in."""
    resource = pytest.importorskip("resource")
    save = lambda number: write_state(tmp_path / "state.pt", tmp_path / "previous.pt", make_state(number))  # noqa: E731
    save(1)
    size = (tmp_path / "state.pt").stat().st_size
    limits = [size * step // count(8, 200) for step in range(count(8, 200))] + [size - 1]
    for limit in limits:

        def limited_save(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(2)

        assert in_a_child(limited_save) == 1, limit
        assert readable_numbers(tmp_path) == [1]
    figures(f"{len(limits)} saves cut short by the kernel at any byte: 0 lost")


def test_every_flipped_bit_and_cut_of_a_state_is_named(tmp_path, figures):
    path = tmp_path / "state.pt"
    write_state(path, tmp_path / "previous.pt", {"weights": torch.arange(50.0), "epoch": 3})
    content = path.read_bytes()
    bits = range(0, 8 * len(content), 1 if count(0, 1) else 37)
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"state\.pt: damaged"):
            read_state(path)
    for size in range(0, len(content), 1 if count(0, 1) else 41):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"state\.pt: damaged"):
            read_state(path)
    figures(f"{len(bits)} of {len(bits)} flipped bits of a state named")


# One process a folder


def test_a_lock_names_its_holder_and_is_free_again_after_it(tmp_path):
    with locked(tmp_path):
        assert in_a_child(lambda: locked(tmp_path).__enter__()) == 1
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .* since "):
            locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_what_a_killed_process_left_is_taken_over_and_said(tmp_path, capsys):
    def hold_and_die():
        lock = locked(tmp_path)  # without a name for it Python would end it at once
        lock.__enter__()
        (tmp_path / ".state.pt.x.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(hold_and_die) == -signal.SIGKILL
    with locked(tmp_path):
        said = capsys.readouterr().err
        assert "taken over from process" in said
        assert "which was killed" in said
        assert not list(tmp_path.glob("*.tmp"))
    with locked(tmp_path):
        assert capsys.readouterr().err == ""


def test_orphans_of_a_killed_process_are_waited_for(tmp_path, monkeypatch):
    """Loader processes keep their dead parent's lock until they notice, where filelock is older than 4."""
    reader, writer = os.pipe()

    def hold_fork_and_die():
        lock = os.open(tmp_path / ".lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / ".lock.holder").write_text(f"process {os.getpid()} on {socket.gethostname()} since today")
        if os.fork() == 0:  # the orphan lives until the pipe is closed
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(hold_fork_and_die) == -signal.SIGKILL
    monkeypatch.setattr(files, "ORPHAN_SECONDS", 0.1)
    with pytest.raises(UserError, match="is gone, but its children still run"), locked(tmp_path):
        pass
    os.close(writer)
    monkeypatch.setattr(files, "ORPHAN_SECONDS", 10)
    with locked(tmp_path):
        pass
    os.close(reader)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "fold0"):
        pass

"""kfold/doctor.py and kfold/device_probe.py: whatever is wrong with a machine is one line with its remedy."""

import json
import os
import sys
import time
from collections import namedtuple
from importlib.metadata import PackageNotFoundError

import pytest
from test_check import root as repository  # noqa: F401 (a fixture)

import make_folds
from kfold import doctor
from kfold.device_probe import Diagnosis, check_device, describe_device
from kfold.doctor import (
    CHECKS,
    cgroup_limits,
    check_disk,
    check_packages,
    check_processors,
    check_shared_memory,
    check_writing,
    examine,
)
from kfold.errors import UserError

Usage = namedtuple("Usage", "total used free")
T4_X2 = "choose T4 x2 in Kaggle's settings"


def lines_of(check, *arguments, **inputs) -> Diagnosis:
    found = Diagnosis()
    check(found, *arguments, **inputs)
    every = [*found.errors, *found.warnings, *found.notes]
    assert all(line.startswith("machine: ") and "\n" not in line for line in every)
    return found


def disk(free: float):
    return lambda path: Usage(free * 2, free, free)


def test_this_machine_is_examined_within_seconds_and_can_train(tmp_path):
    started = time.perf_counter()
    found = examine(tmp_path, CHECKS)
    assert found.errors == []
    assert any("a convolution works in float32" in note for note in found.notes)
    assert time.perf_counter() - started < 60  # most of it imports torch
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_itself_is_a_warning_and_the_others_go_on(tmp_path):
    def odd(found, root):
        raise ZeroDivisionError("why\nnot")

    found = examine(tmp_path, {"the moon": odd, "free space": check_disk})
    assert found.warnings == ["machine: the moon cannot be told (ZeroDivisionError: why)"]
    assert len(found.notes) == 1


# Disk, memory, cores


@pytest.mark.parametrize(("free", "num_warnings"), [(50e9, 0), (2e9, 0), (1.99e9, 1), (0, 1)])
def test_little_free_space_is_a_warning(tmp_path, free, num_warnings):
    found = lines_of(check_disk, tmp_path, disk(free))
    assert len(found.warnings) == num_warnings
    assert all("free space, or delete runs" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("free", "num_workers", "fitting"), [(8e9, 2, None), (64e6, 2, 1), (10e6, 2, 0), (64e6, 0, None)]
)
def test_shared_memory_too_small_for_the_workers_is_a_warning_with_a_number_that_fits(
    tmp_path, free, num_workers, fitting
):
    found = lines_of(check_shared_memory, tmp_path, tmp_path, num_workers, disk(free))
    assert len(found.warnings) == (fitting is not None)
    assert all(
        f"set workers=threads, or workers={fitting}, or start the container with --shm-size" in line
        for line in found.warnings
    )


def test_a_system_without_shared_memory_has_nothing_to_warn_of(tmp_path):
    assert lines_of(check_shared_memory, tmp_path, tmp_path / "none") == Diagnosis()


def put(folder, **files) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, (float("inf"), float("inf"))),
        ({"cpu_dot_max": "150000 100000\n", "memory_dot_max": "3000000000\n"}, (1.5, 3e9)),
        ({"cpu_dot_max": "max 100000\n", "memory_dot_max": "max\n"}, (float("inf"), float("inf"))),
        ({"cpu__cpu_dot_cfs_quota_us": "50000", "cpu__cpu_dot_cfs_period_us": "100000"}, (0.5, float("inf"))),
        ({"cpu__cpu_dot_cfs_quota_us": "-1", "cpu__cpu_dot_cfs_period_us": "100000"}, (float("inf"), float("inf"))),
        ({"memory__memory_dot_limit_in_bytes": "2000000000"}, (float("inf"), 2e9)),
        ({"cpu_dot_max": "", "memory_dot_max": ""}, (float("inf"), float("inf"))),
    ],
)
def test_the_limits_of_a_container_are_read_in_both_versions(tmp_path, files, limits):
    put(tmp_path, **files)
    assert cgroup_limits(tmp_path) == limits


def test_a_containers_limits_count_and_little_memory_is_a_warning(tmp_path):
    put(tmp_path, cpu_dot_max="50000 100000", memory_dot_max="3000000000")
    found = lines_of(check_processors, tmp_path, tmp_path, memory=64 * 10**9)
    assert "machine: 0.5 cores, 3.0 GB of memory" in found.notes[0]
    assert "only 3.0 GB of memory" in found.warnings[0]
    found = lines_of(check_processors, tmp_path, tmp_path / "none", memory=64 * 10**9)
    assert found.warnings == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    def full(path):
        raise OSError(28, "No space left on device")

    (error,) = lines_of(check_writing, tmp_path, full).errors
    assert f"{tmp_path}: no file can be written and flushed there (No space left on device): mend its rights" in error
    assert list(tmp_path.iterdir()) == []
    (error,) = lines_of(check_writing, tmp_path / "none").errors
    assert "No such file or directory" in error


def test_a_clock_that_differs_from_the_disks_is_a_warning(tmp_path):
    def old(path):
        os.utime(path, (0, 0))

    assert lines_of(check_writing, tmp_path).warnings == []
    (warning,) = lines_of(check_writing, tmp_path, old).warnings
    assert "set the clock" in warning


# Packages


@pytest.mark.parametrize(
    ("there", "warnings"),
    [
        ({"torch": "2.10.0+cu128", "ttach": "0.0.3"}, []),
        ({"torch": "2.9.1", "ttach": "0.0.3"}, ["torch is 2.9.1: pip install 'torch>=2.10'"]),
        ({"torch": "2.12"}, ["ttach is not installed: pip install 'ttach>=0.0.3'"]),
        ({}, ["torch is not installed", "ttach is not installed"]),
    ],
)
def test_missing_and_old_packages_are_named_with_the_command_that_mends_them(tmp_path, there, warnings):
    def version_of(name):
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    (tmp_path / "requirements.txt").write_text("# what\ntorch>=2.10  # why\n\nttach>=0.0.3\n-r other.txt\n")
    found = lines_of(check_packages, tmp_path, version_of)
    assert len(found.warnings) == len(warnings)
    for line, part in zip(found.warnings, warnings, strict=True):
        assert part in line


def test_another_build_of_opencv_serves_as_well_and_an_old_python_is_an_error(tmp_path):
    def version_of(name):
        if name != "opencv-python":
            raise PackageNotFoundError(name)
        return "4.13.0.90"

    (tmp_path / "requirements.txt").write_text("opencv-python-headless>=4.13\n")
    assert lines_of(check_packages, tmp_path, version_of).warnings == []
    assert "3.11 or newer is needed" in lines_of(check_packages, tmp_path, version_of, python=(3, 10)).errors[0]


# Device


def child(code: str) -> list[str]:
    """A stand-in for the process that probes."""
    return [
        sys.executable,
        "-c",
        f"import os, sys, time, json\nsay = lambda **a: print(json.dumps(a), flush=True)\n{code}",
    ]


P100 = "say(device='cuda:0', name='Tesla P100', formats=['float32', 'float16'])\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (P100 + "os.kill(os.getpid(), 11)", "the process was killed by SIGSEGV"),
        (P100 + "time.sleep(60)", "no answer within 1 s"),
        (P100 + "sys.exit('CUDA error: broken')", "the process ended with 1: CUDA error: broken"),
        (P100 + "say(device='cuda:0', error='no kernel image is available')", "no kernel image is available"),
        (P100, "it said nothing"),
    ],
    ids=["crash", "hang", "exit", "error", "silence"],
)
def test_a_device_that_crashes_hangs_or_fails_is_named_with_the_remedy(tmp_path, code, error):
    started = time.perf_counter()
    found = lines_of(check_device, tmp_path, child(code), 1 if "sleep" in code else 30)
    assert time.perf_counter() - started < 30
    assert found.errors == [
        f"machine: the GPU is there (Tesla P100, cuda:0), but a convolution in float32 and float16 fails: {error}: "
        f"{T4_X2}, or a torch that was built for this GPU"
    ]


def test_a_torch_that_does_not_start_is_named(tmp_path):
    (error,) = lines_of(check_device, tmp_path, child("raise ImportError('no libcudart')")).errors
    assert error == (
        "machine: torch does not start (the process ended with 1: ImportError: no libcudart): install it anew"
    )  # fmt: skip


def test_each_gpu_is_told_apart():
    found = Diagnosis()
    answers = [
        {"device": "cuda:0", "name": "T4", "formats": ["float32", "float16"]},
        {"device": "cuda:0", "done": True},
        {"device": "cuda:1", "name": "T4", "formats": ["float32", "float16"]},
        {"device": "cuda:1", "error": "CUDA out of memory"},
    ]
    describe_device(found, answers, "", "")
    assert found.notes == ["machine: T4 (cuda:0): a convolution works in float32 and float16"]
    assert "cuda:1" in found.errors[0]
    assert found.errors[0].endswith("stop the other processes that use this GPU")


@pytest.mark.parametrize(("device", "remedy"), [("mps", "update macOS and torch"), ("cpu", "install torch anew")])
def test_other_devices_have_their_own_remedy(device, remedy):
    found = Diagnosis()
    describe_device(found, [{"device": device, "name": "M1", "formats": ["float32"]}], "it died", "")
    assert found.errors[0].endswith(f"fails: it died: {remedy}")


def test_a_driver_without_a_torch_for_it_is_a_warning():
    found = Diagnosis()
    describe_device(
        found,
        [{"device": "cpu", "name": "x", "formats": ["float32"], "has_driver": True}, {"device": "cpu", "done": 1}],
        "",
        "",
    )
    assert "install a torch that was built for CUDA" in found.warnings[0]


# make_folds.py --check


def test_the_check_tells_of_data_and_machine_and_freezing_folds_asks_none(repository, monkeypatch, capsys):  # noqa: F811
    def broken(found, root):
        found.errors.append("machine: broken")
        found.warnings.append("machine: slow")
        found.notes.append("machine: old")

    monkeypatch.setattr(make_folds, "CHECKS", {"all": broken})
    (repository / "data" / "train_images" / "a00.png").unlink()
    with pytest.raises(UserError) as refusal:
        make_folds.main(repository, check_only=True)
    assert [line.split(":")[0] for line in refusal.value.problems][-1] == "machine"
    assert any("a00.png" in line for line in refusal.value.problems)
    output = capsys.readouterr()
    assert "machine: old" in output.out
    assert "warning: machine: slow" in output.err
    with pytest.raises(UserError) as refusal:
        make_folds.main(repository)
    assert all("machine" not in line for line in refusal.value.problems)


def test_the_probe_says_what_it_is_about_to_do_before_it_does_it(capsys, monkeypatch):
    """Else a crash could not be told which device it was of."""
    from kfold import device_probe

    def crash(device, dtype):
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(device_probe, "train_step", crash)
    device_probe.probe()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "name" in said[0]
    assert said[-1]["error"] == "no kernel image"


def test_every_check_of_the_module_is_in_the_table():
    own = {value for name, value in vars(doctor).items() if name.startswith("check_")}
    assert own == set(CHECKS.values())

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def block_network() -> None:
    """See tests/offline/sitecustomize.py."""
    folder = Path(__file__).resolve().parent / "offline"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    specification = importlib.util.spec_from_file_location("offline", folder / "sitecustomize.py")
    specification.loader.exec_module(importlib.util.module_from_spec(specification))


block_network()

# A killed process loses nothing that the system holds, only a power cut would: waiting for the disk tests nothing here.
os.fsync = lambda handle: None

# A slow moment of the machine is no failure, and claims about time are in no test.
settings.register_profile("kfold", deadline=None, max_examples=50)
settings.register_profile("full", deadline=None, max_examples=500)
settings.load_profile("full" if os.environ.get("RELIABILITY") == "full" else "kfold")


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> dict[str, int]:
    """Intervals would take longer than the training of a tiny model; the numbers that were, for `all_resamples`."""
    from kfold import intervals  # not before the network is blocked

    usual = {name: value for name, value in vars(intervals).items() if name.startswith("NUM_RESAMPLES")}
    vars(intervals).update(dict.fromkeys(usual, 10))
    return usual


@pytest.fixture
def all_resamples(few_resamples, monkeypatch) -> None:
    """For claims about intervals: as many resamples as users get."""
    for name, value in few_resamples.items():
        monkeypatch.setattr(f"kfold.intervals.{name}", value)


@pytest.fixture
def figures(request) -> Callable[[str], None]:
    """figures("200 of 200 bad tables named") -> a line under "reliability" at the end of the run.

    The line travels with the test's report, so it also arrives from a worker of pytest-xdist.
    """
    return lambda line: request.node.user_properties.append(("figure", line))


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [
        f"{report.nodeid.partition('::')[0]}: {line}"
        for report in sorted(reports, key=lambda report: report.nodeid)
        if report.when == "call"
        for name, line in report.user_properties
        if name == "figure"
    ]
    if lines:
        terminalreporter.section("reliability")
        terminalreporter.write_line("\n".join(lines))

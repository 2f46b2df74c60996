"""Every benchmark beside its peers and limits: one table, and a file of all figures in benchmarks/results/.

Command  make bench                              or python benchmarks/run.py --quick, --full, --only 2 --only 6, --again
Writes   benchmarks/results/<machine>-<code>[-quick|-full].json

Each line of the plan is a process of its own, which measures all its sides in turns. What is measured is in the file
at once: started again after an interruption, or a failure, it goes on with what is missing. The file belongs to a
machine and to the code that is measured, its own included; --again measures anew. --quick takes minutes, on tiny sizes:
it shows that everything runs, and gives no figures to quote. --full adds 100,000 images to the last row.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from machine import describe_machine, versions
from peers_there import DEFAULT_PYTHON
from plan import SIZES, WITH_PEERS, make_plan
from project import BENCHMARKS, PACKAGE, TEMPLATE
from rows import table

RESULTS = BENCHMARKS / "results"
INTERRUPTED, FAILED = 75, 1  # exit codes

Plan = Mapping[str, Sequence[str]]  # name of a line -> script and its words


def main(size: str, only: Sequence[str], again: bool, python: Path, folder: Path = RESULTS) -> int:
    """Exit code: 0 when every line of the plan is measured, 1 when one failed."""
    machine, code = describe_machine(), code_stamp()
    path = folder / f"{file_name(machine, code, size)}.json"
    result = read_result(path) or {"machine": machine, "code": code, "commit": commit(), "versions": versions()}
    result["versions"]["peers"] = peer_versions(python)
    plan = {name: words for name, words in make_plan(size, bool(machine["gpu"])).items() if is_meant(name, only)}
    print(f"{path}\n{machine}\n{result['versions']}\n", flush=True)
    failed = run_plan(plan, result, path, again, python)
    print(f"\n{table(rows_of(result))}\n{path}")
    for name in failed:
        print(f"error: {name}: failed, see above: run the same command again to measure it", file=sys.stderr)
    return FAILED if failed else 0


def run_plan(plan: Plan, result: dict, path: Path, again: bool, python: Path) -> list[str]:
    """Measure the lines that `result` lacks, and keep each in the file; the names of those that failed."""
    done, failed = result.setdefault("done", {}), []
    for name, words in plan.items():
        if name in done and not again:
            print(f"{name}: measured before, {done[name]['date']} (--again measures it anew)")
            continue
        print(f"{name}: {' '.join(words)}", flush=True)
        started, load_before = time.perf_counter(), os.getloadavg()[0]
        rows = measure(words, python)
        if rows is None:
            failed.append(name)
            continue
        load = [round(load_before, 1), round(os.getloadavg()[0], 1)]
        done[name] = {
            "command": list(words),
            "date": datetime.now(UTC).isoformat(timespec="minutes"),
            "seconds": round(time.perf_counter() - started),
            "rows": [{**row, "load": load} for row in rows],
        }
        write_result(path, result)
    return failed


def measure(words: Sequence[str], python: Path) -> list[dict] | None:
    """The rows of a script, run in a process of its own; None where it fails."""
    script, *rest = words
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        rest += ["--peers", str(python)] if script in WITH_PEERS else []
        command = [sys.executable, str(BENCHMARKS / script), *rest, "--json", str(found)]
        process = subprocess.Popen(command, cwd=BENCHMARKS, start_new_session=True)
        try:
            code = process.wait()
        finally:  # whatever ends this process also ends the sides that the script has started
            end_group(process)
        return json.loads(found.read_text()) if code == 0 and found.exists() else None


def end_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


# The file


def file_name(machine: Mapping[str, object], code: str, size: str) -> str:
    """Of letters, digits and hyphens: the GPU or else the processor with its cores, the code, and the size."""
    device = machine["gpu"] or f"{machine['cores']} cores {machine['processor']}"
    words = f"{device} {code} {'' if size == 'normal' else size}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def code_stamp() -> str:
    """8 hex digits that change with the code that is measured, and with that which measures."""
    digest = hashlib.sha256()
    found = [*BENCHMARKS.rglob("*.py"), *PACKAGE.glob("*.py"), *(PACKAGE / "kfold").rglob("*.py")]
    found += [*PACKAGE.glob("configs/*.yaml"), *BENCHMARKS.rglob("requirements*.txt")]
    for path in sorted(found):
        digest.update(f"{path.relative_to(TEMPLATE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def read_result(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_result(path: Path, result: Mapping) -> None:
    """All or nothing, so that an interruption leaves what was measured before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def rows_of(result: Mapping) -> list[dict]:
    return [row for name in sorted(result.get("done", {})) for row in result["done"][name]["rows"]]


def commit() -> str:
    """For people; empty outside a git repository."""
    try:
        ended = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=TEMPLATE, capture_output=True, text=True)
    except OSError:
        return ""
    return ended.stdout.strip()


def peer_versions(python: Path) -> dict[str, str]:
    """Of the peers' environment; empty where there is none."""
    code = "import json, machine\nprint(json.dumps(machine.versions()))"
    try:
        ended = subprocess.run([str(python), "-c", code], cwd=BENCHMARKS, capture_output=True, text=True)
    except OSError:
        return {}
    return json.loads(ended.stdout) if ended.returncode == 0 else {}


def is_meant(name: str, only: Sequence[str]) -> bool:
    return not only or any(name.startswith(start) for start in only)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for size in SIZES[1:]:
        parser.add_argument(f"--{size}", dest="size", action="store_const", const=size, default=SIZES[0])
    parser.add_argument("--only", action="append", default=[], help="lines whose names start so, such as 2; repeatable")
    parser.add_argument("--again", action="store_true", help="measure what is in the file already, too")
    parser.add_argument("--peers", type=Path, default=DEFAULT_PYTHON, help="a Python that has them")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: measure() ends its processes on the way out
    try:
        sys.exit(main(given.size, given.only, given.again, given.peers))
    except KeyboardInterrupt:
        print("interrupted: run the same command again, it goes on with the next line", file=sys.stderr)
        sys.exit(INTERRUPTED)

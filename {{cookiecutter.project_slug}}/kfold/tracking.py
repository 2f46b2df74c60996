"""What log.csv has, told to TensorBoard, Weights & Biases or MLflow as well: the key `tracker`.

Everything they keep here lies in tracking/; runs/ is the same to the byte with and without. What is told again, of a
fold that goes on or is trained again, stands there once. A tracker that fails is warned of, and training goes on.
"""

import hashlib
import netrc
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from kfold.errors import UserError
from kfold.training.state import EpochResult

Values = Mapping[str, float]
WAIT = 3  # seconds, for a server that may not be there
PARAMETERS_AT_ONCE, LONGEST_PARAMETER = 100, 500  # what MLflow takes
MLFLOW_SETTINGS = {  # where the user has set none: no long wait for a server, nothing told to its makers
    "HTTP_REQUEST_MAX_RETRIES": "1",
    "HTTP_REQUEST_TIMEOUT": "10",
    "ALLOW_FILE_STORE": "true",
    "DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Subject:
    """What is told of: a part (fold0, all-data, summary) of a run of a project, with its settings.

    stamp: what the results follow from, such as hashes of settings and folds; with the names, it is the identity.
    """

    folder: Path  # tracking/
    project: str
    run: str
    part: str
    settings: Mapping[str, object]
    stamp: str

    @property
    def identity(self) -> str:
        return hashlib.sha256("\n".join([self.project, self.run, self.part, self.stamp]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Tracker:
    """log: takes finite numbers by name, and the epoch (from 1); twice the same epoch leaves one point."""

    log: Callable[[Values, int], object]
    close: Callable[[], object]


def emptied(folder: Path) -> Path:
    """A place of a part's own: its points are told anew from the first epoch."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def open_tensorboard(subject: Subject) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(emptied(subject.folder / "tensorboard" / subject.run / subject.part)))
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in subject.settings.items()))

    def log(values: Values, epoch: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return Tracker(log, writer.close)


def open_wandb(subject: Subject) -> Tracker:
    """Offline unless the user is logged in and the server answers, or WANDB_MODE says otherwise."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if is_wandb_ready() else "offline")
    run = wandb.init(
        project=re.sub(r"[^\w.-]+", "-", subject.project)[:100],
        group=subject.run,
        name=f"{subject.run} {subject.part}",
        id=subject.identity,
        resume="allow" if mode == "online" else None,  # the server leaves out epochs that it has
        mode=mode,
        dir=str(emptied(subject.folder / "wandb" / f"{subject.run}-{subject.part}")),
        config=dict(subject.settings),
        reinit="create_new",
        settings=wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, init_timeout=30
        ),
    )
    return Tracker(lambda values, epoch: run.log(dict(values), step=epoch), run.finish)


def is_wandb_ready() -> bool:
    """Whether a key is kept for the server, and the server can be reached."""
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        has_key = "WANDB_API_KEY" in os.environ or netrc.netrc().authenticators(address.hostname) is not None
        if has_key:
            socket.create_connection((address.hostname, address.port or 443), timeout=WAIT).close()
        return has_key
    except (OSError, netrc.NetrcParseError):
        return False


def open_mlflow(subject: Subject) -> Tracker:
    """In MLFLOW_TRACKING_URI, where the user sets one, else in tracking/mlflow."""
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local_store(subject.folder / "mlflow"))
    experiment = client.get_experiment_by_name(subject.project)
    number = experiment.experiment_id if experiment else client.create_experiment(subject.project)
    found = client.search_runs([number], f"tags.kfold_identity = '{subject.identity}'")
    if found:
        run = found[0].info.run_id
        client.update_run(run, "RUNNING")
    else:
        tags = {"kfold_identity": subject.identity, "kfold_run": subject.run}
        run = client.create_run(number, tags=tags, run_name=f"{subject.run} {subject.part}").info.run_id
        params = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in subject.settings.items()]
        for start in range(0, len(params), PARAMETERS_AT_ONCE):
            client.log_batch(run, params=params[start : start + PARAMETERS_AT_ONCE])

    def log(values: Values, epoch: int) -> None:
        there = {name for name in values for point in client.get_metric_history(run, name) if point.step == epoch}
        lacking = [Metric(name, value, now(), epoch) for name, value in values.items() if name not in there]
        client.log_batch(run, metrics=lacking)

    return Tracker(log, lambda: client.set_terminated(run))


def local_store(folder: Path) -> str:
    """A database where mlflow can keep one, which its own pages read best; mlflow-skinny has files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute()}/mlflow.db" if find_spec("sqlalchemy") else folder.absolute().as_uri()


def now() -> int:
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Choice:
    """A line of TRACKERS."""

    open: Callable[[Subject], Tracker]
    package: str  # that it imports, and that pip installs


TRACKERS: dict[str, Choice] = {
    "tensorboard": Choice(open_tensorboard, "tensorboard"),
    "wandb": Choice(open_wandb, "wandb"),
    "mlflow": Choice(open_mlflow, "mlflow"),
}


def refuse_absent_tracker(kind: str) -> None:
    """Raise UserError where the tracker is not installed."""
    if kind in TRACKERS and find_spec(TRACKERS[kind].package) is None:
        package = TRACKERS[kind].package
        raise UserError(f"tracker={kind}: it is not installed: pip install {package}, or leave it out (tracker=none)")


@contextmanager
def telling(kind: str, subject: Subject) -> Iterator[Callable[[Values, int], None]]:
    """Gives a function that takes numbers by name, and the epoch (from 1); kind: of TRACKERS, or none."""
    trackers: list[Tracker] = []  # one; none once it failed

    def attempt(action: Callable[..., object], *given: object) -> object:
        try:
            return action(*given)
        except Exception as error:  # of any kind: a training of hours must not end by it
            trackers.clear()
            reason = (str(error).splitlines() or [""])[0][:300]
            print(f"warning: tracker={kind} failed ({type(error).__name__}: {reason}): training goes on without it",
                  file=sys.stderr)  # fmt: skip
            return None

    def tell(values: Values, epoch: int) -> None:
        finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        for tracker in list(trackers):
            attempt(tracker.log, finite, epoch)

    if kind != "none" and (opened := attempt(TRACKERS[kind].open, subject)) is not None:
        trackers.append(opened)
    try:
        yield tell
    finally:
        for tracker in list(trackers):
            attempt(tracker.close)


def told(
    results: Iterator[EpochResult], kind: str, subject: Subject, metric: str, earlier: Sequence[EpochResult]
) -> Generator[EpochResult, None, None]:
    """The results, each told after what the caller does with it; those of before an interruption come first."""
    with telling(kind, subject) as tell:
        for result in list(earlier):
            tell(values_of(result, metric), result.epoch)
        for result in results:
            yield result
            tell(values_of(result, metric), result.epoch)


def values_of(result: EpochResult, metric: str) -> dict[str, float]:
    """The row of log.csv, but for the number of the epoch; the score under the metric's name."""
    return {metric if name == "score" else name: value for name, value in asdict(result).items() if name != "epoch"}

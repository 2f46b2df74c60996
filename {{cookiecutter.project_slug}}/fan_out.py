"""Train many folds of many runs on a Ray cluster, or print the same list as plain commands.

Command  python fan_out.py --configs baseline efficientnet_b0 --folds all --seeds 3
         on this machine; --address 10.0.0.5:6379: on a cluster; --print: only the commands, for SLURM arrays and, with
         --sessions 5, for five Kaggle sessions; any setting as key=value
         python fan_out.py --predict baseline --shards 16: its test rows, in parts
Reads    as train.py
Writes   as train.py, one process of it a fold: runs/<name>/fold<k>/ of <name> = config[-seed<s>]; runs/ledger.csv

Needs Ray (pip install ray). Each task is the command that --print shows. Ray chooses its node and tries again, up to
--retries times, what was killed or lost with its node; it goes on from its last saved state, with the same bytes. A
fold that fails is named with its output.log, the others go on. After any interruption, run the same command again.
The nodes see this folder at the same path, or --storage s3://bucket/prefix (any fsspec address) takes its place.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import competition
import predict
import train
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, Config, load_competition, load_config
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.errors import Interrupted, UserError, run_stage
from kfold.fan_out.cluster import Outcome, choose_share, connected, has_ray, nodes_of, train_all
from kfold.fan_out.plan import Run, Task, commands_text, make_tasks, plan_runs
from kfold.fan_out.shards import run_stages, stages_text
from kfold.fan_out.storage import run_url
from kfold.fan_out.table import Screen
from kfold.fan_out.transfer import collect, identity, refuse_unreachable, refuse_unsendable, send_inputs
from kfold.forecast import PREPARED
from kfold.numbers import decimal, whole
from kfold.run_summary import summarize_run
from kfold.shards import shard_commands
from kfold.stopping import Stop, parse_seconds

ROOT = Path(__file__).resolve().parent
NODE_DIR = "~/.cache/kfold-fan-out"


def main(
    configs: Sequence[str] = ("baseline",),
    folds: str = "all",
    seeds: str = "",
    words: Sequence[str] = (),
    address: str = "",
    cores: int | None = None,
    gpus: float | None = None,
    retries: int = 3,
    storage: str = "",
    node_dir: str = NODE_DIR,
    prints: bool = False,
    sessions: int = 0,
    root: Path = ROOT,
    stop: Stop | None = None,
) -> None:
    """Train what is not done of every fold of every run, then sum up the runs that are whole.

    Raises UserError that names each fold that failed, or Interrupted, with the states saved, when `stop` says so.
    """
    stop, workspace = stop or Stop(), Workspace(root)
    refuse_odd_numbers(cores, gpus, retries, sessions)
    facts = load_competition(workspace.competition_path)
    all_folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    runs = plan_runs(root, configs, seeds, words)
    settings = {run: load_config(root / run.config_path, run.words) for run in runs}
    numbers = choose_folds(folds, all_folds, settings)
    refuse_wrong_choices(workspace, facts, all_folds, settings, storage)
    tasks = make_tasks(runs, numbers)
    if prints or sessions:
        print(commands_text(tasks, all_folds.num_folds, sessions))
        return
    if not has_ray():
        print(commands_text(tasks, all_folds.num_folds))
        raise UserError("Ray is not installed (pip install ray): nothing was trained; the commands above do the same")
    if storage:
        refuse_unreachable(storage)

    for run, config in settings.items():
        artifacts.register_run(workspace, run.name, facts, config, numbers, overwrite=False)
    urls = {run: run_url(storage, run.name, identity(config, all_folds.stamp)) for run, config in settings.items()}
    if storage and (problems := collect(workspace, urls, settings, numbers, all_folds.stamp)):
        raise UserError(problems)
    undone = [task for task in tasks if not artifacts.is_done(workspace, task.run.name, task.number, all_folds.stamp)]
    print(f"{len(tasks)} trainings, of which {len(tasks) - len(undone)} were done before")

    def log_of(task: Task) -> str:
        path = workspace.output_path(task.run.name, task.number)
        return f"{urls[task.run]}/{path.parent.name}/{path.name}" if storage else str(path)

    outcomes: Mapping[Task, Outcome] = {}
    if undone:
        inputs = send_inputs(workspace, facts, settings, urls, storage) if storage else ""
        outcomes = fan_out(workspace, undone, settings, urls, inputs, address, cores, gpus, retries, node_dir, stop)
    problems = collect(workspace, urls, settings, numbers, all_folds.stamp) if storage and undone else []
    sum_up(workspace, facts, all_folds, settings, {task.run for task in undone})
    judge(outcomes, log_of, stop, problems)
    print(f"next: python predict.py --run {' '.join(run.name for run in runs)}, then python stack.py")


def predict_in_shards(
    runs: Sequence[str],
    count: int,
    address: str = "",
    cores: int | None = None,
    gpus: float | None = None,
    retries: int = 3,
    prints: bool = False,
    root: Path = ROOT,
    stop: Stop | None = None,
) -> None:
    """Predict the test rows of runs in `count` shards, each a task; the nodes share this folder.

    Raises UserError that names each command that failed.
    """
    refuse_odd_numbers(cores, gpus, retries, shards=count)
    workspace, stages = Workspace(root), shard_commands(runs, count)
    if prints:
        print(stages_text(stages))
        return
    if not has_ray():
        print(stages_text(stages))
        raise UserError("Ray is not installed (pip install ray): nothing was predicted; the commands above do the same")
    predict.refuse_untrained(workspace, runs)
    commands = [words for stage in stages for words in stage]
    logs = {words: workspace.shard_log_path(runs[0], number) for number, words in enumerate(commands)}
    with connected(address) as ray:
        share = choose_share(nodes_of(ray), cores, gpus)
        run_stages(ray, stages, logs, root, share, retries, stop or Stop())
    print(f"next: python submit.py --run {runs[0]}")


def refuse_odd_numbers(cores: int | None, gpus: float | None, retries: int, sessions: int = 0, shards: int = 1) -> None:
    """Raise UserError for numbers that Ray would take amiss, or that ask for nothing."""
    problems = []
    if cores is not None and cores < 1:
        problems.append(f"--cpus-per-fold {cores}: write 1 or more")
    if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):
        problems.append(f"--gpus-per-fold {gpus:g}: write a part of one, such as 0.5, or a whole number")
    for flag, number, least in (("retries", retries, 0), ("sessions", sessions, 0), ("shards", shards, 1)):
        if number < least:
            problems.append(f"--{flag} {number}: write {least} or more")
    if problems:
        raise UserError(problems)


def choose_folds(wish: str, folds: Folds, settings: Mapping[Run, Config]) -> list[int]:
    """`0`, `0,1` or `all` -> fold numbers in order."""
    numbers = {
        number
        for config in settings.values()
        for part in wish.split(",")
        for number in train.choose_folds(part, folds, config)
    }
    if ALL_DATA in numbers:
        raise UserError("--folds all-data: is one training a run: train.py --fold all-data")
    return sorted(numbers)


def refuse_wrong_choices(
    workspace: Workspace, facts: Competition, folds: Folds, settings: Mapping[Run, Config], storage: str
) -> None:
    """What would stop a training should stop it here, before any begins. Raises UserError."""
    num_outputs = len(competition.decode_targets(folds.table, facts).names)
    for run, config in settings.items():
        artifacts.refuse_odd_name(run.name)
        train.refuse_odd_request(run.name)
        artifacts.refuse_stack(workspace, run.name)
        train.refuse_wrong_choices(config, facts, num_outputs)
    if storage:
        refuse_unsendable(workspace, facts, settings)


def fan_out(
    workspace: Workspace,
    tasks: Sequence[Task],
    settings: Mapping[Run, Config],
    urls: Mapping[Run, str],
    inputs: str,
    address: str,
    cores: int | None,
    gpus: float | None,
    retries: int,
    node_dir: str,
    stop: Stop,
) -> Mapping[Task, Outcome]:
    """inputs: digest of what was sent to the storage; "": the nodes share this folder."""

    def errand_of(task: Task) -> dict[str, object]:
        run_dir = workspace.run_dir(task.run.name)
        return {
            "words": [*task.command, "--part"],  # this process sums up
            "root": str(workspace.root),
            "run": run_dir.relative_to(workspace.root).as_posix(),
            "fold": workspace.fold_dir(task.run.name, task.number).name,
            "cores": share.cores,
            "prepared": PREPARED,
            **({"storage": urls[task.run], "inputs": inputs, "node_dir": node_dir} if inputs else {}),
        }

    def is_prepared(run: str) -> bool:
        """Whether a fold made the run's pixels.json before, and speed.json a moment later."""
        return bool(workspace.trained_folds(run) or workspace.begun_folds(run))

    screen = Screen(tasks, {run.name: config.epochs for run, config in settings.items()})
    with connected(address) as ray:
        nodes = nodes_of(ray)
        share = choose_share(nodes, cores, gpus)
        print(f"{len(nodes)} node{'s' * (len(nodes) > 1)}; each fold gets {share.cores} cores, {share.gpus:g} GPUs")
        return train_all(ray, tasks, errand_of, is_prepared, share, retries, screen.show, stop)


def sum_up(
    workspace: Workspace, facts: Competition, folds: Folds, settings: Mapping[Run, Config], trained: set[Run]
) -> None:
    """As train.py does after its last fold: scores, and a row of the ledger."""
    metric = competition.metric(facts)
    for run, config in settings.items():
        if workspace.trained_folds(run.name) == list(range(folds.num_folds)):
            rows = take_rows(folds, config.limit)
            targets = competition.decode_targets(rows.table, facts)
            summarize_run(workspace, run.name, facts, config, rows, targets, metric, run in trained)


def judge(
    outcomes: Mapping[Task, Outcome], log_of: Callable[[Task], str], stop: Stop, problems: Sequence[str] = ()
) -> None:
    """Raise UserError that names the folds which failed, else Interrupted where some were stopped.

    problems: of folds that are done, and could not be brought here.
    """
    failed = {task: outcome.problem for task, outcome in outcomes.items() if outcome.state == "failed"}
    if failed or problems:
        raise UserError(
            [*problems, *(f"{task.name} failed, see {log_of(task)}: {problem}" for task, problem in failed.items())]
        )
    stop.check()
    if stopped := [task.name for task, outcome in outcomes.items() if outcome.state == "stopped"]:
        raise Interrupted(f"{'; '.join(stopped)} was stopped")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["baseline"], help="of configs/ (default: baseline)")
    parser.add_argument("--folds", default="all", help="all (default), one, or several such as 0,1")
    parser.add_argument("--seeds", default="", help="how many, from seed 1 on, or a range such as 4..6")
    parser.add_argument("--address", default="", help="of a Ray cluster, or auto (default: this machine)")
    parser.add_argument("--cpus-per-fold", type=whole, help="cores of a fold (default: as many as all at once leave)")
    parser.add_argument("--gpus-per-fold", type=decimal, help="such as 0.5: two folds share one (default: 1, if any)")
    parser.add_argument("--retries", type=whole, default=3, help="of a fold that was killed (default: 3)")
    parser.add_argument("--storage", default="", help="s3://bucket/prefix or such, where nodes share no folder")
    parser.add_argument("--node-dir", default=NODE_DIR, help=f"with --storage: a node's own folder ({NODE_DIR})")
    parser.add_argument("--time-limit", help="save and stop with exit code 75 after this time, e.g. 8h30m")
    parser.add_argument("--print", action="store_true", dest="prints", help="the commands alone; trains nothing")
    parser.add_argument(
        "--predict", nargs="+", default=[], metavar="RUN", help="predict test rows in place of training"
    )
    parser.add_argument("--shards", type=whole, default=16, help="with --predict: how many parts (default: 16)")
    parser.add_argument("--sessions", type=whole, default=0, help="print them in as many blocks, for Kaggle sessions")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of kfold/config.py, e.g. lr=1e-3")
    arguments = parser.parse_intermixed_args()
    words = arguments.configs  # it takes what follows, too
    arguments.configs = [word for word in words if "=" not in word]
    arguments.overrides += [word for word in words if "=" in word]
    return arguments


def refuse_words_of_training(arguments: argparse.Namespace) -> None:
    """Raise UserError for what --predict would leave aside."""
    given = [f"--{name}" for name in ("seeds", "storage", "sessions") if getattr(arguments, name)]
    given += [word for word in [*arguments.predict, *arguments.overrides] if "=" in word]
    if given:
        raise UserError(f"--predict with {', '.join(given)}: is of training: leave it out")


if __name__ == "__main__":
    arguments = parse_arguments()

    def main_of_all() -> None:
        stop = Stop(None if arguments.time_limit is None else parse_seconds(arguments.time_limit))
        if arguments.predict:
            refuse_words_of_training(arguments)
            predict_in_shards(
                arguments.predict,
                arguments.shards,
                arguments.address,
                arguments.cpus_per_fold,
                arguments.gpus_per_fold,
                arguments.retries,
                arguments.prints,
                stop=stop,
            )
            return
        main(
            arguments.configs,
            arguments.folds,
            arguments.seeds,
            arguments.overrides,
            arguments.address,
            arguments.cpus_per_fold,
            arguments.gpus_per_fold,
            arguments.retries,
            arguments.storage,
            arguments.node_dir,
            arguments.prints,
            arguments.sessions,
            stop=stop,
        )

    run_stage(main_of_all)

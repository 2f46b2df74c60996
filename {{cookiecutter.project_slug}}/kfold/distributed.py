"""The processes that train one fold together, as torchrun starts them; alone, every function here changes nothing.

Collective calls are made by all of them, in the same order: what one would raise in between, `agreed` and `by_first`
make all of them raise. Files are written by the first process, and it alone speaks; an error is told once. Source:
Li and others, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, arxiv.org/abs/2006.15704
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from kfold.data.loader import rows_of_share
from kfold.data.scan import num_cores
from kfold.errors import Interrupted, UserError
from kfold.stopping import Stop

LONGEST_WAIT = timedelta(hours=12)  # of the others, while the first makes a cache or times steps
LOST = "[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|remote process exited|Socket|[Tt]imed out|NCCL"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """rank: of this process, from 0; objects: the group that hands over Python objects, on the CPU."""

    rank: int = 0
    size: int = 1
    objects: dist.ProcessGroup | None = None
    store: dist.Store | None = None  # of all starts of one torchrun
    cores: str = ""  # KFOLD_CORES as it was


ALONE = Group()
group = ALONE
told_in: dist.Store | None = None  # where it is noted what was told; errors are told after the group has parted


def rank() -> int:
    return group.rank


def num_processes() -> int:
    return group.size


def is_first() -> bool:
    return group.rank == 0


def share() -> tuple[int, int]:
    """(This process, of how many), for what each does a part of."""
    return group.rank, group.size


# Beginning and end


def is_one_of_several() -> bool:
    """Whether torchrun, or what sets the same variables, started this process beside others."""
    return {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def together() -> Iterator[None]:
    """Meet the other processes, if there are any, and part from them at the end.

    Raises UserError where this process has no device of its own, or another one is lost, and Interrupted where a time
    limit ended the work before torchrun restarted it (--max-restarts): it would only end again.
    """
    global group, told_in
    if not is_one_of_several():
        yield
        return
    store = told_in = join_store()
    device_type = claim_device()
    group = meet(device_type, store)
    try:
        with ExitStack() as stack:
            if not is_first():
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            if by_first(store.check, [interrupted_key()]):
                raise Interrupted("a time limit, or a signal, ended this training: a restart is not to go on with it")
            yield
        by_first(lambda: None)  # nobody leaves while another still listens
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search(LOST, str(error))):
            raise
        first_line = str(error).partition("\n")[0]
        reason = first_line.partition("] ")[2].partition(". ")[0] or first_line or type(error).__name__
        raise UserError(
            f"another process of this training ended ({reason[:200]}): see what it said, or "
            f"torchrun's summary; the same command goes on from the last saved state"
        ) from None
    finally:
        os.environ["KFOLD_CORES"], group = group.cores, ALONE
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, which ends all once one has ended


def claim_device() -> str:
    """cuda or cpu. Raises UserError where several processes would have to share a GPU."""
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            raise UserError("several processes cannot share an Apple GPU: start train.py with python, not torchrun")
        return "cpu"
    place, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if place >= count:
        raise UserError(f"more processes than GPUs on a machine: say torchrun --nproc-per-node {count}")
    torch.cuda.set_device(place)
    return "cuda"


def join_store() -> dist.Store:
    """What processes find each other by; torchrun keeps it, else the first process does."""
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_keeper = not is_kept and os.environ["RANK"] == "0"
    size = int(os.environ["WORLD_SIZE"])
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, is_keeper)


def meet(device_type: str, store: dist.Store) -> Group:
    """The group of all; each process has its share of this machine's cores from here on."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = dist.PrefixStore(f"start {start_number()}", store)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", store=own, rank=rank, world_size=size)
    objects, cores = dist.new_group(backend="gloo", timeout=LONGEST_WAIT), os.environ.get("KFOLD_CORES", "")
    os.environ["KFOLD_CORES"] = str(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", size))))
    return Group(rank, size, objects, store, cores)


def start_number() -> int:
    """From 0; torchrun starts anew after a failure as often as --max-restarts says."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def interrupted_key() -> str:
    """Kept for all restarts of one torchrun."""
    return f"interrupted {os.environ.get('TORCHELASTIC_RUN_ID', '')}"


def is_news(text: str) -> bool:
    """Whether no other process has said this yet, of what several may have to say."""
    try:
        return told_in is None or told_in.add(f"told {start_number()} {text}", 1) == 1
    except RuntimeError:  # torchrun, which keeps the store, is gone
        return True


# What all know


def gather_objects(value: Result) -> list[Result]:
    """The value of each process, in the order of ranks."""
    if group.size == 1:
        return [value]
    found: list[Result] = [None] * group.size
    dist.all_gather_object(found, value, group=group.objects)
    return found


def of_first(value: Result) -> Result:
    """The first process's value, for all."""
    if group.size == 1:
        return value
    values = [value if is_first() else None]
    dist.broadcast_object_list(values, src=0, group=group.objects)
    return values[0]


def by_first(function: Callable[..., Result], *arguments) -> Result:
    """What the first process's call comes to, for all; a UserError or Interrupted, too. The others wait.

    Meanwhile it is alone, with all cores of the machine.
    """
    global group
    if group.size == 1:
        return function(*arguments)
    result, problem = None, None
    if is_first():
        everyone, share = group, os.environ["KFOLD_CORES"]
        group, os.environ["KFOLD_CORES"] = ALONE, everyone.cores
        try:
            result = function(*arguments)
        except (UserError, Interrupted) as error:
            problem = error
        finally:
            group, os.environ["KFOLD_CORES"] = everyone, share
    result, problem = of_first((result, problem))
    if problem is not None:
        raise_together(problem)
    return result


@contextmanager
def agreed() -> Iterator[None]:
    """A UserError or Interrupted of one process inside is raised by all at the end. Nothing collective inside."""
    if group.size == 1:
        yield
        return
    problem = None
    try:
        yield
    except (UserError, Interrupted) as error:
        problem = error
    if any_of(problem is not None):
        raise_together(next(found for found in gather_objects(problem) if found is not None))


def raise_together(problem: UserError | Interrupted) -> NoReturn:
    """Raise what all processes raise; of an interruption torchrun's restarts learn that it was meant."""
    if isinstance(problem, Interrupted) and group.store is not None:
        group.store.set(interrupted_key(), "1")
    raise problem


def any_of(is_so: bool) -> bool:
    """Whether it is so for any of the processes."""
    if group.size == 1:
        return is_so
    flag = torch.tensor([int(is_so)])
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=group.objects)
    return bool(flag)


def check_together(stop: Stop) -> None:
    """Raise Interrupted in all processes when it is time for one of them to stop."""
    if group.size == 1:
        stop.check()
    elif any_of(stop.is_due):
        raise_together(Interrupted(reason_of(stop)))


def reason_of(stop: Stop) -> str:
    """The first reason that one of the processes has, once they agree to stop."""
    return next(filter(None, gather_objects(stop.reason)), "")


@contextmanager
def held_by_first(resource: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """The context manager that `resource` makes, entered by the first process alone."""
    with ExitStack() as stack:
        by_first(lambda: stack.enter_context(resource()) and None)
        yield


# Tensors, on the device that the group works on


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum over processes."""
    if group.size > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather_rows(own: torch.Tensor, num_rows: int) -> torch.Tensor:
    """All rows (num_rows, ...) of a batch, of each process's share (its rows, ...)."""
    if group.size == 1:
        return own
    padded = own.new_zeros((-(-num_rows // group.size), *own.shape[1:]))
    padded[: len(own)] = own
    shares = [torch.empty_like(padded) for _ in range(group.size)]
    dist.all_gather(shares, padded)
    slices = [rows_of_share(num_rows, place, group.size) for place in range(group.size)]
    return torch.cat([share[: rows.stop - rows.start] for share, rows in zip(shares, slices, strict=True)])


def gather_by_index(own: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(N, C), on the CPU, of each process's rows (n,) of 0 to N - 1, with `own` (n, C) for them.

    Raises ValueError unless each row is one process's, once.
    """
    if group.size == 1:
        return own
    found = gather_objects((rows.cpu(), own.cpu()))
    order, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        raise ValueError("the processes' rows do not make a whole")
    return values[order.argsort()]

"""Which way to compute a step is fastest, found without timing every combination.

1. Number format, memory layout and depthwise format are timed in every combination, since they depend on one another:
   in rounds, one turn each, and whoever falls far behind the leader is not timed any more. Freed memory is kept here,
   where it can be: fresh pages are the greater part of a CPU's noise.
2. torch.compile is tried on the fastest of each number format, where the steps to come can repay it.
3. The optimizer's one kernel, then memory that is not kept: each is tried on the fastest so far, because the share that
   they save does not depend on the rest; with and without torch.compile, whose cost they do not reduce. If the share
   differs by no more than 0.5% either way, the choice is within 5% of the best combination.

What counts is the fastest turn: whatever else a machine does makes a turn longer, never shorter. On two shared cores
(16 to 20 rounds of 6 to 12 ways) the choice of five rounds took 0.7 to 3.9% longer than the best in the other rounds by
fastest turns, 1.7 to 6.3% by medians.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from kfold.training.speed import Speed

MIN_ROUNDS, MAX_ROUNDS = 3, 9
FAR_BEHIND, HOPELESS = 1.3, 2.0  # times the leader; the second before MIN_ROUNDS, where chance counts for more
WORTH_A_SWITCH = 0.01  # within this share of the fastest, the one with fewer switches is taken
SHARE_OF_SWITCHES = 0.4  # of the time; Adam in one kernel may save as much as a number format
NO_TIME = "no time left to try it"
LARGEST_GAIN = 3.0  # by compiling; 2 was measured on a CPU, more where a GPU waits for Python


@dataclass(frozen=True)
class Trial:
    """What was found of one way to compute."""

    speed: Speed
    seconds: float | None = None  # a step, in the fastest turn; None: left out
    note: str = ""  # why it was left out
    compile_seconds: float = 0.0

    def cost(self, num_steps: int) -> float:
        """Seconds a step, with its share of compiling; infinite where it was left out."""
        return float("inf") if self.seconds is None else self.seconds + self.compile_seconds / num_steps


class Unfit(Exception):
    """This way to compute does not work here, or not well; its text says why."""


@dataclass(frozen=True)
class Timer:
    """What the search asks of the machine.

    prepare: makes a way to compute ready and checks it; how many seconds that took to compile. Raises Unfit. turn:
    seconds of a step. time_left: seconds until the search has to end.
    """

    prepare: Callable[[Speed], float]
    turn: Callable[[Speed], float]
    time_left: Callable[[], float]


def combinations(
    dtypes: Sequence[str], has_depthwise: bool, has_convolutions: bool, keep_memory: bool = False
) -> list[Speed]:
    """Those of the first stage; the plain one, of dtypes[0], comes first, but for kept memory."""
    layouts = (False, True) if has_convolutions else (False,)
    found = [Speed(dtype, layout, keep_memory=keep_memory) for dtype, layout in product(dtypes, layouts)]
    if not has_depthwise:
        return found
    # On a CPU these are slow in fewer bits, so that a short search should come to their float32 first.
    full = [speed for speed in found if speed.dtype == "float32" or speed == found[0]]
    less = [speed for speed in found if speed not in full]
    return full + [replace(speed, depthwise_float32=True) for speed in found if speed.dtype != "float32"] + less


def search(
    first: Sequence[Speed], switches: Sequence[str], compile_estimate: float, num_steps: int, timer: Timer
) -> tuple[list[Trial], bool]:
    """Trials of all that was timed or left out, the plain way first, and whether there was time for all.

    first: what `combinations` gives. switches: to be turned over in the last stage. compile_estimate: seconds;
    infinite: never compile.
    """
    reserve = SHARE_OF_SWITCHES * timer.time_left() if switches else 0.0
    trials = race(first, replace(timer, time_left=lambda: timer.time_left() - reserve))
    is_complete = all(trial.note != NO_TIME for trial in trials)
    for dtype in dict.fromkeys(speed.dtype for speed in first):
        of_dtype = [trial for trial in trials if trial.speed.dtype == dtype and trial.seconds is not None]
        fastest = min(of_dtype, key=lambda trial: trial.seconds, default=None)
        if fastest is None or compile_estimate >= timer.time_left():
            continue
        if fastest.seconds / LARGEST_GAIN + compile_estimate / num_steps < least_cost(trials, num_steps):
            trials.append(compare(fastest, replace(fastest.speed, compiled=True), timer))
    for switch, is_compiled in product(switches, (False, True)):
        chosen = pick([trial for trial in trials if trial.speed.compiled == is_compiled], num_steps)
        if chosen is None or chosen.compile_seconds / num_steps > least_cost(trials, num_steps):
            continue  # compiling takes longer than all steps without it
        if timer.time_left() <= 0:
            is_complete = False
        else:
            trials.append(compare(chosen, replace(chosen.speed, **{switch: not getattr(chosen.speed, switch)}), timer))
    return plain_first(trials, timer), is_complete


def plain_first(trials: list[Trial], timer: Timer) -> list[Trial]:
    """With the plain way in front, that keeps no memory: what all others are compared with."""
    known = trials[0]
    plain = replace(known.speed, keep_memory=False)
    if plain == known.speed:
        return trials
    found = next((trial for trial in trials if trial.speed == plain), None)
    if found is None:
        found = Trial(plain, note=known.note) if known.seconds is None else compare(known, plain, timer)
    return [found, *(trial for trial in trials if trial is not found)]


def pick(trials: Sequence[Trial], num_steps: int) -> Trial | None:
    """The cheapest for so many steps, or one that costs hardly more with fewer switches; None where all were left out.

    So the trials of a short run serve a long one, too.
    """
    least = least_cost(trials, num_steps)
    near = [trial for trial in trials if trial.cost(num_steps) <= (1 + WORTH_A_SWITCH) * least < float("inf")]
    return min(near, key=lambda trial: (trial.speed.num_switches, trial.cost(num_steps)), default=None)


def least_cost(trials: Sequence[Trial], num_steps: int) -> float:
    """Seconds a step; infinite where all were left out."""
    return min((trial.cost(num_steps) for trial in trials), default=float("inf"))


def race(entrants: Sequence[Speed], timer: Timer) -> list[Trial]:
    """Trials in the order of `entrants`, timed in turns, so that a slow moment of the machine falls on all alike."""
    notes: dict[Speed, str] = {}
    for place, speed in enumerate(entrants):
        if place and timer.time_left() <= 0:
            notes[speed] = NO_TIME
            continue
        try:
            timer.prepare(speed)
        except Unfit as reason:
            notes[speed] = str(reason)
    running = [speed for speed in entrants if speed not in notes]
    turns: dict[Speed, list[float]] = {speed: [] for speed in running}
    for number in range(MAX_ROUNDS):
        if not running or (number >= MIN_ROUNDS and (timer.time_left() <= 0 or len(running) == 1)):
            break
        for speed in running:
            turns[speed].append(timer.turn(speed))
        leader = min(map(min, turns.values()))
        limit = leader * (FAR_BEHIND if number + 1 >= MIN_ROUNDS else HOPELESS)
        running = [speed for speed in running if min(turns[speed]) <= limit]
    return [
        Trial(speed, note=notes[speed]) if speed in notes else Trial(speed, min(turns[speed])) for speed in entrants
    ]


def compare(known: Trial, other: Speed, timer: Timer) -> Trial:
    """The trial of `other`, by its ratio to one that is known already, of turns that alternate."""
    try:
        compile_seconds = timer.prepare(other)
    except Unfit as reason:
        return Trial(other, note=str(reason))
    turns: dict[Speed, list[float]] = {known.speed: [], other: []}
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and timer.time_left() <= 0:
            break
        for speed, taken in turns.items():
            taken.append(timer.turn(speed))
    ratio = min(turns[other]) / min(turns[known.speed])
    return Trial(other, known.seconds * ratio, compile_seconds=compile_seconds)

"""The trainings of an ablation: which settings, which seeds, under which names; every mistake found before the first.

A training's name is a digest of its settings, of the folds, and of the teachers and weights that it stands on, so equal
trainings are one, whatever table asks for them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kfold.artifacts import ablation_run
from kfold.config import Competition, Config, load_config, settings_hash
from kfold.errors import UserError
from kfold.settings import difference, parse_overrides

BASELINE = "baseline"
DIGEST_LENGTH = 12  # hex digits
NEXT_WORD = r"\s+(?=\w+=)"  # before a further key=value; `multi_scale=[24, 32]` is one word


@dataclass(frozen=True)
class Variant:
    """One line of the table, trained once for each seed and fold."""

    name: str  # the switch as it was written, or "baseline"
    words: tuple[str, ...]  # key=value, those of the baseline included, without a seed
    config: Config
    digest: str

    def run(self, seed: int) -> str:
        return ablation_run(self.digest, seed)


def plan_variants(
    config_path: Path,
    base: Sequence[str],
    switches: Sequence[str],
    facts: Competition,
    fold_stamp: str,
    refuse_wrong: Callable[[Config], object],
    stands_on: Callable[[Config], Sequence[str]],
) -> list[Variant]:
    """The baseline, then each switch alone on top of it. Raises UserError with all that is wrong.

    base, switches: texts of one or several key=value. refuse_wrong: raises UserError for settings that do not fit the
    competition. stands_on: digests of the files that a training reads beside images and tables: teachers, weights.
    """
    base_values = to_values(" ".join(base))
    baseline = make_variant(BASELINE, config_path, base_values, facts, fold_stamp, refuse_wrong, stands_on)
    if problems := unfit_for_comparison(base_values, baseline.config):
        raise UserError(problems)
    variants, problems = [baseline], []
    for switch in switches:
        try:
            own_values = to_values(switch)
            if found := unfit_for_comparison(own_values, None):
                raise UserError(found)
            values = {**base_values, **own_values}
            name = " ".join(own_values.values())
            variant = make_variant(name, config_path, values, facts, fold_stamp, refuse_wrong, stands_on)
            if found := unfit_for_comparison({}, variant.config):
                raise UserError(found)
            refuse_no_change(variant, variants)
            variants.append(variant)
        except UserError as error:
            problems += error.at(f"switch '{switch}'").problems
    if not switches:
        problems.append("no switch to try: name some, such as loss=focal mixing=mixup 'ema_decay=0.99 select=ema'")
    if problems:
        raise UserError(problems)
    return variants


def to_values(text: str) -> dict[str, str]:
    """`"loss=focal focal_gamma=1"` -> each key with its whole word."""
    words = [word for word in re.split(NEXT_WORD, text.strip()) if word]
    parse_overrides(words)  # raises UserError where a word is none, or a key is there twice
    return {word.partition("=")[0]: word for word in words}


def make_variant(
    name: str,
    config_path: Path,
    words: Mapping[str, str],
    facts: Competition,
    fold_stamp: str,
    refuse_wrong: Callable[[Config], object],
    stands_on: Callable[[Config], Sequence[str]],
) -> Variant:
    config = load_config(config_path, tuple(words.values()))
    refuse_wrong(config)
    unseeded = settings_hash(config.model_copy(update={"seed": 0}))
    parts = [unseeded, fold_stamp, facts.task, facts.metric, *facts.target_columns, *stands_on(config)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:DIGEST_LENGTH]
    return Variant(name, tuple(words.values()), config, digest)


def unfit_for_comparison(words: Mapping[str, str], config: Config | None) -> list[str]:
    """What would make the comparison another one. config: None leaves out what only whole settings tell."""
    problems = []
    if "seed" in words:
        problems.append(f"{words['seed']}: the seeds are those of --seeds, the same for all")
    if config is None and "limit" in words:
        problems.append(f"{words['limit']}: the rows must be the same for all: --base {words['limit']}")
    if config is not None and config.pseudo_from:
        problems.append("pseudo_from: pseudo-labels are measured round by round, by pseudo_label.py: leave it out")
    return problems


def refuse_no_change(variant: Variant, others: Sequence[Variant]) -> None:
    """Raise UserError for settings that train what another line of the table trains."""
    for other in others:
        if variant.digest != other.digest:
            continue
        if changed := difference(variant.config, other.config):
            raise UserError(f"{changed} changes nothing that is trained, so there is nothing to measure: leave it out")
        what = "changes nothing, the baseline has it" if other.name == BASELINE else f"is the same as '{other.name}'"
        raise UserError(f"{what}: leave it out")


def parse_seeds(text: str) -> list[int]:
    """`3` -> 1, 2, 3; `4..6` -> 4, 5, 6. Raises UserError for fewer than two."""
    match = re.fullmatch(r"(?:(\d{1,9})\.\.)?(\d{1,9})", text)
    seeds = list(range(int(match[1] or 1), int(match[2]) + 1)) if match else []
    if not 2 <= len(seeds) <= 100:
        raise UserError(
            f"--seeds {text}: write how many, 2 to 100 (usual: 3), or a range such as 4..6: one training says nothing "
            "of the noise of training"
        )
    return seeds

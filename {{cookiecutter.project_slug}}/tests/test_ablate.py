"""Switches measured against the baseline: the statistics on simulated rows, then whole ablations on real images."""

import contextlib
import io
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupted import StopAfter, fingerprint
from scipy import stats
from test_pipeline import prepare, write_settings

import ablate
import make_folds
import predict
import train
from kfold import ablation, artifacts, intervals
from kfold.ablation import effect_of, holm, resampled_scores, variance_of_mean
from kfold.ablation_plan import parse_seeds, plan_variants
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.folds import read_folds
from kfold.errors import Interrupted, UserError
from kfold.metrics import Metric, resolve_metric
from kfold.report.ablation import Ablation, Outcome, ablation_csv, best_first, markdown, terminal_table
from kfold.report.pictures import effects_picture
from kfold.seals import check_seals

SHARE_RIGHT = Metric("right", lambda targets, predictions: float(predictions.mean()), True, "values")
SWITCHES = ["lr=1e-9 min_lr=1e-9", "weight_decay=1e-9"]
SEEDS = "2"


@pytest.fixture(scope="module", autouse=True)
def enough_resamples():
    """Fewer than users get, and more than other tests: verdicts stand on their variance."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ablation, "NUM_RESAMPLES", 60)
        for name in ("NUM_RESAMPLES_AT_LEAST", "NUM_RESAMPLES_AT_MOST"):
            patched.setattr(intervals, name, 60)
        yield


# Statistics


def simulate(generator: np.random.Generator, gain: float, of_trainings: float, rows: int = 150, seeds: int = 3):
    """Whether each row is right, (S, N), for a baseline and a switch: rows are of unlike difficulty, trainings of
    unlike quality, and each training errs on rows of its own."""
    difficulty = generator.normal(1, 2, rows)
    quality = generator.normal(0, of_trainings, (2, seeds, 1)) + np.array([0, gain])[:, None, None]
    chances = 1 / (1 + np.exp(difficulty - quality - 1))
    return (generator.random(chances.shape) < chances).astype(float)


def effect_on(generator: np.random.Generator, baseline: np.ndarray, switch: np.ndarray):
    """The effect from shares of right rows: those of resamples are weighted means, which is faster than drawing."""
    rows = baseline.shape[1]
    weights = np.vstack([np.full(rows, 1 / rows), generator.multinomial(rows, np.full(rows, 1 / rows), 200) / rows])
    return effect_of(switch @ weights.T, baseline @ weights.T, True)


def scores(predictions: np.ndarray, metric: Metric = SHARE_RIGHT, groups=None) -> np.ndarray:
    targets = np.zeros(predictions.shape[1:])
    return np.stack([resampled_scores(metric, targets, values, groups) for values in predictions])


@pytest.mark.parametrize("of_trainings", [0.0, 0.4])
def test_intervals_of_a_switch_that_does_nothing_hold_0_in_about_95_of_100_tables(of_trainings, figures):
    generator = np.random.default_rng(1)
    effects = [effect_on(generator, *simulate(generator, 0, of_trainings)) for _ in range(400)]
    share = np.mean([effect.verdict == "within noise" for effect in effects])
    figures(f"{share:.1%} of 95% intervals of 3 seeds hold the truth, sd of trainings {of_trainings}")
    assert 0.93 <= share <= 0.99


def test_resamples_scatter_as_the_bootstrap_of_a_mean_should():
    values = np.random.default_rng(1).normal(0, 1, (1, 400, 1))
    resampled = scores(values)[0]
    assert resampled[0] == pytest.approx(values.mean())
    assert resampled[1:].std() == pytest.approx(values.std() / np.sqrt(400), rel=0.3)


def test_noise_of_trainings_alone_gives_students_interval_and_noise_of_rows_alone_the_bootstraps():
    generator = np.random.default_rng(10)
    of_seeds, of_rows = generator.normal(0, 1, (4, 1)), generator.normal(0, 1, 201)
    effect = effect_of(np.repeat(of_seeds, 201, axis=1), np.zeros((4, 201)), True)
    expected = stats.t.interval(0.95, 3, of_seeds.mean(), stats.sem(of_seeds[:, 0]))
    assert (effect.low, effect.high) == pytest.approx(expected)
    effect = effect_of(np.repeat(of_rows[None], 4, axis=0), np.zeros((4, 201)), True)
    assert effect.high - effect.gain == pytest.approx(1.96 * of_rows[1:].std(ddof=1), rel=1e-3)


@pytest.mark.parametrize(
    ("of_seeds", "resampled", "expected"),
    [
        ([1.0, 3.0], [[0.0, 3.0, 6.0], [0.0, 3.0, 6.0]], (1 + 9, 10**2 / 1**2)),  # s^2 = 2, c = 9
        ([1.0, 2.0, 3.0], [[0.0, 3.0, 6.0]] * 3, (1 / 3 + 9, (28 / 3) ** 2 / ((1 / 3) ** 2 / 2))),
        ([2.0, 2.0], [[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], (2 / 3, 1e9)),  # s^2 = c = 0, R = 2/3
    ],
)
def test_the_variance_of_a_mean_is_that_of_the_formula(of_seeds, resampled, expected):
    assert variance_of_mean(np.array(of_seeds), np.array(resampled)) == pytest.approx(expected)


def test_a_gain_is_found_the_more_seeds_the_surer():
    found = {}
    for seeds in (3, 10):
        generator = np.random.default_rng(2)
        pairs = [simulate(generator, 0.6, 0.1, 300, seeds) for _ in range(60)]
        found[seeds] = np.mean([effect_on(generator, *pair).verdict == "helps" for pair in pairs])
    assert found[10] > found[3] > 0.4


def test_pairing_on_rows_and_seeds_beats_comparing_without_it():
    generator = np.random.default_rng(3)
    luck = generator.normal(0, 1, (1, 200, 1)) + generator.normal(0, 0.3, (3, 1, 1))  # of row and seed, in both
    baseline = luck + generator.normal(0, 0.1, (3, 200, 1))
    switch = luck + 0.1 + generator.normal(0, 0.1, (3, 200, 1))
    paired = effect_of(scores(switch), scores(baseline), True)
    apart = effect_of(scores(switch[[1, 2, 0], ::-1]), scores(baseline), True)  # other rows, other seeds
    assert paired.gain == pytest.approx(apart.gain)
    assert paired.verdict == "helps"
    assert apart.verdict == "within noise"
    assert paired.high - paired.low < (apart.high - apart.low) / 5


def test_where_lower_is_better_a_fall_is_a_gain():
    generator = np.random.default_rng(4)
    truth = generator.normal(size=(100, 1))
    worse, better = (truth + generator.normal(0, scale, (3, 100, 1)) for scale in (1.0, 0.5))
    metric = resolve_metric("rmse", "regression")
    high, low = (
        np.stack([resampled_scores(metric, truth, values) for values in predictions]) for predictions in (worse, better)
    )
    effect = effect_of(low, high, metric.greater_is_better)
    assert effect.gain > 0
    assert effect.verdict == "helps"
    mirrored = effect_of(high, low, metric.greater_is_better)
    assert (mirrored.gain, mirrored.low, mirrored.high) == pytest.approx((-effect.gain, -effect.high, -effect.low))
    assert mirrored.verdict == "hurts"


def test_rows_of_a_group_are_resampled_together():
    generator = np.random.default_rng(5)
    gain_of_group = np.repeat(generator.normal(0, 1, 20), 10)  # ten like rows a group: 20 facts, not 200
    baseline = np.zeros((3, 200, 1))
    switch = baseline + gain_of_group[None, :, None] + generator.normal(0, 0.01, (3, 1, 1))
    groups = np.repeat([f"patient {number}" for number in range(20)], 10).astype(object)
    alone = effect_of(scores(switch), scores(baseline), True)
    together = effect_of(scores(switch, groups=groups), scores(baseline, groups=groups), True)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.25)


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_p_value_and_interval_agree(seed, of_seeds, of_rows):
    generator = np.random.default_rng(seed)
    baseline = np.zeros((3, 31))
    switch = generator.normal(0.5, 1) + generator.normal(0, of_seeds, (3, 1)) + generator.normal(0, of_rows, (3, 31))
    effect = effect_of(switch, baseline, True)
    assert effect.low <= effect.gain <= effect.high
    assert (effect.p_value < 0.05) == (effect.verdict != "within noise")
    assert effect.gain == pytest.approx(np.mean(effect.of_seeds))


def test_no_difference_at_all_is_within_noise_and_one_seed_tells_nothing():
    same = scores(np.random.default_rng(6).random((3, 40, 1)))
    effect = effect_of(same, same, True)
    assert (effect.gain, effect.low, effect.high, effect.p_value) == (0, 0, 0, 1)
    assert effect.verdict == "within noise"
    assert effect_of(same[:1] + 1, same[:1], True).verdict == "within noise"


def test_resamples_without_a_score_are_left_out():
    generator = np.random.default_rng(7)
    truth = (np.arange(30) < 2).astype(float)[:, None]  # often no positive in a resample
    metric = Metric("m", lambda true, values: float(values.mean()) if true.any() else float("nan"), True, "values")
    of_switch, of_baseline = (
        np.stack([resampled_scores(metric, truth, generator.random((30, 1))) for _ in range(3)]) for _ in range(2)
    )
    assert np.isnan(of_switch).any()
    effect = effect_of(of_switch, of_baseline, True)
    assert effect.low < effect.gain < effect.high


def test_holm_gives_the_values_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([float("nan"), 0.01]) == pytest.approx([1, 0.02])
    assert len(holm([])) == 0


# The plan


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("settings")
    write_settings(root, "multiclass")
    return root


def plan(root: Path, switches: list[str], base: list[str] = (), stamp: str = "folds"):
    facts = load_competition(root / "competition.yaml")
    config_path = root / "configs" / "baseline.yaml"
    refuse_wrong = partial(train.refuse_wrong_choices, facts=facts, num_outputs=10)
    stands_on = partial(ablate.stands_on, Workspace(root), [0])
    return plan_variants(config_path, base, switches, facts, stamp, refuse_wrong, stands_on)


def test_every_mistake_of_every_switch_is_named_at_once(settings):
    switches = [
        "lr=0.01", "lr=0.003", "workers=1", "epoch=3", "seed=5", "limit=50", "lr=0.01", "focal_gamma=3", "loss",
        "triplet_weight=1 mixing=mixup", "backbone=resnet81", "pseudo_from=teacher",
    ]  # fmt: skip
    with pytest.raises(UserError) as error:
        plan(settings, switches)
    problems = error.value.problems
    for switch, text in [
        ("lr=0.003", "changes nothing, the baseline has it"),
        ("workers=1", "changes nothing that is trained"),
        ("epoch=3", "did you mean epochs?"),
        ("seed=5", "--seeds"),
        ("limit=50", "--base limit=50"),
        ("lr=0.01", "is the same as 'lr=0.01'"),
        ("focal_gamma=3", "needs loss=focal"),
        ("loss", "written key=value"),
        ("triplet_weight=1 mixing=mixup", "drop one"),
        ("backbone=resnet81", "resnet81"),
        ("pseudo_from=teacher", "pseudo_label.py"),
    ]:
        assert any(problem.startswith(f"switch '{switch}': ") and text in problem for problem in problems), switch
    with pytest.raises(UserError, match="no switch to try"):
        plan(settings, [])
    with pytest.raises(UserError, match="--seeds"):
        plan(settings, ["lr=0.01"], ["seed=3"])


def test_a_switch_takes_several_words_and_wins_over_the_base(settings):
    baseline, first, second = plan(settings, ["multi_scale=[24, 32] lr=0.02", "epochs=2"], ["lr=0.01 epochs=4"])
    assert (baseline.config.lr, baseline.config.epochs) == (0.01, 4)
    assert (first.config.lr, first.config.epochs, first.config.multi_scale) == (0.02, 4, (24, 32))
    assert (second.config.lr, second.config.epochs) == (0.01, 2)
    assert first.name == "multi_scale=[24, 32] lr=0.02"


def test_names_of_trainings_follow_settings_and_folds_alone(settings):
    names = {
        variant.run(1)
        for base, stamp in (([], "folds"), (["workers=3"], "folds"), ([], "others"))
        for variant in plan(settings, ["lr=0.01"], base, stamp)
    }
    assert len(names) == 4  # two variants on two foldings; loader processes change nothing
    assert all(artifacts.is_ablation(name) for name in names)
    assert not artifacts.is_ablation("ablation-of-mine-seed1")
    (_, moved), (moved_baseline, _) = plan(settings, ["lr=0.01"]), plan(settings, ["lr=0.02"], ["lr=0.01"])
    assert moved.run(2) == moved_baseline.run(2)  # a switch once, a baseline now: trained once


def test_a_training_has_another_name_once_its_weights_file_or_teacher_is_another(settings, tmp_path):
    weights, teacher = tmp_path / "weights.safetensors", Workspace(settings).fold_dir("teacher", 0)
    teacher.mkdir(parents=True)
    pretrained, distilled = f"pretrained=true pretrained_path={weights}", "distill_from=teacher"
    cleaned = "clean_labels=0.1 clean_labels_from=teacher"

    def runs(content: str, weights_sha256: str) -> np.ndarray:
        weights.write_text(content)
        artifacts.save_manifest(teacher, {"files": {}, "weights_sha256": weights_sha256})
        return np.array([variant.run(1) for variant in plan(settings, [pretrained, distilled, cleaned])])

    first = runs("a", "1")
    assert (runs("b", "1") == first).tolist() == [True, False, True, True]
    assert (runs("a", "2") == first).tolist() == [True, True, False, False]


@pytest.mark.parametrize("text", ["1", "0", "two", "", "3..3", "5..4", "1..500"])
def test_odd_numbers_of_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_seeds_are_a_number_or_a_range():
    assert parse_seeds("3") == [1, 2, 3]
    assert parse_seeds("0..2") == [0, 1, 2]


# The table


def make_table() -> Ablation:
    def effect(shift):
        noise = np.random.default_rng(8).normal(0, 0.01, (3, 51))
        return effect_of(noise + shift, np.zeros((3, 51)), True)

    outcomes = [
        Outcome("lr=1e-9", effect(-0.5), (0.1, 0.1, 0.1), 1.0),
        Outcome("broken=a|b", problem="it burst"),
        Outcome("backbone=$big$", effect(0.2), (0.8, 0.8, 0.8), 2.5),
        Outcome("same=1", effect_of(np.ones((3, 51)), np.ones((3, 51)), True), (0.6,) * 3, 1.0, is_same=True),
    ]
    return Ablation(
        "Ablation of x", "python ablate.py 'broken=a|b'", "accuracy", True, "fold 0: 50 rows", (1, 2, 3),
        (0.5, 0.6, 0.7), best_first(outcomes), False, {"torch": "2.10", "scipy": "absent"},
    )  # fmt: skip


def test_tables_show_the_best_first_and_what_failed_last():
    found = make_table()
    assert [outcome.verdict for outcome in found.outcomes] == ["helps", "within noise", "hurts", "failed"]
    table = ablation_csv(found)
    assert list(table["switch"]) == ["baseline", "backbone=$big$", "same=1", "lr=1e-9", "broken=a|b"]
    assert (table["p_value_holm"].dropna() >= table["p_value"].dropna()).all()
    text = terminal_table(found)
    assert "3 switches that do nothing would give 0.15 verdicts" in text
    assert "leaves backbone=$big$, lr=1e-9" in text
    assert "broken=a|b: failed: it burst" in text
    assert "same=1: its predictions are the baseline's" in text
    lines = markdown(found).splitlines()
    assert "| `broken=a\\|b` |  |  | failed |  |" in lines
    assert "python ablate.py 'broken=a|b'" in lines
    assert "torch 2.10" in lines


def test_the_picture_is_a_png_the_same_twice():
    found = make_table()
    first, second = (effects_picture(ablation_csv(found), 0.1, "a $title$", "accuracy") for _ in range(2))
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert first == second
    assert first != effects_picture(ablation_csv(found), 0.3, "a $title$", "accuracy")


# Whole ablations


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("plain"), "multiclass", 120, 12, epochs=3, batch_size=8, lr=0.01)


def new_root(plain: Path, folder: Path, *skipped: str) -> Path:
    """Settings, folds and runs of their own; the images are shared."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("data", *skipped))
    (folder / "data").symlink_to(plain / "data")
    return folder


@pytest.fixture(scope="module")
def ablated(plain, tmp_path_factory) -> tuple[Path, str]:
    """A finished ablation, and what it printed."""
    root = new_root(plain, tmp_path_factory.mktemp("ablated") / "root")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ablate.main(SWITCHES, seeds=SEEDS, root=root)
    return root, printed.getvalue()


@pytest.fixture
def copy_of_ablated(ablated, plain, tmp_path) -> Path:
    root = shutil.copytree(ablated[0], tmp_path / "copy", symlinks=True)
    return Path(root)


@pytest.fixture
def trained_now(monkeypatch) -> list[str]:
    """The words of each training that is started."""
    started, original = [], train.main

    def note(**options):
        started.append(" ".join(options["overrides"]))
        original(**options)

    monkeypatch.setattr(train, "main", note)
    return started


def test_a_ruined_training_hurts_and_a_switch_of_no_account_is_within_noise(ablated):
    root, output = ablated
    table = pd.read_csv(root / "runs" / "ablations" / "baseline.csv").set_index("switch")
    assert table.loc[SWITCHES[0], "verdict"] == "hurts"
    assert table.loc[SWITCHES[1], "verdict"] == "within noise"
    assert "6 trainings, of which 0 were done before" in output
    assert "training 2 of 6: lr=1e-9 min_lr=1e-9, seed 1, fold 0 (about " in output
    assert "training 4 of 6: baseline, seed 2, fold 0 (about " in output
    assert "hurts" in output.split("95% interval")[-1]


def test_the_gain_is_that_of_the_out_of_fold_files(ablated):
    root, _ = ablated
    table = pd.read_csv(root / "runs" / "ablations" / "baseline.csv").set_index("switch")
    folds = pd.read_csv(root / "folds.csv", dtype=str).set_index("id")
    shares = {}
    for path in sorted((root / "runs" / "ablations").glob("*/fold0/oof.parquet")):
        oof = pd.read_parquet(path).set_index("id")
        labels = oof.filter(like="p_").idxmax(axis=1).str[2:]
        config = (path.parents[1] / "config.yaml").read_text()
        kind = "hurt" if "lr: 1.0e-09" in config else "null" if "weight_decay: 1.0e-09" in config else "baseline"
        shares.setdefault(kind, []).append((labels == folds.loc[oof.index, "label"]).mean())
    assert {kind: len(values) for kind, values in shares.items()} == {"hurt": 2, "null": 2, "baseline": 2}
    expected = np.mean(shares["hurt"]) - np.mean(shares["baseline"])
    assert table.loc[SWITCHES[0], "gain"] == pytest.approx(expected)
    assert table.loc["baseline", "score"] == pytest.approx(np.mean(shares["baseline"]))


def test_its_trainings_are_no_runs_and_keep_no_weights(ablated):
    root, _ = ablated
    workspace = Workspace(root)
    assert workspace.run_names() == []
    assert not workspace.ledger_path.exists()
    assert {path.name for path in workspace.runs_dir.iterdir()} == {"ablations"}
    assert not list(root.glob("runs/**/*.safetensors"))
    assert check_seals(workspace.ablations_dir) == ({"baseline.csv", "baseline.md", "baseline.png"}, [])
    run = next(path.name for path in workspace.ablations_dir.iterdir() if path.is_dir())
    with pytest.raises(UserError, match="without weights: train these settings anew"):
        predict.main(run=run, root=root)
    with pytest.raises(UserError, match=r"that folder is ablate\.py's"):
        train.main(name="ablations", root=root)


def test_a_finished_ablation_trains_nothing_and_writes_the_same(copy_of_ablated, trained_now):
    root = copy_of_ablated
    folder = root / "runs" / "ablations"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ablate.main(SWITCHES, seeds=SEEDS, root=root)
    assert trained_now == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    command = (folder / "baseline.md").read_text().split("```")[1].strip()
    assert command == (
        "python ablate.py --config configs/baseline.yaml --fold 0 --seeds 2 'lr=1e-9 min_lr=1e-9' weight_decay=1e-9"
    )


def test_an_interrupted_ablation_goes_on_with_what_is_missing_and_gives_the_same_bytes(
    ablated, copy_of_ablated, trained_now
):
    root, workspace = copy_of_ablated, Workspace(copy_of_ablated)
    table = workspace.ablation_path("baseline", "csv")
    before = pd.read_csv(table).drop(columns="cost")
    table.unlink()
    missing = [variant.run(2) for variant in plan_of(root)]
    for run in missing:
        shutil.rmtree(workspace.run_dir(run))
    with pytest.raises(Interrupted):
        ablate.main(SWITCHES, seeds=SEEDS, root=root, stop=StopAfter(20))  # 10 batches an epoch, and validation
    assert trained_now == ["seed=2"]
    assert not table.exists()
    ablate.main(SWITCHES, seeds=SEEDS, root=root)
    assert trained_now == ["seed=2", "seed=2", f"{SWITCHES[0]} seed=2"]
    assert all(results(root, run) == results(ablated[0], run) for run in missing)
    pd.testing.assert_frame_equal(pd.read_csv(table).drop(columns="cost"), before)


def results(root: Path, run: str) -> dict[str, str]:
    """What must be the same bytes; the weights are gone, but their digest stands in the manifest."""
    return {key: value for key, value in fingerprint(root, run).items() if key != "names"}


def plan_of(root: Path):
    facts = load_competition(root / "competition.yaml")
    folds = read_folds(root / "folds.csv", root / "data" / "train.csv", facts)
    return plan(root, SWITCHES[:1], stamp=folds.stamp)


def test_more_seeds_and_switches_train_only_what_is_new(copy_of_ablated, trained_now):
    ablate.main(["epochs=1"], seeds="2..3", name="other", root=copy_of_ablated)
    assert trained_now == ["epochs=1 seed=2", "seed=3", "epochs=1 seed=3"]
    assert (copy_of_ablated / "runs" / "ablations" / "baseline.csv").exists()


def test_the_cost_of_a_switch_is_the_median_of_its_trainings_over_the_baselines_next_to_them():
    def measured(seconds: list[float]) -> ablate.Measured:
        return ablate.Measured(np.full((3, 4, 2), 0.5), np.full((3, 11), 0.9), np.array(seconds))

    outcome = ablate.to_outcome(
        "x", measured([3.0, 40.0, 2.0]), measured([2.0, 10.0, 2.0]), resolve_metric("accuracy", "multiclass"), ""
    )
    assert outcome.cost == 1.5


def test_a_table_is_not_replaced_by_one_without_its_lines(copy_of_ablated, trained_now):
    table = copy_of_ablated / "runs" / "ablations" / "baseline.csv"
    before = table.read_bytes()
    for switches, options in ((SWITCHES[:1], {}), (SWITCHES, {"fold": "1"}), (SWITCHES, {"base": ["lr=0.02"]})):
        with pytest.raises(UserError, match=r"another command: give this one a --name, .*--fold 0 --seeds 2 'lr=1e-9"):
            ablate.main(switches, seeds=SEEDS, root=copy_of_ablated, **options)
    assert table.read_bytes() == before
    ablate.main(SWITCHES[:1], seeds=SEEDS, root=copy_of_ablated, name="first")
    ablate.main(SWITCHES[::-1], seeds=SEEDS, root=copy_of_ablated)  # all its lines are there
    assert trained_now == []


def test_a_switch_that_fails_is_listed_and_the_others_are_measured(copy_of_ablated, monkeypatch, capsys):
    original, tried = train.main, []

    def fail(**options):
        tried.append(options["overrides"])
        if "epochs=2" in options["overrides"]:
            raise UserError("the GPU's memory is full")
        if "epochs=4" in options["overrides"]:
            raise ZeroDivisionError("a fault")
        original(**options)

    monkeypatch.setattr(train, "main", fail)
    with pytest.raises(UserError) as error:
        ablate.main([*SWITCHES, "epochs=2", "epochs=4"], seeds=SEEDS, root=copy_of_ablated)
    assert error.value.problems == [
        "switch 'epochs=2' failed: seed 1, fold 0: the GPU's memory is full",
        "switch 'epochs=4' failed: seed 1, fold 0: ZeroDivisionError: a fault",
    ]
    assert len(tried) == 2  # their other seeds are left out
    table = pd.read_csv(copy_of_ablated / "runs" / "ablations" / "baseline.csv").set_index("switch")
    assert list(table["verdict"].iloc[1:]) == ["within noise", "hurts", "failed", "failed"]
    assert table.loc["epochs=2", "problem"] == "seed 1, fold 0: the GPU's memory is full"
    assert "Traceback" in capsys.readouterr().err  # of the fault, for whoever mends it
    with pytest.raises(UserError, match="the baseline failed"):
        ablate.main(SWITCHES, base=["epochs=2"], name="other", root=copy_of_ablated)


def test_a_changed_out_of_fold_file_fails_its_switch_by_name(copy_of_ablated):
    variant = plan_of(copy_of_ablated)[1]
    path = Workspace(copy_of_ablated).predictions_path(variant.run(2), 0, "oof")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"switch 'lr=1e-9 min_lr=1e-9' failed: runs/ablations/\S+oof\.parquet: damaged or changed"
    ):
        ablate.main(SWITCHES, seeds=SEEDS, root=copy_of_ablated)


def test_overwrite_forgets_all_of_the_table_first_and_nothing_else(copy_of_ablated, monkeypatch):
    def interrupt(**_options):
        raise Interrupted("enough")

    monkeypatch.setattr(train, "main", interrupt)
    with pytest.raises(Interrupted):
        ablate.main(SWITCHES[:1], seeds="2", overwrite=True, root=copy_of_ablated)
    kept = {path.parents[1].name for path in copy_of_ablated.glob("runs/ablations/*/fold0/manifest.json")}
    gone = {variant.run(seed) for variant in plan_of(copy_of_ablated) for seed in (1, 2)}
    assert len(kept) == 6 - len(gone)
    assert not kept & gone


def test_a_switch_that_lowers_an_error_gains_what_the_files_say(plain, tmp_path, capsys):
    root = new_root(plain, tmp_path / "root", "folds.csv", "configs", "runs")
    write_settings(root, "regression", epochs=2, batch_size=8, lr=1e-9, min_lr=1e-9)
    facts = root / "competition.yaml"
    facts.write_text(facts.read_text().replace("metric: r2", "metric: rmse"))
    make_folds.main(root=root)
    ablate.main(["lr=0.01"], seeds="2", root=root)
    table = pd.read_csv(root / "runs" / "ablations" / "baseline.csv").set_index("switch")
    truth = pd.read_csv(root / "folds.csv", dtype=str).set_index("id")["label"].astype(float)
    errors = {"baseline": [], "lr=0.01": []}
    for path in (root / "runs" / "ablations").glob("*/fold0/oof.parquet"):
        oof = pd.read_parquet(path).set_index("id")["p_label"]
        kind = "lr=0.01" if "\nlr: 0.01\n" in (path.parents[1] / "config.yaml").read_text() else "baseline"
        errors[kind].append(np.sqrt(np.mean((oof - truth[oof.index]) ** 2)))
    error_of = {kind: np.mean(values) for kind, values in errors.items()}
    assert error_of["lr=0.01"] < error_of["baseline"]
    assert table["score"].to_dict() == pytest.approx(error_of, rel=1e-4)
    gain = error_of["baseline"] - error_of["lr=0.01"]
    assert table.loc["lr=0.01", "gain"] == pytest.approx(gain, rel=1e-3)
    assert table.loc["lr=0.01", "gain_low"] < gain < table.loc["lr=0.01", "gain_high"]
    assert "rmse (smaller is better)" in capsys.readouterr().out


def test_regression_on_all_folds_of_a_trial_with_groups(plain, tmp_path, monkeypatch, capsys):
    root = new_root(plain, tmp_path / "root", "folds.csv", "configs")
    write_settings(root, "regression", epochs=1)
    table = pd.read_csv(root / "data" / "train.csv", dtype=str)
    table.assign(writer=[f"writer {row // 3}" for row in range(len(table))]).to_csv(tmp_path / "t.csv", index=False)
    with (root / "competition.yaml").open("a") as file:
        file.write(f"group_column: writer\ntrain_csv: {tmp_path / 't.csv'}\n")
    text = (root / "competition.yaml").read_text().replace("metric: r2", "metric: rmse")
    (root / "competition.yaml").write_text(text)
    make_folds.main(root=root)
    seen = []

    def note(metric, targets, predictions, groups):
        seen.append(groups)
        return resampled_scores(metric, targets, predictions, groups)

    monkeypatch.setattr(ablate, "resampled_scores", note)
    ablate.main(["select=best"], fold="all", seeds="2", base=["limit=18"], root=root)
    output = capsys.readouterr().out
    assert "rmse (smaller is better) of fold 0, 1, 2: 18 rows" in output
    assert "in groups, which are resampled whole" in output
    assert "2 seeds: the intervals are rough" in output
    assert "optimistic: select=best" in output
    assert len(seen) == 4
    assert all(len(groups) == 18 > len(set(groups)) for groups in seen)
    assert not Workspace(root).ledger_path.exists()
    facts = load_competition(root / "competition.yaml")
    folds = read_folds(root / "folds.csv", tmp_path / "t.csv", facts)
    assert ablate.choose_folds("2,0,2", folds, plan(root, ["lr=0.02"])[0].config) == [0, 2]
    with pytest.raises(UserError, match="all-data holds no row out"):
        ablate.main(["lr=0.02"], fold="all-data", root=root)
    with pytest.raises(UserError, match="--fold 7"):
        ablate.main(["lr=0.02"], fold="0,7", root=root)

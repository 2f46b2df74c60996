"""kfold/config.py: strict reading, every problem at once, nothing lost on the way to a file and back."""

import math
import types
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfold.config import Competition, Config, load_competition, load_config, settings_hash
from kfold.errors import UserError
from kfold.settings import Settings, build_settings, difference, parse_overrides, settings_to_yaml
from kfold.strict_yaml import read_yaml

FACTS = {"project_name": "x", "task": "multiclass", "target_columns": ["label"]}


@pytest.fixture
def write(tmp_path):
    def run(text: str | bytes, name: str = "settings.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return run


def problems_of(call, *arguments) -> list[str]:
    with pytest.raises(UserError) as refusal:
        call(*arguments)
    assert all(problem and "\n" not in problem for problem in refusal.value.problems)
    return refusal.value.problems


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", 1000),
        ("1_0", "1_0"),  # 1.0, mistyped
        ("10_00", "10_00"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        ("1e-3x", "1e-3x"),
        ("'1e-3'", "1e-3"),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_a_value_is_what_it_looks_like(write, text, value):
    read = read_yaml(write(f"key: {text}\n"))["key"]
    assert read == value
    assert type(read) is type(value)


def test_infinity_and_nan_are_numbers(write):
    read = read_yaml(write("a: .inf\nb: -.inf\nc: .nan\n"))
    assert (read["a"], read["b"]) == (math.inf, -math.inf)
    assert math.isnan(read["c"])


def test_a_key_named_no_stays_text(write):
    assert read_yaml(write("no: 1\n")) == {"no": 1}


def test_a_doubled_key_is_refused_with_its_line(write):
    (problem,) = problems_of(read_yaml, write("lr: 1\nepochs: 2\nlr: 3\n"))
    assert "settings.yaml: line 3: not valid YAML: key 'lr' is given twice" in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: \xff\n", "not UTF-8 text (byte 3)"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: b: c\n", "not valid YAML"),
        ("- a\n- b\n", "not a list"),
        ("just words\n", "not a str"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("a: &x [*x, *y]\n", "not valid YAML"),
        ("[a]: 1\n", "settings.yaml"),
        ("{a: 1}: 1\n", "settings.yaml"),
    ],
)
def test_what_is_not_a_settings_file_is_refused_by_name(write, text, words):
    (problem,) = problems_of(read_yaml, write(text))
    assert "settings.yaml" in problem
    assert words in problem


def test_an_empty_file_and_a_byte_order_mark_are_fine(write):
    assert read_yaml(write("# nothing\n")) == {}
    assert read_yaml(write(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")) == {"a": 1, "b": 2}


def test_a_missing_file_names_those_that_exist(write):
    path = write("lr: 1\n", "baseline.yaml").with_name("basline.yaml")
    (problem,) = problems_of(read_yaml, path)
    assert problem == f"{path}: no such file: there are: baseline"


# Settings


def test_an_unknown_key_names_its_nearest_neighbour(write):
    (problem,) = problems_of(load_config, write("image_sise: 64\n"))
    assert problem.endswith("unknown key 'image_sise': did you mean image_size?")
    (problem,) = problems_of(load_config, write("xyzzy: 1\n"))
    assert "known keys: seed, " in problem


def test_all_problems_are_told_at_once(write):
    path = write("epochs: many\nlr: -1\nlearning: 1\noptimizer: adma\nseed: 1.5\nhflip: 1\nimage_size: '64'\n")
    problems = problems_of(load_config, path)
    assert len(problems) == 7
    for key in ("epochs", "lr", "learning", "optimizer", "seed", "hflip", "image_size"):
        assert sum(f"{key}:" in problem or f"'{key}':" in problem for problem in problems) == 1


def test_a_missing_fact_is_named(write):
    problems = problems_of(load_competition, write("metric: auto\n"))
    assert [problem.split(": ")[1] for problem in problems] == [
        "'project_name' is missing",
        "'task' is missing",
        "'target_columns' is missing",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_columns": ["fold"]}, "'fold' has the name of a column of folds.csv"),
        ({"target_columns": ["image_id"]}, "'image_id' is named twice"),
        ({"group_column": "label"}, "'label' is named twice"),
        ({"target_columns": ["a", "a"], "task": "multilabel"}, "'a' is named twice"),
        ({"target_columns": ["a", "b"]}, "task multiclass has one target column, not 2"),
        ({"target_columns": ["a", "b"], "task": "binary"}, "task binary has one target column, not 2"),
        ({"target_columns": []}, "target_columns"),
        ({"target_columns": "label"}, "target_columns"),
        ({"fold_scheme": "time"}, "needs time_column"),
        ({"fold_scheme": "group"}, "needs group_column"),
        ({"num_folds": 1}, "num_folds"),
        ({"num_folds": 21}, "num_folds"),
        ({"num_folds": "5"}, "num_folds"),
        ({"task": "segmentation"}, "task"),
        ({"id_column": ""}, "id_column"),
        ({"image_suffix": None}, "image_suffix"),
    ],
)
def test_contradictory_facts_are_refused_with_the_reason(changes, words):
    (problem,) = problems_of(build_settings, Competition, {**FACTS, **changes}, "competition.yaml")
    assert problem.startswith("competition.yaml: ")
    assert words in problem


def test_weights_on_disk_contradict_training_from_scratch(write):
    (problem,) = problems_of(load_config, write("pretrained: false\npretrained_path: w.pth\n"))
    assert "drop one of them" in problem


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3


# Overrides


def test_precedence_is_defaults_then_file_then_words(write):
    config = load_config(write("epochs: 7\nlr: 0.5\n"), ["lr=1e-3", "tta=d4"])
    assert (config.epochs, config.lr, config.tta, config.seed) == (7, 0.001, "d4", Config().seed)


def test_override_words_are_read_as_in_the_files():
    words = ["lr=1e-3", "hflip=false", "backbone=no", "pretrained_path=", "name=a=b", "sizes=[1, 2]"]
    assert parse_overrides(words) == {
        "lr": 0.001,
        "hflip": False,
        "backbone": "no",
        "pretrained_path": "",
        "name": "a=b",
        "sizes": [1, 2],
    }


@pytest.mark.parametrize("word", ["lr", "=3", "", "lr=[1", "--fold"])
def test_a_word_that_is_no_override_is_quoted(word):
    (problem,) = problems_of(parse_overrides, [word])
    assert problem.startswith(f"'{word}': ")


def test_an_override_given_twice_is_refused():
    (problem,) = problems_of(parse_overrides, ["lr=1", "lr=2"])
    assert "lr is given twice" in problem


def test_an_unknown_override_names_its_nearest_neighbour(write):
    (problem,) = problems_of(load_config, write(""), ["epoch=3"])
    assert "overrides: unknown key 'epoch': did you mean epochs?" in problem


@pytest.mark.parametrize("value", ["-1", "65", "true", "2.0", "two", "[2]", '""'])
def test_workers_are_threads_or_a_number_of_processes(write, value):
    (problem,) = problems_of(load_config, write(""), [f"workers={value}"])
    assert "workers: auto, threads, or 0 to 64 loader processes, not " in problem
    for wish in ("auto", "threads", "0", "64"):
        assert str(load_config(write(""), [f"workers={wish}"]).workers) == wish


# To a file and back

# PyYAML writes U+0085, U+2028 and U+2029 as line breaks, which do not come back. The template refuses them in answers.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=20)
TEXT |= st.sampled_from(["1e-3", "1e5", "no", "010", "7", ".5", "null", "~", "true", "1_0", "1_000", "12:30"])


def any_value(annotation: object) -> st.SearchStrategy:
    if typing.get_origin(annotation) is typing.Literal:
        return st.sampled_from(typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return st.one_of([any_value(kind) for kind in typing.get_args(annotation)])
    if typing.get_origin(annotation) is tuple:
        return st.lists(TEXT, max_size=3).map(tuple)
    return {str: TEXT, int: st.integers(0, 30), float: st.floats(0, 1), bool: st.booleans()}[annotation]


@given(st.data())
def test_any_experiment_comes_back_from_its_file(tmp_path_factory, data):
    changes = {key: data.draw(any_value(field.annotation), label=key) for key, field in Config.model_fields.items()}
    try:
        config = build_settings(Config, changes, "drawn")
    except UserError:
        config = build_settings(Config, {"backbone": changes["backbone"], "lr": 0.5 + changes["lr"]}, "drawn")
    assert load_config(written(config, tmp_path_factory)) == config


@given(TEXT, TEXT.filter(bool), st.lists(TEXT, min_size=1, max_size=3, unique=True), TEXT)
def test_any_text_in_the_facts_comes_back_from_its_file(tmp_path_factory, name, id_column, targets, suffix):
    changes = {"project_name": name, "id_column": id_column, "target_columns": targets, "image_suffix": suffix}
    try:
        facts = build_settings(Competition, {**changes, "task": "multilabel"}, "drawn")
    except UserError:
        return
    assert load_competition(written(facts, tmp_path_factory)) == facts


def written(settings: Settings, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_bytes(settings_to_yaml(settings).encode())
    return path


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"num_cycles": 3}, "needs schedule=cosine_cycles"),
        ({"num_cycles": 11, "schedule": "cosine_cycles"}, "more cycles than epochs"),
        ({"min_lr": 0.1}, "above lr"),
        ({"swa_from_epoch": 11}, "after the last epoch"),
        ({"select": "ema"}, "select=ema needs ema_decay"),
        ({"select": "swa"}, "select=swa needs swa_from_epoch"),
        ({"select": "snapshots"}, "select=snapshots needs schedule=cosine_cycles"),
        ({"consistency_weight": 1.0}, "needs ema_decay"),
        ({"cooldown_epochs": 1}, "needs pseudo-labels"),
        ({"cooldown_epochs": 10, "pseudo_from": ["a"]}, "fewer than epochs"),
    ],
)
def test_a_contradiction_is_refused_with_its_reason(words, reason):
    (problem,) = problems_of(build_settings, Config, words, "drawn")
    assert reason in problem


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # "another" is no number
def test_the_hash_follows_every_setting_that_trains_and_nothing_else():
    base = settings_hash(Config())
    changes = {key: settings_hash(Config().model_copy(update={key: "another"})) for key in Config.model_fields}
    untrained = {"cache", "cache_folder", "workers", "save_minutes", "save_batches", "tta", "tracker"}
    assert {key for key, changed in changes.items() if changed == base} == untrained
    assert len(base) == 64


def test_a_difference_is_written_as_overrides():
    changed = Config(lr=1e-3, tta="d4")
    assert difference(changed, Config()) == "lr=0.001 tta=d4"
    assert difference(changed, Config(), but=["tta"]) == "lr=0.001"
    assert difference(Config(), Config()) == ""

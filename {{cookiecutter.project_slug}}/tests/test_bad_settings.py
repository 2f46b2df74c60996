"""competition.yaml and configs/*.yaml with one thing wrong: a line that names the file, and the key or the line."""

import pytest

from kfold.config import Config, load_competition, load_config
from kfold.errors import UserError
from kfold.settings import build_settings, settings_to_yaml

FACTS = "project_name: x\ntask: multiclass\ntarget_columns: [label]\n"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

# name: (text, parts of the line); the text stands after what a sound file holds
FACTS_CASES = {
    "unknown key": ("num_fold: 5", ("unknown key 'num_fold'", "did you mean num_folds?")),
    "key in capitals": ("Metric: auto", ("unknown key 'Metric'", "did you mean metric?")),
    "key unlike any": ("zzz: 1", ("unknown key 'zzz'", "known keys: project_name, ")),
    "key that is a number": ("5: x", ("competition.yaml: 5: keys should be strings",)),
    "text for a number": ("num_folds: five", ("num_folds: input should be a valid integer, not 'five'",)),
    "fraction for a number": ("num_folds: 5.5", ("num_folds: ", "not 5.5")),
    "truth for a number": ("num_folds: true", ("num_folds: ", "not True")),
    "number for a text": ("image_suffix: 5", ("image_suffix: input should be a valid string, not 5",)),
    "list for a text": ("id_column: [a]", ("id_column: ", "not ['a']")),
    "mapping for a text": ("group_column:\n  a: b", ("group_column: ", "not {'a': 'b'}")),
    "nothing": ("metric:", ("metric: ", "not None")),
    "too few folds": ("num_folds: 1", ("num_folds: ", "greater than or equal to 2", "not 1")),
    "too many folds": ("num_folds: 21", ("num_folds: ", "less than or equal to 20", "not 21")),
    "seed below zero": ("fold_seed: -1", ("fold_seed: ", "not -1")),
    "seed of a hundred digits": ("fold_seed: " + "9" * 100, ("fold_seed: ", "valid integer")),
    "unknown scheme": ("fold_scheme: stratify", ("fold_scheme: ", "'stratified'", "not 'stratify'")),
    "unknown policy": ("bad_train_images: skip", ("bad_train_images: ", "'stop' or 'drop'")),
    "scheme without its group": ("fold_scheme: group", ("fold_scheme group needs group_column",)),
    "scheme without its time": ("fold_scheme: time", ("fold_scheme time needs time_column",)),
    "group is the target": ("group_column: label", ("column 'label' is named twice",)),
    "group is the id": ("group_column: image_id", ("column 'image_id' is named twice",)),
    "no id column": ("id_column: ''", ("id_column: ", "at least 1 character")),
    "no name for a file": ("train_csv: ''", ("train_csv: '' cannot name a file",)),
    "NUL in a name": ('test_csv: "a\\0b"', (r"test_csv: 'a\x00b' cannot name a file",)),
    "half a character": ('metric: "\\ud800"', (r"metric: '\ud800' holds half a character",)),
    "key twice": ("metric: auto\nmetric: auto", ("line 5: ", "key 'metric' is given twice")),
    "key twice in quotes": ('"task": binary', ("line 4: ", "key 'task' is given twice")),
    "tab": ("metric:\tauto", ("line 4: ", "'\\t' that cannot start any token")),
    "bracket not closed": ("metric: [auto\nnum_folds: 5", ("line 5: ", "starts on line 4")),
    "quote not closed": ("metric: 'auto\nnum_folds: 5", ("starts on line 4",)),
    "two colons": ("metric: auto: x", ("line 4: ", "mapping values are not allowed here")),
    "no colon": ("metric auto", ("line 4: ", "could not find expected ':'")),
    "wrong indent": ("metric: auto\n  num_folds: 5", ("line 5: ", "mapping values are not allowed")),
    "percent sign first": ("metric: %auto", ("line 4: ", "'%' that cannot start any token")),
    "at sign first": ("metric: @auto", ("line 4: ", "'@' that cannot start any token")),
    "star first": ("image_suffix: *.png", ("line 4: ", "text with signs goes in quotes")),
    "exclamation mark first": ("metric: !auto", ("line 4: ", "goes into quotes")),
    "code": ("metric: !!python/object/apply:os.getcwd []", ("line 4: ", "goes into quotes")),
    "time that is none": ("metric: !!timestamp now", ("line 4: ", "goes into quotes")),
    "anchor": ("metric: &auto x", ("line 4: ", "goes into quotes")),
    "merged keys": ("<<: 5", ("unknown key '<<'",)),
    "aliases that grow without end": (BOMB, ("line 4: ", "goes into quotes")),
    "brackets without end": ("metric: " + "[" * 5000, ("brackets within brackets",)),
    "bell": ("metric: \x07", ("line 4: ", r"holds the character '\x07'")),
    "second document": ("---\nmetric: auto", ("line 4: ", "another document")),
    "unhashable key": ("[a]: 5", ("line 4: ", "unhashable key")),
}
WHOLE_FACTS = {
    "empty": (b"", ("'task' is missing: add a line `task: ...`",)),
    "only a remark": (b"# later\n", ("'project_name' is missing",)),
    "a list": (b"- task\n", ("must hold `key: value` lines, not a list",)),
    "words": (b"multiclass\n", ("must hold `key: value` lines, not a str",)),
    "Latin-1": (FACTS.replace("x", "caf\xe9").encode("latin-1"), ("not UTF-8 text (byte 17): save it as UTF-8",)),
    "UTF-16": (FACTS.encode("utf-16"), ("not UTF-8 text (byte 0)",)),
    "NUL": (FACTS.encode() + b"\0", ("line 4: ", r"holds the character '\x00'")),
    "a folder": (None, ("is a folder or a device: put",)),
    "two targets": (FACTS.replace("label", "a, b").encode(), ("task multiclass has one target column, not 2",)),
    "no target": (FACTS.replace("label", "").encode(), ("target_columns: an empty list", ": name one")),
    "target is a text": (FACTS.replace("[label]", "label").encode(), ("target_columns: ", "valid list, not 'label'")),
    "target is a number": (FACTS.replace("label", "5").encode(), ("target_columns.0: ", "valid string, not 5")),
    "target named as in folds.csv": (FACTS.replace("label", "fold").encode(), ("'fold' has the name of a column",)),
    "unknown task": (FACTS.replace("multiclass", "segmentation").encode(), ("task: ", "not 'segmentation'")),
}
CONFIG_CASES = {
    "unknown key": (["learning_rate=1"], ("unknown key 'learning_rate'",)),
    "key misspelt": (["epoch=1"], ("unknown key 'epoch': did you mean epochs?",)),
    "text for a number": (["lr=fast"], ("lr: input should be a valid number, not 'fast'",)),
    "decimal comma": (["lr=0,001"], ("lr: ", "not '0,001'")),
    "size with a unit": (["image_size=224px"], ("image_size: ", "not '224px'")),
    "fraction of an epoch": (["epochs=1.5"], ("epochs: ", "not 1.5")),
    "no epochs": (["epochs=0"], ("epochs: ", "greater than or equal to 1")),
    "rate of zero": (["lr=0"], ("lr: ", "greater than 0")),
    "rate without end": (["lr=.inf"], ("lr: ", "finite")),
    "rate that is no number": (["lr=.nan"], ("lr: ", "not nan")),
    "rate too large to write": (["lr=1e999"], ("lr: ", "finite")),
    "batch of one": (["batch_size=1"], ("batch_size: ", "greater than or equal to 2")),
    "size of four pixels": (["image_size=4"], ("image_size: ", "greater than or equal to 8")),
    "share above one": (["drop_rate=1"], ("drop_rate: ", "less than 1")),
    "yes for true": (["hflip=yes"], ("hflip: input should be a valid boolean, not 'yes'",)),
    "1 for true": (["hflip=1"], ("hflip: ", "not 1")),
    "True for true": (["hflip=True"], ("hflip: ", "not 'True'")),
    "unknown optimizer": (["optimizer=adm"], ("optimizer: ", "'adamw'", "not 'adm'")),
    "unknown views": (["tta=flip"], ("tta: ", "not 'flip'")),
    "more cycles than epochs": (["schedule=cosine_cycles", "num_cycles=30"], ("num_cycles=30: more cycles than",)),
    "cycles without their schedule": (["num_cycles=3"], ("num_cycles=3 needs schedule=cosine_cycles",)),
    "least rate above the rate": (["min_lr=1"], ("min_lr=1.0 is above lr=",)),
    "average that is not made": (["select=swa"], ("select=swa needs swa_from_epoch",)),
    "average after the end": (["swa_from_epoch=99"], ("swa_from_epoch=99 comes after the last epoch",)),
    "a run that leads out": (["pseudo_from=../x"], ("pseudo_from: '../x' is no name of a run",)),
    "a run twice": (["distill_from=[a, a]"], ("distill_from: a is named twice",)),
    "weights without use": (
        ["pretrained=false", "pretrained_path=x.pth"],
        ("pretrained_path is given but pretrained",),
    ),
    "consistency without a teacher": (["consistency_weight=1"], ("consistency_weight=1.0 needs ema_decay",)),
    "value of many letters": (["lr=" + "x" * 10_000], ("lr: ", "not 'xxxxxxxxxxxx...xxxx")),
}


def problems_of(call, *arguments):
    with pytest.raises(UserError) as refusal:
        call(*arguments)
    for line in refusal.value.problems:
        assert line.isprintable()
        assert len(line) < 2100
    return refusal.value.problems


@pytest.mark.parametrize("name", FACTS_CASES)
def test_each_fault_of_the_facts_names_the_file_and_the_key_or_the_line(name, tmp_path):
    text, expected = FACTS_CASES[name]
    (tmp_path / "competition.yaml").write_bytes((FACTS + text + "\n").encode())
    (line,) = problems_of(load_competition, tmp_path / "competition.yaml")
    assert "competition.yaml: " in line
    for part in expected:
        assert part in line


@pytest.mark.parametrize("name", WHOLE_FACTS)
def test_each_file_that_is_not_one_of_facts_is_named(name, tmp_path):
    content, expected = WHOLE_FACTS[name]
    path = tmp_path / "competition.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    lines = problems_of(load_competition, path)
    assert all("competition.yaml: " in line for line in lines)
    assert any(all(part in line for part in expected) for line in lines), lines


@pytest.mark.parametrize("name", CONFIG_CASES)
@pytest.mark.parametrize("place", ["file", "words"])
def test_each_fault_of_an_experiment_names_its_key_in_the_file_and_as_an_override(name, place, tmp_path):
    words, expected = CONFIG_CASES[name]
    path = tmp_path / "baseline.yaml"
    path.write_text("".join(f"{word.replace('=', ': ', 1)}\n" for word in words) if place == "file" else "")
    (line,) = problems_of(load_config, path, words if place == "words" else [])
    assert "/baseline.yaml" in line
    for part in expected:
        assert part in line


def test_a_file_that_is_no_folder_or_has_an_endless_name_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    assert "no such file" in problems_of(load_config, tmp_path / "x" / "y.yaml")[0]
    assert "cannot be read" in problems_of(load_config, tmp_path / ("y" * 300))[0]


def test_settings_that_share_a_list_are_written_without_aliases():
    runs = ["a", "b"]
    config = build_settings(Config, {"pseudo_from": runs, "distill_from": runs}, "drawn")
    assert "&" not in settings_to_yaml(config)


def test_the_cases_are_many(figures):
    number = len(FACTS_CASES) + len(WHOLE_FACTS) + 2 * len(CONFIG_CASES)
    assert number >= 30
    figures(f"{number} bad settings named with their file, and key or line")

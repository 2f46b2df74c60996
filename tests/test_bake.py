"""What answers become: the files of a bake, and the answers in them, unchanged."""

import os
import shutil
import socket
import subprocess
import tomllib

import pytest
import yaml
from cookiecutter.utils import create_env_with_context
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jinja2 import FileSystemLoader

from conftest import DEFAULTS, PROJECT, QUESTIONS, TEMPLATE, files_below, tracked_files
from kfold.config import load_competition, load_config

CHOICES = [
    (key, value) for key, values in QUESTIONS.items() if isinstance(values, list) and key[0] != "_" for value in values
]
FITTING = {"f1_samples": "multilabel", "f_beta_micro": "multilabel", "rmse": "regression", "mae": "regression"}
FITTING |= {"r2": "regression", "spearman": "regression"}
ODD_NAMES = [
    "it's",
    'the "best" one',
    "# not a comment",
    "key: value",
    "back\\slash \\n \\",
    "emoji 😀 👩‍👩‍👧",
    "汉字 データ ελληνικά عربي",
    "no",
    "null",
    "1e-3",
    "- item",
    "{a: b}, [c]",
    "100% & <b>bold</b>",
    "  spaces around  ",
    "''",
    "{{ 7 * 7 }}",
    "{% raw %} {# gone? #}",
    "$(touch canary) `touch canary`",
]


def test_defaults_bake_the_tracked_files_and_nothing_else(bake):
    assert files_below(bake()) == tracked_files(PROJECT)


def test_caches_of_tests_run_in_place_are_not_baked(bake, tmp_path):
    copy = tmp_path / "template"
    shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build"))
    for cache in ["__pycache__", "kfold/__pycache__", ".hypothesis", ".ruff_cache/0.1", "x.egg-info"]:
        folder = copy / PROJECT.name / cache
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "constants.txt").write_text("{{ undefined }} {% broken")
    assert files_below(bake(copy)) == tracked_files(PROJECT)


def test_a_script_stays_executable(bake):
    assert os.access(bake() / "pipeline.sh", os.X_OK)


@pytest.mark.parametrize(("key", "value"), CHOICES)
def test_every_choice_bakes_settings_that_load(bake, small_template, key, value):
    answers = {key: value}
    if key == "metric":
        answers["task"] = FITTING.get(value, "multiclass")
    project = bake(small_template, **answers)
    facts = load_competition(project / "competition.yaml")
    if key in ("task", "metric"):
        assert getattr(facts, key) == value
    configs = {path.stem: load_config(path) for path in (project / "configs").glob("*.yaml")}
    recipes = {"fast_baseline", "bag_of_tricks", "strong_finish"}
    assert {"baseline", "resnet18", "efficientnet_b0"} | recipes == set(configs)
    if key == "backbone":
        assert configs["baseline"].backbone == value
    if key == "start_with":
        assert (configs["baseline"].image_size, configs["baseline"].pretrained) == {
            "demo": (32, False),
            "competition": (224, True),
        }[value]


def test_no_template_braces_are_left_in_any_baked_file(bake):
    project = bake()
    for name in tracked_files(PROJECT):
        text = (project / name).read_text(encoding="utf-8")
        assert "cookiecutter." not in text, name
        assert "{{" not in text, name
        assert "{%" not in text, name


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_come_back_unchanged(bake, small_template, output, name):
    project = bake(
        small_template,
        project_name=name,
        project_slug="odd",
        author_name=name,
        id_column=f"{name} id",
        target_columns=name.replace(",", " "),
        group_column=f"{name} group",
    )
    facts = load_competition(project / "competition.yaml")
    assert facts.project_name == name
    assert facts.id_column == f"{name} id"
    assert facts.target_columns == (name.replace(",", " ").strip(),)
    assert facts.group_column == f"{name} group"
    assert name in (project / "README.md").read_text(encoding="utf-8")
    assert name in (project / "LICENSE").read_text(encoding="utf-8")
    pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["authors"] == [{"name": name}]
    assert name in (project / "competition.yaml").read_text(encoding="utf-8").replace("''", "'") or "'" in name
    assert not list(output.parent.rglob("canary*"))


def test_target_columns_become_a_list(bake):
    project = bake(task="multilabel", target_columns=" red, dark blue ,#1")
    assert load_competition(project / "competition.yaml").target_columns == ("red", "dark blue", "#1")


def rendered(name: str, answers: dict) -> str:
    """One file of the template with these answers: as a bake renders it, without the bake's half second."""
    context = {"cookiecutter": answers}
    environment = create_env_with_context(context)
    environment.loader = FileSystemLoader(PROJECT)
    return environment.get_template(name).render(**context)


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(("project_name", "author_name", "id_column", "target_columns"), TEXT)))
def test_accepted_text_always_comes_back_unchanged(hook, tmp_path_factory, odd):
    answers = {**DEFAULTS, "task": "multilabel", **odd}
    if hook.find_problems(answers):
        return
    path = tmp_path_factory.getbasetemp() / "competition.yaml"
    path.write_text(rendered("competition.yaml", answers), encoding="utf-8")
    facts = load_competition(path)
    assert facts.project_name == odd["project_name"]
    assert facts.id_column == odd["id_column"]
    assert list(facts.target_columns) == [name.strip() for name in odd["target_columns"].split(",")]
    pyproject = tomllib.loads(rendered("pyproject.toml", answers))
    assert pyproject["project"]["authors"] == [{"name": odd["author_name"]}]


@pytest.mark.parametrize("start_with", QUESTIONS["start_with"])
def test_the_last_words_echo_the_answers_and_five_commands(bake, capfd, start_with):
    project = bake(start_with=start_with, project_name="Zoë's 汉字")
    text = capfd.readouterr().out
    assert "Zoë's 汉字" in text
    for key in QUESTIONS:
        assert key.startswith("_") or f"  {key} " in text, key
    commands = [line.split() for line in text.partition("Next:\n")[2].splitlines() if line]
    assert [command[0] for command in commands[:2]] == ["cd", "make"]
    assert len(commands) == 5
    for command in commands:
        script = command[1] if command[0] == "python" else command[0]
        assert not script.endswith((".py", ".sh")) or (project / script).exists()


def test_a_bake_is_a_fresh_git_repository(bake):
    project = bake()
    git = ["git", "-C", str(project)]
    assert subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True).stdout.strip() == str(
        project.resolve()
    )
    assert subprocess.run([*git, "log"], capture_output=True).returncode != 0


def test_git_of_a_running_hook_is_left_alone(bake, tmp_path, monkeypatch):
    """Git sets GIT_DIR for its hooks; a bake that a commit hook starts must not work on that repository."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    project = bake()
    assert (project / ".git").is_dir()
    assert not (tmp_path / "other").exists()


def test_baking_works_without_git(bake, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    project = bake()
    assert not (project / ".git").exists()
    assert (project / "README.md").exists()


def test_an_existing_folder_is_kept(bake, output):
    (output / "digits-demo").mkdir()
    (output / "digits-demo" / "mine.txt").write_text("mine")
    with pytest.raises(Exception, match="already exists"):
        bake()
    assert files_below(output) == {"digits-demo/mine.txt"}


def test_the_unrendered_project_file_is_toml():
    assert tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]


def test_the_defaults_are_the_ones_the_program_has(bake):
    """competition.yaml spells out the defaults of kfold/config.py; the two must not drift apart."""
    project = bake()
    facts = load_competition(project / "competition.yaml")
    given = yaml.safe_load((project / "competition.yaml").read_text(encoding="utf-8"))
    assert set(given) == set(type(facts).model_fields)
    defaults = {key: field.default for key, field in type(facts).model_fields.items() if not field.is_required()}
    assert {key: getattr(facts, key) for key in defaults} == defaults


def test_the_templates_tests_run_without_a_network():
    with pytest.raises(OSError, match="tests run without a network"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)

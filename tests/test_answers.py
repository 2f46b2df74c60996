"""Bad answers: refused in one sentence, nothing executed, nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException
from cookiecutter.utils import create_env_with_context

from conftest import DEFAULTS, PROJECT, QUESTIONS, TEMPLATE, files_below
from kfold.config import FOLDS_COLUMNS, Competition
from kfold.errors import UserError
from kfold.metrics import METRICS, resolve_metric

PYTHON_CODE = "__import__('pathlib').Path('CANARY').touch()"
JINJA_CODE = "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"
HOSTILE = [  # CANARY becomes a path that nobody may create
    ("project_slug", "a/b"),
    ("project_slug", "a/b/c/d"),
    ("project_slug", "../beside"),
    ("project_slug", "../../x/y"),
    ("project_slug", ".."),
    ("project_slug", "."),
    ("project_slug", "CANARY"),
    ("project_slug", "a\\b"),
    ("project_slug", "my project"),
    ("project_slug", "Digits"),
    ("project_slug", "-rf"),
    ("project_slug", "con"),
    ("project_slug", ""),
    ("project_slug", "x" * 300),
    ("project_slug", "naïve"),
    ("project_slug", f"x'; {PYTHON_CODE}; '"),
    ("project_slug", f'x"""; {PYTHON_CODE}; """'),
    ("project_slug", f"x\n{PYTHON_CODE}\n"),
    ("project_slug", "$(touch CANARY)"),
    ("project_slug", "`touch CANARY`"),
    ("project_slug", "x; touch CANARY"),
    ("project_slug", JINJA_CODE),
    ("project_name", ""),
    ("project_name", "two\nlines"),
    ("project_name", f'"""\n{PYTHON_CODE}\nr"""'),
    ("project_name", "tab\there"),
    ("project_name", "nul\0"),
    ("project_name", "line\u2028separator"),
    ("project_name", "half \ud83d"),
    ("author_name", "bell\x07"),
    ("author_name", f"{JINJA_CODE}\n"),
    ("num_folds", "abc"),
    ("num_folds", "1"),
    ("num_folds", "21"),
    ("num_folds", "5.0"),
    ("num_folds", "-5"),
    ("num_folds", "05"),
    ("num_folds", "５"),
    ("num_folds", ""),
    ("num_folds", "5 # five"),
    ("num_folds", PYTHON_CODE),
    ("num_folds", JINJA_CODE),
    ("id_column", ""),
    ("id_column", " "),
    ("target_columns", ""),
    ("target_columns", "label,"),
    ("target_columns", "label, label"),
    ("target_columns", "fold"),
    ("target_columns", "image_id"),
    ("target_columns", "red, blue"),
    ("group_column", "label"),
    ("group_column", "a\rb"),
    ("metric", "rmse"),
    ("metric", "f1_samples"),
    ("kaggle_competition", "kaggle.com/competitions/digits"),
    ("kaggle_competition", "digits; touch CANARY"),
    ("kaggle_competition", "-p"),
    ("image_suffix", "../x.png"),
    ("image_suffix", "/.png"),
    ("image_suffix", "\\.png"),
    ("image_suffix", "png"),
    ("image_suffix", ".png # comment"),
]


def with_canary(value: str, canary: Path) -> str:
    return value.replace("CANARY", str(canary))


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_bad_answer_is_refused_by_name_and_leaves_nothing(bake, tmp_path, key, value):
    with pytest.raises(FailedHookException) as refusal:
        bake(**{key: with_canary(value, tmp_path / "canary")})
    assert_one_sentence(str(refusal.value), key)
    assert files_below(tmp_path) == {"outer/output", "settings/config.yaml"}


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_the_rendered_hook_refuses_too(tmp_path, key, value):
    """The second line, for `cookiecutter --replay`: there nothing is asked, and only the hook sees the answers."""
    context = {"cookiecutter": {**DEFAULTS, key: with_canary(value, tmp_path / "canary")}}
    source = (TEMPLATE / "hooks" / "pre_gen_project.py").read_text(encoding="utf-8")
    script = tmp_path / "hook.py"
    script.write_text(create_env_with_context(context).from_string(source).render(**context), encoding="utf-8")
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert (result.returncode, result.stdout) == (1, "")
    assert_one_sentence(result.stderr.strip().removeprefix("error: "), key)
    assert files_below(tmp_path) == {"hook.py"}


def assert_one_sentence(message: str, key: str) -> None:
    assert len(message.splitlines()) == 1, message
    assert key in message.partition(":")[0]
    assert 20 < len(message) < 400


def test_the_answer_itself_is_in_the_message(hook):
    assert "'a/b'" in hook.find_problems({**DEFAULTS, "project_slug": "a/b"})[0]
    assert "'5.0'" in hook.find_problems({**DEFAULTS, "num_folds": "5.0"})[0]
    assert hook.find_problems(DEFAULTS) == []


def test_all_bad_answers_are_named_at_once(bake):
    with pytest.raises(FailedHookException) as refusal:
        bake(project_slug="a/b", num_folds="x", metric="rmse", image_suffix="png")
    keys = [line.partition(":")[0] for line in str(refusal.value).splitlines()]
    assert keys == ["project_slug", "metric", "image_suffix", "num_folds"]


def test_the_command_prints_the_sentence_and_no_traceback(tmp_path, output, settings):
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--config-file", str(settings)]
    result = subprocess.run(
        [*command, "--output-dir", str(output), "project_slug=../x"], capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 1
    assert (result.stdout + result.stderr).splitlines() == [
        "project_slug: '../x' cannot name the folder: use a-z, 0-9, - and _, at most 100, as in my-project"
    ]
    assert files_below(tmp_path) == {"outer/output", "settings/config.yaml"}


def test_a_choice_that_does_not_exist_is_refused(bake, output):
    with pytest.raises(ValueError, match="segmentation provided for choice variable task"):
        bake(task="segmentation")
    assert list(output.iterdir()) == []


def test_a_project_can_be_named_in_any_script(bake):
    assert bake(project_name="😀").name == "kaggle-project"
    assert bake(project_name="  Büro -- 汉字!! ").name == "buro-yi-zi"
    assert len(bake(project_name="long name " * 50).name) <= 60


def test_the_hook_knows_the_metrics_of_each_task(hook):
    for task, names in hook.METRICS.items():
        assert names.split() == [name for name, metric in METRICS.items() if task in metric.tasks]
        for name in QUESTIONS["metric"]:
            try:
                resolve_metric(name, task)
            except UserError:
                assert hook.check_metric(task, name), (task, name)
            else:
                assert not hook.check_metric(task, name), (task, name)
    assert QUESTIONS["metric"] == ["auto", *METRICS]
    assert list(hook.METRICS) == QUESTIONS["task"]


def test_the_hook_knows_the_columns_of_the_folds_file(hook):
    assert tuple(hook.FOLDS_COLUMNS) == FOLDS_COLUMNS


def test_every_question_has_a_prompt_and_every_choice_a_label():
    prompts = QUESTIONS["__prompts__"]
    assert list(prompts) == list(DEFAULTS)
    for key, prompt in prompts.items():
        if isinstance(QUESTIONS[key], list):
            assert list(prompt) == ["__prompt__", *QUESTIONS[key]]


def test_every_answer_lands_in_a_fact_or_another_file():
    elsewhere = {"project_slug", "author_name", "start_with", "backbone"}
    assert set(DEFAULTS) - elsewhere <= set(Competition.model_fields)
    assert PROJECT.name == "{{cookiecutter.project_slug}}"

"""Bad answers: refused in one sentence, nothing executed, nothing left behind."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException
from cookiecutter.utils import create_env_with_context

from conftest import DEFAULTS, PROJECT, QUESTIONS, TEMPLATE, files_below, tracked_files
from kfold.config import FOLDS_COLUMNS, Competition, load_competition
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


TRICKS = [  # given to every question that takes text; each is refused, or comes back as it is
    # Jinja
    "{{ 7 * 7 }}",
    JINJA_CODE,
    "{% for x in (1, 2) %}x{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% raw %}",
    "{# gone #}",
    "{{ cookiecutter.author_name }}",
    "}} %} #}",
    "{{",
    # Python
    PYTHON_CODE,
    f"'; {PYTHON_CODE} #",
    '"""',
    "'''",
    "back\\slash\\",
    "\\x41 \\u0041 \\N{BULLET} \\n",
    # shell
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY",
    "| tee CANARY",
    "&& touch CANARY",
    "> CANARY",
    "-rf",
    "--output-dir=CANARY",
    "$HOME %PATH% ~ * ? !!",
    # YAML and TOML
    "a: b",
    "# comment",
    "- item",
    "!!python/object/apply:os.system ['touch CANARY']",
    "&anchor",
    "*alias",
    "| ",
    "[a]",
    "{a: 1}",
    "yes",
    "null",
    "1e3",
    "---",
    "'",
    '"',
    "''",
    '"]\\n[tool.pytest]',
    "%TAG @ `",
    # HTML, Markdown, spreadsheets
    "<script>alert(1)</script>",
    "</title><!-- &amp; -->",
    "[x](javascript:alert(1)) ![x](//example.com)",
    "=cmd|' /C calc'!A0",
    # Unicode
    "\u202eright to left",
    "zero\u200bwidth\u2060",
    "e\u0301 \ufb01 \U0001d54f \uff0e\uff0e\uff0f",
    "\ufeffbyte order mark",
    "next\x85line",
    "half \ud83d",
    "\U0001f600" * 900,
    # lines and control characters
    "two\nlines",
    "carriage\rreturn",
    "nul\0",
    "\x1b[2Jclears the screen",
    "line\u2028separator",
    # paths and names of Windows
    "../../CANARY",
    "CANARY",
    "..",
    "C:\\CANARY",
    "\\\\server\\share",
    "con",
    "NUL.txt",
    # length
    "x" * 1980,
    "x" * 2001,
    "",
    " ",
    "  spaces around  ",
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


TEXT_QUESTIONS = [key for key in DEFAULTS if not isinstance(QUESTIONS[key], list)]
NAMES = ["id_column", "target_columns", "group_column"]  # these must differ


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_every_trick_is_refused_or_comes_back_as_it_is_and_runs_nothing(
    bake, small_template, hook, tmp_path, capfd, trick
):
    trick = with_canary(trick, tmp_path / "canary")
    refused = {key: hook.find_problems({**DEFAULTS, key: trick}) for key in TEXT_QUESTIONS}
    for key, problems in refused.items():
        for problem in problems:
            assert_one_sentence(problem, key)
    bad = sorted(key for key, problems in refused.items() if problems)
    with pytest.raises(FailedHookException):
        bake(**{bad[len(trick) % len(bad)]: trick})  # one of them, all the way
    assert files_below(tmp_path) == {"outer/output", "settings/config.yaml"}
    taken = {key: trick for key in TEXT_QUESTIONS if not refused[key]}
    for key in [key for key in NAMES if key in taken][1:]:
        taken[key] += f" {key}"
    taken.setdefault("project_slug", "tricked")
    template = TEMPLATE if os.environ.get("RELIABILITY") == "full" else small_template
    project = bake(template, **taken)
    assert_comes_back(project, {**DEFAULTS, **taken}, template / PROJECT.name)
    assert "Traceback" not in "".join(capfd.readouterr())
    elsewhere = {path for path in files_below(tmp_path) if not path.startswith(f"outer/output/{project.name}/")}
    assert {path for path in elsewhere if not path.startswith("settings/replay/")} == {"settings/config.yaml"}


def assert_comes_back(project: Path, answers: dict[str, str], source: Path = PROJECT) -> None:
    """Every answer is where it belongs, and no file of code differs from the template's, which are in `source`."""
    facts = load_competition(project / "competition.yaml")
    for key in ("project_name", "kaggle_competition", "id_column", "group_column", "image_suffix"):
        assert getattr(facts, key) == answers[key], key
    assert facts.target_columns == tuple(name.strip() for name in answers["target_columns"].split(","))
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["authors"] == [{"name": answers["author_name"]}]
    assert answers["project_name"] in (project / "README.md").read_text(encoding="utf-8")
    assert answers["author_name"] in (project / "LICENSE").read_text(encoding="utf-8")
    names = tracked_files(PROJECT) if source == PROJECT else files_below(source)
    assert files_below(project) == names
    for name in names:
        if name.endswith((".py", ".sh", "Makefile", ".txt")):
            assert (project / name).read_bytes() == (source / name).read_bytes(), name


@pytest.mark.parametrize("key", TEXT_QUESTIONS)
def test_the_templates_own_code_is_no_answer(bake, tmp_path, key):
    with pytest.raises(FailedHookException, match=f"^{key}: .* give plain text"):
        bake(**{key: QUESTIONS["__checked"]})
    assert files_below(tmp_path) == {"outer/output", "settings/config.yaml"}


@pytest.mark.parametrize("key", [key for key in DEFAULTS if isinstance(QUESTIONS[key], list)])
@pytest.mark.parametrize("trick", [JINJA_CODE, "$(touch CANARY)", "../x", "{{ 7 * 7 }}", "con", "two\nlines", ""])
def test_a_choice_takes_none_but_its_own_values(bake, tmp_path, key, trick):
    with pytest.raises((ValueError, FailedHookException), match=key):
        bake(**{key: with_canary(trick, tmp_path / "canary")})
    assert files_below(tmp_path) == {"outer/output", "settings/config.yaml"}


def test_what_is_typed_at_the_prompts_is_text_as_well(tmp_path, output, settings):
    typed = {"project_name": with_canary(JINJA_CODE, tmp_path / "canary"), "author_name": "{{ 7 * 7 }}"}
    answers = {**dict.fromkeys(DEFAULTS, ""), **typed, "project_slug": "typed"}  # an empty line takes the default
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--config-file", str(settings)]
    done = subprocess.run(
        [*command, "--output-dir", str(output)],
        input="\n".join(answers.values()) + "\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert_comes_back(output / "typed", {**DEFAULTS, **typed})
    assert not (tmp_path / "canary").exists()


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
        "project_slug: '../x' cannot name a folder: use a-z, 0-9, - and _, at most 100, as in my-project"
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

"""Check the answers before cookiecutter creates a folder, and keep it from rendering them as templates.

Cookiecutter (2.7.1) creates the project's folder before its first hook runs, so a refused slug such as `a/b` would
leave `a` behind; and it renders whatever is given on the command line: `project_name="{{ 7 * 7 }}"` would become 49,
and an expression can run commands. This Jinja extension, named in cookiecutter.json, mends both. The rules themselves
are in hooks/pre_gen_project.py.
"""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment
from jinja2.ext import Extension

TEMPLATE = Path(__file__).parent


class CheckAnswers(Extension):
    def __init__(self, environment: Environment):
        super().__init__(environment)
        environment.filters["check_answers"] = check_answers
        self.own_sources = template_sources()

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """A source without a file name is one of the template's own, or an answer: that stays the text it is."""
        is_answer = name is None and source not in self.own_sources
        return "{{ " + json.dumps(source, ensure_ascii=False) + " }}" if is_answer and "{" in source else source


def template_sources() -> set[str]:
    """What cookiecutter renders from memory: values of cookiecutter.json, the folder's name, the hooks."""
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    folders = {folder.name for folder in TEMPLATE.glob("{{*")}
    hooks = {hook.read_text(encoding="utf-8") for hook in TEMPLATE.glob("hooks/*.py")}
    return {value for value in questions.values() if isinstance(value, str)} | folders | hooks


def check_answers(answers: dict) -> str:
    """Refuse bad answers by the one error that cookiecutter prints without a traceback."""
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    if missing := [key for key in questions if key[0] != "_" and key not in answers]:
        # Cookiecutter asks for this check when all is answered; before that, the text of this check is the answer.
        raise FailedHookException(f"{missing[0]}: the answer is a piece of the template's own code: give plain text")
    path = TEMPLATE / "hooks" / "pre_gen_project.py"
    spec = spec_from_file_location("pre_gen_project", path)
    hook = module_from_spec(spec)
    spec.loader.exec_module(hook)
    if problems := hook.find_problems(answers):
        raise FailedHookException("\n".join(problems))
    return "yes"

"""What README and docs point at exists: files, commands, settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from diffclip import cli
from diffclip.config import Evaluation, Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for recipe in re.findall(r"recipes/[\w/]+\.toml", text):
        assert (ROOT / recipe).exists(), recipe


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    for command in re.findall(r"^\s*(?:\.venv/bin/)?diffclip (\w+)", page.read_text(), flags=re.MULTILINE):
        assert command in cli.COMMANDS, command
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^\s*make (\w+)", page.read_text(), flags=re.MULTILINE):
        assert target in targets, target


def test_every_setting_of_a_recipe_is_in_its_reference():
    text = (ROOT / "docs" / "recipes.md").read_text()
    for section in dataclasses.fields(Recipe):
        parts = dataclasses.fields(section.type) if dataclasses.is_dataclass(section.type) else []
        for setting in [section.name] if not parts else [f.name for f in parts]:
            assert setting in text, f"{section.name}.{setting}"
    assert all(f.name in text for f in dataclasses.fields(Evaluation))


def test_the_architecture_in_contributing_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for module in (ROOT / "src" / "diffclip").rglob("*.py"):
        if module.name not in ("__init__.py", "__main__.py"):
            assert module.name in text, module

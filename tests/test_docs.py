"""What README and docs say exists: files, modules, tests, commands, settings; and that they can be read."""

import dataclasses
import importlib
import re
import sys

import pytest
import tomli

from diffclip import cli
from diffclip.config import Evaluation, Recipe
from pages import PAGES, ROOT, anchor, code_blocks, lines_of, paragraphs, sentences

WIDTH = 120
LONGEST_SENTENCE = 40  # words; 25 is what we aim at
PACKAGE = ROOT / "src" / "diffclip"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            assert heading in [anchor(text) for text in headings], target


@each_page
def test_files_modules_and_tests_exist(page):
    text = page.read_text()
    for recipe in re.findall(r"recipes/[\w/]+\.toml", text):
        assert (ROOT / recipe).exists(), recipe
    for path in re.findall(r"`([a-z_./-]+/[a-z_-]+\.(?:py|cpp|toml))`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "src", PACKAGE)), path
    for name in re.findall(r"`(test_\w{20,})`", text):
        assert name in _tests(), name
    for name in re.findall(r"`(diffclip(?:\.\w+)+)", text):
        assert _resolves(name), name


def _tests():
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }


def _resolves(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@each_page
def test_commands_and_targets_exist(page):
    code = "\n".join(code_blocks(page))
    inline = " ".join(re.findall(r"`([^`]*)`", page.read_text()))
    for command in re.findall(r"(?:^|[\n;`] *)(?:\.venv/bin/)?diffclip ([a-z]\w*)", f"{code}\n{inline}"):
        assert command in cli.COMMANDS, command
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^\s*make (\w+)", code, flags=re.MULTILINE):
        assert target in targets, target


def test_every_setting_of_a_recipe_is_in_its_reference():
    text = (ROOT / "docs" / "recipes.md").read_text()
    for section in dataclasses.fields(Recipe):
        parts = dataclasses.fields(section.type) if dataclasses.is_dataclass(section.type) else []
        for setting in [section.name] if not parts else [f.name for f in parts]:
            assert setting in text, f"{section.name}.{setting}"
    assert all(f.name in text for f in dataclasses.fields(Evaluation))


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((?:\.\./)?([\w.]+\.md)", (ROOT / "docs" / "index.md").read_text()))
    assert linked | {"index.md"} == {page.name for page in PAGES} | {"CHANGELOG.md"}


def test_the_layers_in_contributing_are_those_that_are_enforced():
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c.get("containers") == ["diffclip"])
    enforced = [name for layer in layers for name in layer.split(" | ")]
    block = next(b for b in code_blocks(ROOT / "CONTRIBUTING.md") if b.startswith("__main__"))
    told = [name for line in block.splitlines() for name in line.partition("   ")[0].split(", ")]
    assert told == enforced


def test_the_tree_in_contributing_is_the_tree_on_disk():
    block = next(b for b in code_blocks(ROOT / "CONTRIBUTING.md") if b.startswith("src/diffclip/\n"))
    told, folders = set(), []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            told.add("".join(folders) + name)
    on_disk = {
        f"src/diffclip/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and (path.name != "__init__.py" or path.parent == PACKAGE)
    }
    assert told == on_disk, "python docs/build.py --tree writes the tree anew"


@each_page
def test_lines_are_wrapped(page):
    for line in lines_of(page):
        alone = len(line.text.split()) <= 2 or line.text.lstrip().startswith(("|", "!["))
        assert line.code or alone or len(line.text) <= WIDTH, f"line {line.number} has {len(line.text)} characters"


@each_page
def test_sentences_are_short(page):
    long = [
        f"line {start}: {len(sentence.split())} words: {sentence}"
        for start, paragraph in paragraphs(page)
        for sentence in sentences(paragraph)
        if len(sentence.split()) > LONGEST_SENTENCE
    ]
    assert not long, "\n".join(long)


def test_the_site_opens_offline(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    build = importlib.import_module("build")
    build.build(tmp_path / "site", api=["diffclip.errors"])
    for page in PAGES:
        text = (tmp_path / "site" / f"{page.stem}.html").read_text()
        for target in re.findall(r'(?:href|src)="([^"#]+)', text):
            if target.startswith(("http", "api/")):
                continue
            assert (tmp_path / "site" / target).exists() or target.startswith(".."), target
        assert not re.search(r'(?:src|<link[^>]*href)="https?:', text), "loaded from elsewhere"
    assert "UserError" in (tmp_path / "site" / "api" / "diffclip" / "errors.html").read_text()
    sys.modules.pop("build")

"""The project's pages of documentation, and what their Markdown holds: code blocks, sentences, headings, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])


@dataclass(frozen=True)
class Line:
    """One line of a page, its number from 1, and whether it is code, fenced or indented by four spaces."""

    number: int
    text: str
    code: bool


def lines_of(page):
    """The lines of a page; the fences themselves are code."""
    found, fenced, indented, before = [], False, False, ""
    for number, text in enumerate(page.read_text().splitlines(), 1):
        fence = text.lstrip().startswith("```")
        indented = (text.startswith("    ") and (indented or not before.strip())) or (indented and not text.strip())
        found.append(Line(number, text, fenced or fence or indented))
        fenced, before = fenced != fence, text
    return found


def code_blocks(page):
    """The code of a page, a string a block."""
    blocks, current = [], []
    for line in [*lines_of(page), Line(0, "", False)]:
        if line.code and not line.text.lstrip().startswith("```"):
            current.append(line.text)
        elif any(text.strip() for text in current):
            depth = min(len(text) - len(text.lstrip()) for text in current if text.strip())
            blocks.append("\n".join(text[depth:] for text in current).strip())
            current = []
    return blocks


def paragraphs(page):
    """(line number, text) of each paragraph and list item outside code, tables and headings."""
    found, start, current = [], 0, []
    for line in [*lines_of(page), Line(0, "", False)]:
        text = line.text.strip()
        item = re.match(r"([-*]|\d+\.) ", text)
        plain = text and not line.code and not text.startswith(("|", "#", "![", "---"))
        if current and (item or not plain):
            found.append((start, " ".join(current)))
            current = []
        if plain:
            start = start if current else line.number
            current.append(text[item.end() :] if item else text)
    return found


def sentences(paragraph):
    """The sentences of a paragraph, code and formulas in it as one word each."""
    text = re.sub(r"`[^`]*`", "code", re.sub(r"\]\([^)]*\)", "]", paragraph))
    return re.split(r"(?<=[.!?])[*”\")\]]* +(?=[\[(*“\"]*[A-ZÀ-Ýλθαεσ0-9c])", text)


def anchor(heading):
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")

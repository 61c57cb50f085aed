"""POPE's questions (Li et al. 2023): where they lie, and its files of JSON lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffclip.errors import UserError
from diffclip.evaluation.datasets.registry import entry
from diffclip.reading import parse_json, read_text


@dataclass(frozen=True)
class Question:
    """A question of the benchmark: whether the image holds the object."""

    id: str
    image: str
    yes: bool
    text: str = ""


def read_questions(path: Path) -> tuple[Question, ...]:
    """The benchmark's file: JSON lines {question_id, image, text, label}. Raises UserError for another form."""
    questions = []
    for number, row in enumerate(read_rows(path), start=1):
        label = str(row.get("label", "")).strip().lower()
        if label not in ("yes", "no") or "image" not in row:
            raise UserError(
                f"{path} entry {number}: expected question_id, image, text and a label yes or no, found {keys_of(row)}"
            )
        questions.append(
            Question(str(row.get("question_id", number)), str(row["image"]), label == "yes", str(row.get("text", "")))
        )
    return tuple(questions)


def pope_labels(folder: Path) -> dict[str, Path]:
    """POPE's questions: random, popular, adversarial → file, in a folder or a clone of the project; {} for none."""
    for place in (folder, folder / "output" / "coco", folder / "coco"):
        files = {name: place / f"coco_pope_{name}.json" for name in entry("pope").images}
        if all(file.is_file() for file in files.values()):
            return files
    return {}


def keys_of(row: dict[str, Any]) -> str:
    return ", ".join(row) or "nothing"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, or of one JSON list."""
    try:
        text = read_text(path, "utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: expected JSON lines") from None
    try:
        if text.lstrip().startswith("["):
            rows = parse_json(text)
        else:
            rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is not JSON lines: {error}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected JSON objects, one a line, found {'none' if not rows else 'other values'}")
    return list(rows)

"""Names and captions that would command a terminal, end a line, or mean something to what shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import Case, encoded, written
from hostile_places import SWEEP
from hostile_recipes import MODEL, RESULT

TEXTS = {
    "an escape": "\x1b[2J\x1b]0;owned\x07",
    "a C1 control": "\x9b2J",
    "a delete": "a\x7f\x08\x08",
    "a forged line": "a\nERROR: forged",
    "a return": "a\rb",
    "a mark of direction": "\u202egnp.exe",
    "an isolate": "\u2066a\u2069",
    "a line separator": "a\u2028b",
    "half a character": "\ud800",
    "a byte": "\udcff",
    "rich's markup": "[/b][red]:smile:",
    "mathematics": r"$\frac{x$",
    "HTML": "<script>alert(1)</script>&",
    "LaTeX": r"\input{/etc/passwd}%",
    "a formula": "=HYPERLINK(1)",
    "a template": "{c} {0.__class__} %s %(x)s",
}
JPEG = encoded()
ENDS = r"(error: |skipped: |warned: |read)"


def named(text: str) -> str:
    """As a file's name: in bytes of the file system where there are such."""
    return (
        text.replace("/", "-")
        .encode("utf-8", "surrogateescape" if "\ud800" not in text else "replace")
        .decode("utf-8", "surrogateescape")
    )


def in_class(folder: Path, text: str) -> list[Any]:
    for name in (named(text), "dog"):
        written(folder, f"d/{name}/{named(text)}.jpg", JPEG)
        written(folder, f"d/{name}/{named(text)}.png", b"no image")
    return ["data", "verify", folder / "d", "--workers", "1"]


def in_folder(folder: Path, text: str) -> list[Any]:
    return ["data", "verify", folder / named(text) / "gone", "--workers", "1"]


def in_caption(folder: Path, text: str) -> list[Any]:
    written(folder, "d/x.jpg", JPEG)
    captions = {"images": [{"id": 1, "file_name": text}, {"id": 2, "file_name": "x.jpg"}]}
    captions["annotations"] = [{"image_id": i, "caption": text} for i in (1, 2, 3)]
    written(folder, "d/captions_val2017.json", json.dumps(captions))
    return ["data", "show", folder / "d", "--out", "sheet.png"]


def in_heading(folder: Path, text: str) -> list[Any]:
    written(folder, "a.csv", f'"{text}",b\n1,2\n'.encode(errors="replace"))
    return ["data", "verify", folder / "a.csv", "--workers", "1"]


def in_results(folder: Path, text: str) -> list[Any]:
    rows = [RESULT | {"dataset": text}, RESULT | {"model": text}, RESULT | {"pretrained": text, "metrics": {text: 0.5}}]
    return ["report", written(folder, "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), "--out", "r"]


def in_recipe(folder: Path, text: str) -> list[Any]:
    key = json.dumps(text).replace("\\ud800", "x").replace("\\udcff", "x")
    return ["train", written(folder, "r.toml", f"{MODEL}{key} = {key}\n"), "--dry-run"]


def in_path(folder: Path, text: str) -> list[Any]:
    return ["train", written(folder, "r.toml", MODEL), "--data.train.path", text, "--out", folder / named(text)]


def in_sweep(folder: Path, text: str) -> list[Any]:
    key = json.dumps(text).replace("\\ud800", "x").replace("\\udcff", "x")
    written(folder, "b.toml", MODEL + "[data]\nexamples = 60\n[training]\nbatch_size = 8\n")
    return ["sweep", written(folder, "s.toml", 'base = "b.toml"' + SWEEP.replace('"A"', key)), "--dry-run"]


def in_answer(folder: Path, text: str) -> list[Any]:
    question = {"question_id": text, "image": text, "text": text, "label": "yes"}
    for name in ("random", "popular", "adversarial"):
        written(folder, f"coco_pope_{name}.json", json.dumps(question) + "\n")
    answers = json.dumps({"question_id": text + "?", "text": text}) + "\n"
    return ["pope", written(folder, "random.jsonl", answers), "--labels", folder, "--out", "scores"]


PLACES: dict[str, Callable[[Path, str], list[Any]]] = {
    "class folders and images": in_class,
    "a folder": in_folder,
    "captions": in_caption,
    "a heading": in_heading,
    "results": in_results,
    "a recipe's key": in_recipe,
    "a path": in_path,
    "a variant": in_sweep,
    "an answer": in_answer,
}


def built(place: str, text: str) -> Callable[[Path], list[Any]]:
    return lambda folder: PLACES[place](folder, text)


CASES = [
    Case(f"text/{what} in {place}", "command", ENDS, built(place, text))
    for place in PLACES
    for what, text in TEXTS.items()
    if place != "results" or what in ("an escape", "a forged line", "a byte", "rich's markup", "mathematics")
]

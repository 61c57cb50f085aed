"""The numbers that the paper states, from paper.toml, as fractions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import tomli


@dataclass(frozen=True)
class PaperNumber:
    """A number of the paper and what it prints beside it, as fractions."""

    mean: float | None
    """None where only the gain is stated."""
    sd: float | None = None
    gain: float | None = None


@cache
def load() -> dict[str, Any]:
    """paper.toml as it is, in percent."""
    return tomli.loads(files("diffclip.reporting.tables").joinpath("paper.toml").read_text(encoding="utf-8"))


def groups(name: str) -> list[str]:
    """The pretrainings of which `rows` has numbers."""
    return [
        group for group in _part({"tasks": "retrieval", "shifts": "retrieval"}.get(name, name)) if group != "columns"
    ]


def rows(name: str, group: str) -> dict[str, dict[str, PaperNumber]]:
    """Model → column → number, with the columns of the tables here; empty for a pretraining that the paper lacks.

    name: "linear_probe", "few_shot", "retrieval", "seeds linear_probe", "seeds few_shot", "mmvp", "shifts", "tasks".
    """
    if name == "tasks":
        return _tasks(group)
    if name == "shifts":
        return {
            model: {"ImageNet": numbers["Zero-shot ImageNet"]} for model, numbers in rows("retrieval", group).items()
        }
    table = _part(name).get(group, {})
    if name == "mmvp":
        return {model: {"Avg.": PaperNumber(mean / 100)} for model, mean in table.items()}
    if name.startswith("seeds"):
        return {
            model: {column: PaperNumber(mean / 100, sd / 100) for column, (mean, sd) in numbers.items()}
            for model, numbers in table.items()
        }
    columns = load()["retrieval" if name == "retrieval" else "classification"]["columns"]
    gains: Mapping[str, Iterable[float | None]] = {"DiffCLIP": table.get("gains", ())}
    return {
        model: {
            column: PaperNumber(mean / 100, None, None if gain is None else gain / 100)
            for column, mean, gain in zip(columns, table[model], gains.get(model, [None] * len(columns)), strict=True)
        }
        for model in table
        if model != "gains"
    }


def _tasks(group: str) -> dict[str, dict[str, PaperNumber]]:
    """The averages of Tables 1 and 2, and of the variants the gains that the text states, added to CLIP's numbers."""
    by_model: dict[str, dict[str, PaperNumber]] = {}
    places = {
        "Linear probing": ("linear_probe", "Avg."),
        "Few-shot": ("few_shot", "Avg."),
        "Image retrieval": ("retrieval", "Image retrieval Avg."),
        "Text retrieval": ("retrieval", "Text retrieval Avg."),
        "ImageNet": ("retrieval", "Zero-shot ImageNet"),
    }
    for column, (name, place) in places.items():
        for model, numbers in rows(name, group).items():
            by_model.setdefault(model, {})[column] = numbers[place]
    for model, gains in load()["variants"].get(group, {}).items():
        baseline = {column: stated.mean for column, stated in by_model["CLIP"].items()}
        by_model.setdefault(model, {})
        for column, gain in gains.items():
            start = baseline.get(column)
            by_model[model][column] = PaperNumber(None if start is None else start + gain / 100, None, gain / 100)
    return by_model


def _part(name: str) -> dict[str, Any]:
    table = load()
    if name in ("retrieval", "mmvp", "variants"):
        return dict(table[name])
    if name.startswith("seeds "):
        return dict(table["seeds"][name.removeprefix("seeds ")])
    return dict(table["classification"][name])

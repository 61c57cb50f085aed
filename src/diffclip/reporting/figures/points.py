"""What figures over a quantity show: points by panel and line; and the same in words, for who does not see them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from diffclip.analysis.curves import Curve
from diffclip.analysis.lambda_curves import by_layer
from diffclip.reporting.families import Family, Group
from diffclip.reporting.scores import Score, Scores, Source, plain_name
from diffclip.text import percent

ATTACKED = re.compile(r"acc1/(\w+)/eps_([\d.]+)")
CORRUPTED = re.compile(r"acc1/(\w+)/(\d+)")
CORRELATED = re.compile(r"a1_a2_correlation/layer_(\d+)/(\w+)")
TOWERS = {"visual": "image tower", "text": "text tower"}
CONDITIONS = ("clean", "cluttered", "noisy")

Points = dict[float, Score]
"""x → the score there."""
Panels = dict[str, dict[str, Points]]
"""Title of a panel → name of a line → its points."""


def attacks(scores: Scores, group: Group, dataset: str) -> Panels:
    """Accuracy over ε in grey levels, a panel an attack; ε = 0 is the clean image."""
    panels: Panels = {}
    for name, at in _by_first(_matches(scores, group, dataset, "robustness", ATTACKED), place=2).items():
        for family in group.families:
            points = _points(scores, family, dataset, "robustness", {0.0: "acc1", **at})
            if len(points) > 1:
                panels.setdefault(attack_name(name), {})[family.label] = points
    return panels


def attack_name(name: str) -> str:
    """ "pgd20x5_margin" as "PGD, 20 steps, 5 starts, margin loss"."""
    match = re.fullmatch(r"(fgsm|pgd)(\d*)(?:x(\d+))?(_margin)?", name)
    if match is None:
        return name.upper()
    steps, starts = match[2], match[3]
    parts = [match[1].upper(), f"{steps} steps" if steps else "", f"{starts} starts" if starts else ""]
    return ", ".join(part for part in (*parts, "margin loss" if match[4] else "") if part)


def severities(scores: Scores, group: Group, dataset: str) -> Panels:
    """Accuracy over the severity of corruptions, the mean of all kinds, in one panel; severity 0 is the clean image."""
    kinds = _by_first(_matches(scores, group, dataset, "corruptions", CORRUPTED), place=2)
    lines: dict[str, Points] = {}
    for family in group.families:
        points = _points(scores, family, dataset, "corruptions", {0.0: "acc1/clean"})
        for level in sorted({level for of_kind in kinds.values() for level in of_kind}):
            metrics = [of_kind[level] for of_kind in kinds.values() if level in of_kind]
            sources = tuple(Source.of(dataset, "corruptions", metric) for metric in metrics)
            score = scores.score(family, sources)
            if score is not None:
                points[level] = score
        if points:
            lines[family.label] = points
    return {"": lines} if lines else {}


def noise(scores: Scores, group: Group, dataset: str) -> Panels:
    """Correlation of A1 with A2 by layer of the image tower, a line a condition, a panel a family."""
    metrics = _by_first(_matches(scores, group, dataset, "noise", CORRELATED), place=1, first=2)
    panels: Panels = {}
    for family in group.families:
        for condition in CONDITIONS:
            points = _points(scores, family, dataset, "noise", metrics.get(condition, {}))
            if points:
                panels.setdefault(family.label, {})[condition] = points
    return panels


def lambda_curves(family: Family) -> dict[str, list[Curve]]:
    """Tower → λ over the run, of each seed whose run directory is at hand."""
    towers: dict[str, list[Curve]] = {}
    for member in family.members:
        for tower, curve in by_layer(member.logs).items() if member.logs else ():
            if not towers.get(tower) or towers[tower][0].values.shape[1] == curve.values.shape[1]:
                towers.setdefault(tower, []).append(curve)
    return towers


def panels_in_words(panels: Panels, *, x: str, number: str = "percent") -> str:
    """All points, the means over seeds: "PGD: CLIP 60.1 at ε 0, 43.0 at ε 1; DiffCLIP …"."""
    form = percent if number == "percent" else _two_places
    return ". ".join(
        (f"{title}: " if title else "")
        + "; ".join(
            f"{name} " + ", ".join(f"{form(points[place].mean)} at {x} {place:g}" for place in sorted(points))
            for name, points in lines.items()
        )
        for title, lines in panels.items()
    )


def lambdas_in_words(family: Family, step: int = -1) -> str:
    """λ of each layer at a step of the log, the last one unless another is named: the means over seeds."""
    return "; ".join(
        f"{TOWERS.get(tower, tower)} "
        + ", ".join(_two_places(value) for value in np.mean([curve.values[step] for curve in curves], axis=0))
        for tower, curves in lambda_curves(family).items()
    )


def _two_places(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")


def _matches(scores: Scores, group: Group, dataset: str, task: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The names of a task's metrics, of any family, that a pattern matches."""
    names = dict.fromkeys(
        metric
        for result in scores.of(group.families)
        if result.task == task and plain_name(result.dataset) == plain_name(dataset)
        for metric in result.metrics
    )
    return [match for match in map(pattern.fullmatch, names) if match]


def _by_first(matches: Sequence[re.Match[str]], *, place: int, first: int = 1) -> dict[str, dict[float, str]]:
    """What part `first` of a metric's name says → the number that part `place` says → the name."""
    names: dict[str, dict[float, str]] = {}
    for match in matches:
        names.setdefault(match[first], {})[float(match[place])] = match[0]
    return names


def _points(scores: Scores, family: Family, dataset: str, task: str, metrics: Mapping[float, str]) -> Points:
    """x → score, of the metric at each x that the family has."""
    points = {x: scores.score(family, (Source.of(dataset, task, name),)) for x, name in metrics.items()}
    return {x: score for x, score in points.items() if score is not None}

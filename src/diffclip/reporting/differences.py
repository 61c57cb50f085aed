"""Every number of a group of models against its baseline's, with an interval and a verdict in words."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffclip.reporting.families import Family, Group
from diffclip.reporting.pair import METRICS, TASKS, percent
from diffclip.reporting.scores import EXAMPLES, Difference, Score, Scores, Source, plain
from diffclip.reporting.tables.layouts import GROUNDED, ZERO_SHOT

# Fractions that speak of a model's quality. Not: values by ε or severity, and what is no fraction (C, entropies).
COMPARED = re.compile(
    r"acc1|acc5|mean_per_class_recall|(image|text)_retrieval_recall@\d+|pair_accuracy(/\w+)?|relative_acc1|"
    + "|".join(GROUNDED)
)


CSV_HEAD = (
    "pretraining,data set,task,metric,baseline,model,baseline score,baseline sd,model score,model sd,difference,"
    "low,high,interval over,verdict,chance"
)
HEAD = "data set|task|metric|model|baseline|score|difference|95 % interval|verdict|chance"


@dataclass(frozen=True)
class Compared:
    """One metric of one model and of the baseline; scores are fractions."""

    group: str
    dataset: str
    task: str
    metric: str
    baseline: str
    model: str
    baseline_score: Score
    score: Score
    difference: Difference
    chance: float | None

    @property
    def verdict(self) -> str:
        """What the interval says, in words; empty where there is none."""
        if self.difference.interval is None:
            return ""
        if not self.difference.interval.significant:
            return "not significant"
        return f"{self.model if self.difference.mean > 0 else self.baseline} higher"


def compared(scores: Scores, group: Group) -> list[Compared]:
    """Each metric that the baseline and another family have. A metric that repeats acc1 exactly is left out."""
    found = []
    keys = dict.fromkeys(
        (result.dataset, result.task, metric)
        for result in scores.of([group.baseline])
        for metric in result.metrics
        if COMPARED.fullmatch(metric)
    )
    for dataset, task, metric in keys:
        sources = (Source((plain(dataset),), task, (metric,)),)
        one = scores.score(group.baseline, sources)
        for family in group.families[1:]:
            other, difference = scores.score(family, sources), scores.difference(group.baseline, family, sources)
            if one is None or other is None or difference is None:
                continue
            if metric == "mean_per_class_recall" and _repeats(scores, (group.baseline, family), dataset, task, metric):
                continue
            names = (group.name, dataset, task, metric, group.baseline.label, family.label)
            found.append(Compared(*names, one, other, difference, _chance(scores, group.baseline, sources[0])))
    return found


def _repeats(scores: Scores, families: Sequence[Family], dataset: str, task: str, metric: str) -> bool:
    """Whether a metric equals acc1 for all, as mean per-class recall does where classes are of one size."""
    for family in families:
        one, other = (scores.score(family, (Source((plain(dataset),), task, (name,)),)) for name in (metric, "acc1"))
        if one is None or other is None or abs(one.mean - other.mean) > 1e-9:
            return False
    return True


def _chance(scores: Scores, family: Family, source: Source) -> float | None:
    for member in family.members:
        found = scores.result(member, source)
        examples = scores.collection.examples(found[0].key) if found else None
        if examples is not None and source.metrics[0] in examples.chance:
            return examples.chance[source.metrics[0]]
    return None


def metric_name(metric: str) -> str:
    """A metric in words."""
    if metric.startswith("pair_accuracy/"):
        return metric.removeprefix("pair_accuracy/").replace("_", " ")
    return METRICS.get(metric, metric.replace("_retrieval_", " ").replace("_", " "))


def task_name(task: str) -> str:
    """A task in words."""
    return TASKS.get(task, task.replace("_", " "))


def interval_text(difference: Difference) -> str:
    """ "+0.3 to +2.1", or nothing."""
    interval = difference.interval
    return f"{percent(interval.low, signed=True)} to {percent(interval.high, signed=True)}" if interval else ""


def score_text(score: Score) -> str:
    """ "72.5 ± 0.1"."""
    return percent(score.mean) + (f" ± {percent(score.sd)}" if score.sd is not None else "")


def summary(rows: Sequence[Compared]) -> str:
    """What came out for a group: its first zero-shot comparison in numbers, then how many of all went which way."""
    if not rows:
        return ""
    first = next((row for row in rows if row.task == ZERO_SHOT), rows[0])
    text = (
        f"{first.group}: {metric_name(first.metric)} on {first.dataset}, {task_name(first.task)}, is "
        f"{score_text(first.baseline_score)} for {first.baseline} and {score_text(first.score)} for {first.model}: "
        f"{percent(first.difference.mean, signed=True)} points"
    )
    if first.difference.interval:
        judged = "significant" if first.difference.significant else "not significant"
        text += f" (95 % interval {interval_text(first.difference)}, over {first.difference.over}), {judged}"
        text += " for this pair of training runs" if first.difference.over == EXAMPLES else ""
    sentences = [f"{text}."]
    for model in dict.fromkeys(row.model for row in rows):
        verdicts = [row.verdict for row in rows if row.model == model and row.verdict]
        if len(verdicts) > 1:
            up, down = (verdicts.count(f"{name} higher") for name in (model, first.baseline))
            sentences.append(
                f"Of {len(verdicts)} comparisons {model} is significantly higher in {up}, {first.baseline} in {down}, "
                f"and neither in {len(verdicts) - up - down}."
            )
    return " ".join(sentences)


def to_csv(rows: Sequence[Compared]) -> str:
    """One line a comparison, percent to four decimals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEAD.split(","))
    for row in rows:
        interval = row.difference.interval
        numbers = [row.baseline_score.mean, row.baseline_score.sd, row.score.mean, row.score.sd, row.difference.mean]
        numbers += [interval.low, interval.high] if interval else [None, None]
        names = [row.group, row.dataset, row.task, row.metric, row.baseline, row.model]
        writer.writerow([*names, *map(_full, numbers), row.difference.over, row.verdict, _full(row.chance)])
    return buffer.getvalue()


def to_markdown(rows: Sequence[Compared]) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(HEAD.split("|")) + " |", "|---|---|---|---|---:|---:|---:|---:|---|---:|"]
    for row in rows:
        cells = [row.dataset, task_name(row.task), metric_name(row.metric), row.model, score_text(row.baseline_score)]
        cells += [score_text(row.score), percent(row.difference.mean, signed=True), interval_text(row.difference)]
        cells += [row.verdict, percent(row.chance)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _full(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4f}"

"""The comparison of two models, number by number, and how sure each difference is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.stats.bootstrap import Interval, mean_interval

NOTE = (
    "Differences are in percentage points, with the 95 % interval of a paired bootstrap over the test "
    "examples; “not significant” where the interval contains 0. Each model was trained once, from one seed: "
    "another seed would change the differences, which the intervals do not cover. And of twenty intervals "
    "one is expected to miss 0 by chance alone."
)

TASKS = {
    "zeroshot_classification": "zero-shot classification",
    "zeroshot_retrieval": "retrieval",
    "fine_grained": "fine-grained pairs",
    "grounding": "where the model looks",
}
METRICS = {
    "acc1": "top-1 accuracy",
    "relative_acc1": "share of the clean accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "pair_accuracy": "pairs right, mean of patterns",
    "pointing_game": "most relevant patch in the mask",
    "energy_in_mask": "relevance in the mask",
    "average_precision": "average precision of the mask",
    "average_precision_of_other_query": "the same, by another query's map",
    "pointing_game_by_occlusion": "most missed cell in the mask",
    "energy_in_mask_by_occlusion": "what is missed in the mask",
    "average_precision_by_occlusion": "average precision by what is missed",
}


@dataclass(frozen=True)
class ModelName:
    """Whose results are compared: `model` and `pretrained` as in the results, and a label for people."""

    label: str
    model: str
    pretrained: str


@dataclass(frozen=True)
class Row:
    """One metric of two models, as fractions; None where it was not measured."""

    dataset: str
    task: str
    metric: str
    baseline: float | None
    candidate: float | None
    chance: float | None
    difference: Interval | None
    """candidate − baseline over the same test examples; None where those are not known or differ."""


@dataclass(frozen=True)
class Comparison:
    """Rows and the names of the two models in them. The first row is the one that a headline speaks of."""

    baseline: str
    candidate: str
    rows: tuple[Row, ...]


def compare(path: Path, baseline: ModelName, candidate: ModelName) -> Comparison:
    """Compare two models by their results in `path` (a results.jsonl), in its order.

    mean_per_class_recall is left out where it equals acc1 for both models, as it does when all classes have
    the same number of images. Raises UserError where the file has no result of one of the two.
    """
    found = results.read(path)
    by_key = {result.key: result for result in found}
    for name in (baseline, candidate):
        if not any((result.model, result.pretrained) == (name.model, name.pretrained) for result in found):
            others = ", ".join(sorted({f"{r.model} ({r.pretrained})" for r in found})) or "nothing"
            raise UserError(f"{path} has no result of {name.model} ({name.pretrained}), it has {others}")
    rows: list[Row] = []
    for dataset, task in dict.fromkeys((result.dataset, result.task) for result in found):
        keys = [(dataset, name.model, name.pretrained, task) for name in (baseline, candidate)]
        pair = [dict(by_key[key].metrics) if key in by_key else {} for key in keys]
        examples = [results.load_examples(path, key) if key in by_key else None for key in keys]
        for metric in dict.fromkeys([*pair[0], *pair[1]]):
            if metric in results.NOT_SCORES:
                continue
            if metric == "mean_per_class_recall" and all(_same(table, metric, "acc1") for table in pair):
                continue
            rows.append(_row(dataset, task, metric, pair, examples))
    return Comparison(baseline.label, candidate.label, tuple(rows))


def _same(table: dict[str, float], one: str, other: str) -> bool:
    return one not in table or abs(table[one] - table.get(other, np.inf)) < 1e-9


def _row(
    dataset: str,
    task: str,
    metric: str,
    pair: Sequence[dict[str, float]],
    examples: Sequence[results.PerExampleScores | None],
) -> Row:
    known = [e for e in examples if e is not None and metric in e.values]
    chance = next((e.chance[metric] for e in known if metric in e.chance), None)
    difference = None
    if len(known) == 2 and known[0].indices.equal(known[1].indices):
        first, second = (e.values[metric].double().numpy() for e in known)
        differences = second - first
        difference = mean_interval(differences[~np.isnan(differences)])
    return Row(dataset, task, metric, pair[0].get(metric), pair[1].get(metric), chance, difference)


def verdict(comparison: Comparison, row: Row) -> str:
    """What the interval says, in words; empty where there is none."""
    if row.difference is None:
        return ""
    if not row.difference.significant:
        return "not significant"
    return f"{comparison.candidate if row.difference.mean > 0 else comparison.baseline} higher"


def headline(comparison: Comparison) -> str:
    """What came out, in plain sentences: the first row that both models have, then the tally of all."""
    both = [row for row in comparison.rows if row.baseline is not None and row.candidate is not None]
    if not both:
        return f"No data set has results of both {comparison.baseline} and {comparison.candidate}."
    row = both[0]
    a, b = comparison.baseline, comparison.candidate
    cells = dict(zip(columns(comparison), cells_of(comparison, row), strict=True))
    scores = f"{cells[a]} % for {a} and {cells[b]} % for {b}"
    first = f"On {row.dataset}, {metric_name(row)} is {scores}: {cells['difference']} points"
    if row.difference is not None:
        outcome = "significant" if row.difference.significant else "not significant"
        first += f" (95 % interval {cells['95 % interval']}), {outcome} for this pair of training runs"
    judged = [verdict(comparison, row) for row in both if row.difference is not None]
    if len(judged) < 2:
        return first + "."
    return (
        f"{first}. Of {len(judged)} comparisons {b} is significantly higher in {judged.count(f'{b} higher')},"
        f" {a} in {judged.count(f'{a} higher')}, and neither in {judged.count('not significant')}."
    )


def columns(comparison: Comparison) -> tuple[str, ...]:
    """The head of the table."""
    return (
        "data set", "task", "metric", comparison.baseline, comparison.candidate, "difference", "verdict",
        "95 % interval", "chance",
    )  # fmt: skip


def cells_of(comparison: Comparison, row: Row) -> tuple[str, ...]:
    """The row as text, one cell a column, numbers in percent; a number that was not measured is empty."""
    difference = None
    if row.baseline is not None and row.candidate is not None:
        difference = row.candidate - row.baseline
    interval = row.difference
    return (
        row.dataset,
        TASKS.get(row.task, row.task),
        metric_name(row),
        percent(row.baseline),
        percent(row.candidate),
        percent(difference, signed=True),
        verdict(comparison, row),
        f"{percent(interval.low, signed=True)} to {percent(interval.high, signed=True)}" if interval else "",
        percent(row.chance),
    )


def metric_name(row: Row) -> str:
    """A metric in words: `image_retrieval_recall@5` is "image recall@5"."""
    if row.metric.startswith("pair_accuracy/"):
        return row.metric.removeprefix("pair_accuracy/").replace("_", " ")
    return METRICS.get(row.metric, row.metric.replace("_retrieval_", " ").replace("_", " "))


def percent(value: float | None, *, signed: bool = False) -> str:
    """0.1234 is "12.3"; signed, "+12.3", with a real minus. None is empty."""
    if value is None:
        return ""
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", "−")


def to_markdown(comparison: Comparison) -> str:
    """The table and its note as Markdown."""
    head = columns(comparison)
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join(["---"] * 3 + ["---:"] * 3 + ["---", "---:", "---:"]) + "|",
    ]
    for row in comparison.rows:
        cells = (cell.replace("|", "\\|") for cell in cells_of(comparison, row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTE, ""])


def to_rich(comparison: Comparison, *, title: str | None = None) -> Table:
    """The table for a terminal of 80 columns or more, without the interval, whose essence the verdict says.

    A head line for each data set and task; the note is the caption.
    """
    table = Table(title=title, title_justify="left", caption=NOTE, caption_justify="left", box=box.SIMPLE_HEAD)
    shown_columns = [i for i, name in enumerate(columns(comparison)) if i >= 2 and name != "95 % interval"]
    for name in (columns(comparison)[i] for i in shown_columns):
        wide = name in ("metric", "verdict")
        table.add_column(name, justify="left" if wide else "right", no_wrap=name != "metric")
    shown: tuple[str, ...] | None = None
    for row in comparison.rows:
        cells = cells_of(comparison, row)
        if shown != cells[:2]:
            shown = cells[:2]
            table.add_section()
            table.add_row(Text("\n".join(shown), style="bold"))
        metric, *numbers = (cells[i] for i in shown_columns)
        style = "bold" if row.difference and row.difference.significant else ""
        table.add_row(Padding(Text(metric), (0, 0, 0, 2)), *map(Text, numbers), style=style)
    return table

"""Comparisons as tables: two models on a terminal; a report as Markdown and CSV; a sweep as all three."""

import csv
import io
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from diffclip.evaluation.stats.bootstrap import Interval
from diffclip.evaluation.task import (
    headline_of_task,
    is_compared,
    is_evidence,
    metric_title,
    name_of_task,
    title_of_task,
)
from diffclip.reporting.design import Study
from diffclip.reporting.rows import Row
from diffclip.reporting.tables.formats import in_csv, plain
from diffclip.reporting.verdicts import (
    by_seed,
    count_text,
    decided,
    difference_text,
    interval_text,
    note,
    p_text,
    score_text,
    verdict_text,
)
from diffclip.text import percent

WIDE = 120
"""Columns of a terminal from which on a table says what guessing scores."""
HEADLINES = {"zeroshot_retrieval": "image_retrieval_recall@1", "robustness": "acc1/pgd"}
"""Of tasks that state none: a metric, or the first whose name begins so."""
CSV_HEAD = (
    "pretraining,data set,task,metric,baseline,model,seeds,baseline score,baseline sd,model score,model sd,difference,"
    "low,high,p,verdict,chance,left out"
)
HEAD = "data set|task|metric|model|n|baseline|score|difference|95 % interval|p|verdict|chance"
SWEEP_CSV_HEAD = (
    "group,role,variant,seeds,mean,sd,difference,difference_sd,low,high,bootstrap_low,bootstrap_high,test_low,test_high,"
    "correlation,p,verdict,left_out"
)


def two_models(rows: Sequence[Row], *, title: str | None = None, width: int = 80, every: bool = False) -> Table:
    """For a terminal: a head line for each data set, below it a row a task, by the metric that stands for the task.

    width: of the terminal; from 120 columns on it has what guessing scores. every: all metrics.
    """
    table = Table(title=title, title_justify="left", caption=note(rows), caption_justify="left", box=box.SIMPLE_HEAD)
    models = (rows[0].baseline, rows[0].model) if rows else ("", "")
    wide = width >= WIDE
    table.add_column("metric" if every else "task", overflow="fold")
    for name in (*models, "difference" if wide else "diff.", "95 % interval", *(["chance"] if wide else [])):
        table.add_column(name, justify="right", overflow="fold")
    for dataset, of_dataset in groupby(rows, key=lambda row: row.dataset):
        table.add_section()
        if not every:
            table.add_row(Text(dataset, style="bold"))
        for task, of_task in groupby(of_dataset, key=lambda row: row.task):
            block = list(of_task)
            if every:
                table.add_row(Text(f"{dataset}\n{_task(task)}", style="bold"))
            for row in block if every else [standing_for(block)]:
                scores = [percent(score.mean if score else None) for score in (row.baseline_score, row.score)]
                chance = [percent(row.chance)] if wide else []
                cells = (*scores, difference_text(row.difference), interval_text(row), *chance)
                metric = metric_title(row.task, row.metric)
                short = f"{name_of_task(task)}: {metric.partition(',')[0]}"
                _add_row(table, metric if every else short, cells)
    return table


def brief(rows: Sequence[Row]) -> Table:
    """For a terminal: a line for each data set and task, by the metric that stands for it, and nothing else."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    folders = {row.dataset.rpartition("/")[0] for row in rows}
    shared = folders.pop() if len(folders) == 1 else ""
    table.add_column(shared or "data set", no_wrap=True)
    table.add_column("metric")
    for name in (rows[0].baseline, rows[0].model, "diff.", "95 % interval") if rows else ():
        table.add_column(name, justify="right", no_wrap=True)
    for _, of_task in groupby(rows, key=lambda row: (row.dataset, row.task)):
        row = standing_for(list(of_task))
        metric = metric_title(row.task, row.metric).partition(",")[0]
        scores = [percent(score.mean if score else None) for score in (row.baseline_score, row.score)]
        table.add_row(
            *map(
                Text,
                (
                    row.dataset.removeprefix(f"{shared}/"),
                    metric,
                    *scores,
                    difference_text(row.difference),
                    interval_text(row),
                ),
            )
        )
    return table


def standing_for(rows: Sequence[Row]) -> Row:
    """Of the rows of one task that which stands for it: its headline, or the first that speaks of quality.

    What is no evidence stands for it only where nothing else was measured.
    """
    rows = [row for row in rows if is_evidence(row.task, row.metric)] or rows
    wanted = HEADLINES.get(rows[0].task) or headline_of_task(rows[0].task)
    first = next((row for row in rows if is_compared(row.task, row.metric)), rows[0])
    return next((row for row in rows if row.metric == wanted or row.metric.startswith(f"{wanted}/")), first)


def _task(name: str) -> str:
    """The task's title; its own name, as --tasks takes it, where the title says no more."""
    title = title_of_task(name)
    return name if title == name.replace("_", " ") else title


def _add_row(table: Table, name: str, cells: Sequence[str], *, bold: bool = False) -> None:
    table.add_row(Padding(Text(name), (0, 0, 0, 2)), *map(Text, cells), style="bold" if bold else "")


def report_csv(rows: Sequence[Row]) -> str:
    """One line a row, percent to four decimals; scores are over the seeds that both models have."""
    lines = []
    for row in rows:
        (first, second), difference = row.counted, row.difference
        numbers = [number for score in (first, second) for number in ((score.mean, score.sd) if score else (None,) * 2)]
        numbers += [difference.mean if difference else None, *_ends(difference.interval if difference else None)]
        names = [*map(in_csv, (row.group, row.dataset, row.task, row.metric, row.baseline, row.model)), count_text(row)]
        outcome = [_in_full(row.p), verdict_text(row), _percent_in_full(row.chance), row.left_out]
        lines.append([*names, *map(_percent_in_full, numbers), *outcome])
    return _csv(CSV_HEAD, lines)


def report_markdown(rows: Sequence[Row], said: str) -> str:
    """A GitHub table, and what a reader must know, as it is said."""
    lines = [_line(*HEAD.split("|")), "|---|---|---|---|---:|---:|---:|---:|---:|---:|---|---:|"]
    for row in rows:
        names = row.dataset, title_of_task(row.task), metric_title(row.task, row.metric), row.model, count_text(row)
        scores = tuple(map(score_text, row.counted))
        outcome = difference_text(row.difference), interval_text(row), p_text(row), verdict_text(row)
        lines.append(_line(*names, *scores, *outcome, percent(row.chance)))
    left_out = [f"{row.dataset}, {row.model}: {row.left_out}." for row in rows if row.left_out]
    return "\n".join([*lines, "", said, *(text for line in left_out for text in ("", line)), ""])


def sweep(rows: Sequence[Row], study: Study) -> Table:
    """For a terminal of 80 columns: a head line for each outcome, the primary one first."""
    table = Table(caption=note(rows, study), caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant")
    for name in ("mean ± sd", "n", "diff.", "95 % interval", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for (group, role), block in groupby(_in_order(rows), key=lambda row: (row.group, row.role)):
        table.add_section()
        table.add_row(Text(group, style="bold"), *[""] * 4, Text(role, style="bold"))
        for row in block:
            verdict = row.verdict.partition(", ±")[0]  # the interval stands beside
            _add_row(table, row.model, (*_sweep_cells(row), verdict), bold=decided(row))
    return table


def sweep_markdown(rows: Sequence[Row], study: Study) -> str:
    """All variants by outcome, the differences, every seed, and the note."""
    groups, variants = (list(dict.fromkeys(names)) for names in zip(*((r.group, r.model) for r in rows), strict=True))
    scores = {(row.group, row.model): score_text(row.score) for row in rows}
    lines = [_line("", *groups), _line("---", *["---:"] * len(groups))]
    lines += [_line(name, *(scores[group, name] for group in groups)) for name in variants]
    baseline = f"difference from {rows[0].baseline}"
    lines += ["", _line("outcome", "", "variant", "mean ± sd", "n", baseline, "95 % interval", "p", "verdict")]
    lines += [_line(*["---"] * 3, *["---:"] * 5, "---")]
    for row in _in_order(rows):
        lines.append(_line(row.group, row.role, row.model, *_sweep_cells(row), p_text(row), row.verdict))
    every = [f"- {line}" for line in by_seed(_in_order(rows))]
    return "\n".join([*lines, "", note(rows, study), "", "Seed by seed, in percent:", "", *every, ""])


def sweep_csv(rows: Sequence[Row]) -> str:
    """All numbers, as fractions and unrounded; the interval and the two that it holds."""
    lines = []
    for row in rows:
        score, difference = row.counted[1], row.difference
        numbers: list[float | None] = [score.count, score.mean, score.sd] if score else [None] * 3
        if difference is None:
            numbers += [None] * 10
        else:
            numbers += [difference.mean, difference.sd]
            for interval in (difference.interval, difference.by_bootstrap(), difference.by_test()):
                numbers += _ends(interval)
            numbers += [difference.correlation, row.p]
        names = [in_csv(row.group), row.role, in_csv(row.model)]
        lines.append([*names, *map(_in_full, numbers), row.verdict, row.left_out])
    return _csv(SWEEP_CSV_HEAD, lines)


def seeds_csv(rows: Sequence[Row]) -> str:
    """Every seed of every variant, as fractions and unrounded."""
    return _csv(
        "group,variant,seed,score",
        [
            [row.group, row.model, str(seed), str(value)]
            for row in rows
            for seed, value in (row.score.by_seed.items() if row.score else ())
        ],
    )


def _sweep_cells(row: Row) -> tuple[str, ...]:
    """Mean ± sd, number of seeds, difference and interval. One pair has no interval: it leaves seeds out."""
    several = row.difference is not None and row.difference.count > 1
    return (
        score_text(row.counted[1] if row.difference else row.score),
        count_text(row),
        difference_text(row.difference),
        interval_text(row) if several else "",
    )


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """The primary outcome, the secondary ones, and what is not judged."""
    return sorted(rows, key=lambda row: ("primary", "secondary", "").index(row.role))


def _line(*cells: str) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def _csv(head: str, lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head.split(","))
    writer.writerows(lines)
    return text.getvalue()


def _ends(interval: Interval | None) -> list[float | None]:
    return [interval.low, interval.high] if interval else [None, None]


def _in_full(value: float | None) -> str:
    return "" if value is None else str(value)


def _percent_in_full(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4f}"

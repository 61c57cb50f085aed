"""Comparisons as tables: two models on a terminal; a report as Markdown and CSV; a sweep as all three."""

import csv
import io
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from diffclip.evaluation.stats import seeds
from diffclip.evaluation.task import headline_of_task, is_compared, metric_title, name_of_task, title_of_task
from diffclip.reporting.compare import Row, difference_text, interval_text, score_text
from diffclip.reporting.tables.formats import in_csv, plain
from diffclip.text import percent

TWO_MODELS = (
    "Differences are in percentage points, with the 95 % interval of a paired bootstrap over the test "
    "examples; “not significant” where the interval contains 0. Each model was trained once, from one seed: "
    "another seed would change the differences, which the intervals do not cover. And of twenty intervals "
    "one is expected to miss 0 by chance alone."
)
WIDE = 120
"""Columns of a terminal from which on a table has intervals."""
HEADLINES = {"zeroshot_retrieval": "image_retrieval_recall@1", "robustness": "acc1/pgd"}
"""Of tasks that state none: a metric, or the first whose name begins so."""
CSV_HEAD = (
    "pretraining,data set,task,metric,baseline,model,baseline score,baseline sd,model score,model sd,difference,"
    "low,high,interval over,verdict,chance"
)
HEAD = "data set|task|metric|model|baseline|score|difference|95 % interval|verdict|chance"
SWEEP_CSV_HEAD = (
    "group,variant,seeds,mean,sd,difference,difference_sd,low,high,bootstrap_low,bootstrap_high,t_low,t_high,verdict"
)


def two_models(rows: Sequence[Row], *, title: str | None = None, width: int = 80, every: bool = False) -> Table:
    """For a terminal: a head line for each data set, below it a row a task, by the metric that stands for the task.

    width: of the terminal; from 120 columns on there are intervals and what guessing scores. every: all metrics.
    """
    table = Table(title=title, title_justify="left", caption=TWO_MODELS, caption_justify="left", box=box.SIMPLE_HEAD)
    models = (rows[0].baseline, rows[0].model) if rows else ("", "")
    wide = width >= WIDE
    table.add_column("metric" if every else "task", overflow="fold")
    for name in (
        *models,
        "difference" if wide else "diff.",
        *(["95 % interval"] if wide else []),
        "verdict",
        *(["chance"] if wide else []),
    ):
        table.add_column(name, justify="left" if name == "verdict" else "right", overflow="fold")
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
                interval, chance = ([interval_text(row.difference)], [percent(row.chance)]) if wide else ([], [])
                cells = (*scores, difference_text(row.difference), *interval, row.verdict, *chance)
                metric = metric_title(row.task, row.metric)
                bold = row.difference is not None and row.difference.significant
                short = f"{name_of_task(task)}: {metric.partition(',')[0]}"
                _add_row(table, metric if every else short, cells, bold=bool(bold))
    return table


def standing_for(rows: Sequence[Row]) -> Row:
    """Of the rows of one task that which stands for it: its headline, or the first that speaks of quality."""
    wanted = HEADLINES.get(rows[0].task) or headline_of_task(rows[0].task)
    first = next((row for row in rows if is_compared(row.task, row.metric)), rows[0])
    return next((row for row in rows if row.metric == wanted or row.metric.startswith(f"{wanted}/")), first)


def _task(name: str) -> str:
    """The task's title; its own name, as --tasks takes it, where the title says no more."""
    title = title_of_task(name)
    return name if title == name.replace("_", " ") else title


def _add_row(table: Table, name: str, cells: Sequence[str], *, bold: bool) -> None:
    table.add_row(Padding(Text(name), (0, 0, 0, 2)), *map(Text, cells), style="bold" if bold else "")


def report_csv(rows: Sequence[Row]) -> str:
    """One line a row, percent to four decimals."""
    lines = []
    for row in rows:
        first, second, difference = row.baseline_score, row.score, row.difference
        numbers = [number for score in (first, second) for number in ((score.mean, score.sd) if score else (None,) * 2)]
        numbers += [difference.mean if difference else None, *_ends(difference.interval if difference else None)]
        names = map(in_csv, (row.group, row.dataset, row.task, row.metric, row.baseline, row.model))
        over = difference.over if difference else ""
        lines.append([*names, *map(_percent_in_full, numbers), over, row.verdict, _percent_in_full(row.chance)])
    return _csv(CSV_HEAD, lines)


def report_markdown(rows: Sequence[Row]) -> str:
    """A GitHub table."""
    lines = [_line(*HEAD.split("|")), "|---|---|---|---|---:|---:|---:|---:|---|---:|"]
    for row in rows:
        names = row.dataset, title_of_task(row.task), metric_title(row.task, row.metric), row.model
        scores = score_text(row.baseline_score), score_text(row.score)
        outcome = difference_text(row.difference), interval_text(row.difference), row.verdict
        lines.append(_line(*names, *scores, *outcome, percent(row.chance)))
    return "\n".join([*lines, ""])


def sweep(rows: Sequence[Row]) -> Table:
    """For a terminal of 80 columns: a head line for each group."""
    table = Table(caption=f"{_seeds(rows)} {_note(rows)}", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant")
    for name in ("mean ± sd", "diff.", "95 % interval", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for group, block in groupby(rows, key=lambda row: row.group):
        table.add_section()
        table.add_row(Text(group, style="bold"))
        for row in block:
            mean, _, *others = _sweep_cells(row)
            _add_row(table, row.model, (mean, *others), bold=others[-1] in ("higher", "lower"))
    return table


def sweep_markdown(rows: Sequence[Row]) -> str:
    """Two tables, of all variants by group and of the differences, and the note."""
    groups, variants = (list(dict.fromkeys(names)) for names in zip(*((r.group, r.model) for r in rows), strict=True))
    scores = {(row.group, row.model): score_text(row.score) for row in rows}
    lines = [_line("", *groups), _line("---", *["---:"] * len(groups))]
    lines += [_line(name, *(scores[group, name] for group in groups)) for name in variants]
    baseline = f"difference from {rows[0].baseline}"
    lines += ["", _line("group", "variant", "mean ± sd", "seeds", baseline, "95 % interval", "verdict")]
    lines += [_line("---", "---", *["---:"] * 4, "---")]
    lines += [_line(row.group, row.model, *_sweep_cells(row)) for row in rows]
    return "\n".join([*lines, "", _note(rows), ""])


def sweep_csv(rows: Sequence[Row]) -> str:
    """All numbers, as fractions and unrounded; the interval of the verdict and the two that it holds."""
    lines = []
    for row in rows:
        score, difference = row.score, row.difference
        numbers = [score.count, score.mean, score.sd] if score else [None] * 3
        if difference is None:
            numbers += [None] * 8
        else:
            numbers += [difference.mean, difference.sd]
            for interval in (difference.interval or difference.bootstrap, difference.bootstrap, difference.t):
                numbers += _ends(interval)
        lines.append([in_csv(row.group), in_csv(row.model), *map(_in_full, numbers), _sweep_verdict(row)])
    return _csv(SWEEP_CSV_HEAD, lines)


def _sweep_cells(row: Row) -> tuple[str, ...]:
    """Mean ± sd, number of seeds, difference, interval and verdict. One seed has no interval: it leaves seeds out."""
    interval = interval_text(row.difference) if row.difference and row.difference.t else ""
    seeds = str(row.score.count) if row.score else ""
    return score_text(row.score), seeds, difference_text(row.difference), interval, _sweep_verdict(row)


def _sweep_verdict(row: Row) -> str:
    if row.difference is None:
        return ""
    return row.difference.verdict("higher", "lower") if row.difference.t else "one seed"


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({row.score.count for row in rows if row.score})
    if not counts:
        return "Nothing is measured yet."
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} seed{'' if number == '1' else 's'}."


def _note(rows: Sequence[Row]) -> str:
    return f"In percent. Differences from {rows[0].baseline}. {seeds.NOTE}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def _csv(head: str, lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head.split(","))
    writer.writerows(lines)
    return text.getvalue()


def _ends(interval: seeds.Interval | None) -> list[float | None]:
    return [interval.low, interval.high] if interval else [None, None]


def _in_full(value: float | None) -> str:
    return "" if value is None else str(value)


def _percent_in_full(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4f}"

"""`diffclip pope`: score files of answers, print the table, write results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from rich.table import Table

    from diffclip.evaluation.pope import SplitScores

METRICS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "yes_ratio": "yes ratio"}


def pope(
    answers: Positional[tuple[Path, ...]],
    /,
    *,
    labels: Path,
    categories: Path | None = None,
    model: str | None = None,
    out: Path | None = None,
) -> None:
    """Score a language model's answers to POPE: accuracy, F1, yes ratio and more.

    Args:
        answers: JSON lines with question_id and the answer as `text` or `answer`; a file a split, named so.
        labels: POPE's folder with coco_pope_random.json and its siblings, or one such file.
        categories: For answers to all splits in one file: which question_id belongs to which split.
        model: What results call the model; by default the name of the file of answers.
        out: Where results.jsonl is written; without it only the table is printed.
    """
    run(answers, labels, categories, model, out)


def run(answers: Sequence[Path], labels: Path, categories: Path | None, name: str | None, out: Path | None) -> None:
    """Score answers to POPE and print the table; with `out`, add the results to OUT/results.jsonl."""
    from diffclip.evaluation.pope import dataset_name, score
    from diffclip.evaluation.run.suite import record
    from diffclip.terminal import Terminal

    splits = score(answers, labels, categories)
    console = Terminal()
    console.print(_table(splits))
    if any(scores.unparsed for scores in splits):
        console.print("unparsed: answers that say neither yes nor no; the benchmark's rule takes them as a yes.")
    if out:
        source = ", ".join(map(str, answers))
        for scores in splits:
            dataset = dataset_name(scores.split, scores.questions)
            key = (dataset, name or _stem(answers[0]), source, "pope")
            record(out / "results.jsonl", key, scores.examples, scores.fingerprint)
        console.print(f"Written to {out / 'results.jsonl'}", highlight=False, soft_wrap=True)


def _table(splits: Sequence[SplitScores]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from diffclip.evaluation.stats.bootstrap import mean_interval

    table = Table(box=None, padding=(0, 2, 0, 0), caption_justify="left")
    table.add_column("POPE")
    for title in ("questions", *METRICS.values(), "unparsed"):
        table.add_column(title, justify="right")
    for scores in splits:
        intervals = [mean_interval(scores.examples.values[name]) for name in METRICS]
        cells = [Text(f"{100 * i.mean:.2f}\n{100 * i.low:.1f} to {100 * i.high:.1f}") for i in intervals]
        table.add_row(scores.split, f"{scores.questions:,}", *cells, str(scores.unparsed))
    if len(splits) > 1:
        means = [sum(scores.examples.metrics[name] for scores in splits) / len(splits) for name in METRICS]
        unparsed = str(sum(scores.unparsed for scores in splits))
        questions = f"{sum(scores.questions for scores in splits):,}"
        table.add_row("mean", questions, *(f"{100 * mean:.2f}" for mean in means), unparsed)
    table.caption = f"In percent, with 95 % intervals of a bootstrap over images. {_version(splits)}"
    return table


def _version(splits: Sequence[SplitScores]) -> str:
    counts = {scores.split: scores.questions for scores in splits}
    if counts.get("random") == 2910:
        return "The random split is the one before October 2023, with 2,910 questions, as in LLaVA-1.5's scores."
    if set(counts.values()) == {3000}:
        return "Version: POPE on COCO since October 2023, 3,000 questions a scores."
    return "Not a published version: those have 3,000 questions a split, or 2,910 in the random one."


def _stem(path: Path) -> str:
    """The file's name without the name of the scores."""
    from diffclip.evaluation.pope import SPLITS

    words = path.stem
    for split in SPLITS:
        words = words.replace(split, "")
    return words.strip("_-. ") or path.parent.name or "model"

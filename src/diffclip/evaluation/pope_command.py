"""`diffclip pope`: score files of answers, print the table, write results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffclip.errors import UserError
from diffclip.evaluation import pope
from diffclip.evaluation.bootstrap import mean_interval
from diffclip.evaluation.datasets.opening import pope_labels
from diffclip.evaluation.results import Examples
from diffclip.evaluation.suite import record

METRICS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "yes_ratio": "yes ratio"}


@dataclass(frozen=True)
class Scored:
    """One split, scored."""

    split: str
    questions: int
    unparsed: int
    examples: Examples
    fingerprint: str
    """Of the questions and the answers."""


def run(answers: Sequence[Path], labels: Path, categories: Path | None, name: str | None, out: Path | None) -> None:
    """Score answers to POPE and print the table; with `out`, add the results to OUT/results.jsonl."""
    scored = score(answers, labels, categories)
    console = Console()
    console.print(_table(scored))
    if any(one.unparsed for one in scored):
        console.print("unparsed: answers that say neither yes nor no; the benchmark's rule takes them as a yes.")
    if out:
        source = ", ".join(map(str, answers))
        for one in scored:
            dataset = pope.dataset_name(one.split, one.questions)
            key = (dataset, name or _stem(answers[0]), source, "pope")
            record(out / "results.jsonl", key, one.examples, one.fingerprint)
        console.print(f"Written to {out / 'results.jsonl'}", highlight=False, soft_wrap=True)


def score(answers: Sequence[Path], labels: Path, categories: Path | None = None) -> list[Scored]:
    """Each split that is answered, in the order of `pope.SPLITS`.

    labels: the benchmark's folder, or one of its files for one file of answers. categories: a file that says of
    each question_id which split it belongs to, for answers to all splits in one file. Raises UserError where
    answers and questions do not belong together.
    """
    if not answers:
        raise UserError("no answers to score: give a file of JSON lines for each split")
    if labels.is_file():
        if len(answers) > 1:
            raise UserError(f"{labels} is one file of questions, but {len(answers)} files of answers are given")
        split = next((one for one in pope.SPLITS if one in labels.stem.lower()), labels.stem)
        return [_score(split, labels, pope.read_answers(answers[0]), answers[0])]
    files = pope_labels(labels)
    if not files:
        raise UserError(f"{labels} holds no coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json")
    found: dict[str, tuple[tuple[pope.Answer, ...], Path]] = {}
    for path in answers:
        for split, part in _by_split(path, categories).items():
            if split in found:
                raise UserError(f"{path} and {found[split][1]} both answer the {split} split")
            found[split] = part, path
    return [_score(split, files[split], *found[split]) for split in pope.SPLITS if split in found]


def _by_split(path: Path, categories: Path | None) -> dict[str, tuple[pope.Answer, ...]]:
    answers = pope.read_answers(path)
    if categories:
        known = pope.read_categories(categories)
        strange = next((a.id for a in answers if a.id not in known), None)
        if strange is not None or any(a.id is None for a in answers):
            raise UserError(f"{path}: question {strange} is not in {categories}")
        # Its ids number all splits through, so within a split the order counts, which is that of the questions.
        order = {key: i for i, key in enumerate(known)}
        ordered = sorted(answers, key=lambda a: order[a.id or ""])
        pairs = [(known[a.id or ""], pope.Answer(None, a.text)) for a in ordered]
    elif all(a.category in pope.SPLITS for a in answers):
        pairs = [(a.category or "", a) for a in answers]
    else:
        named = [split for split in pope.SPLITS if split in path.name.lower()]
        if len(named) != 1:
            raise UserError(
                f"{path}: which split does it answer? Name the file so ({', '.join(pope.SPLITS)}), "
                "or say with --categories which question belongs to which"
            )
        pairs = [(named[0], a) for a in answers]
    return {split: tuple(a for key, a in pairs if key == split) for split in dict.fromkeys(key for key, _ in pairs)}


def _score(split: str, questions: Path, answers: Sequence[pope.Answer], where: Path) -> Scored:
    asked = pope.read_questions(questions)
    texts = pope.matched(asked, answers, f"{where} ({split})")
    digest = hashlib.sha256(questions.read_bytes() + "\0".join(texts).encode()).hexdigest()
    return Scored(split, len(asked), sum(map(pope.is_unparsed, texts)), pope.examples(asked, texts), digest)


def _table(scored: Sequence[Scored]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), caption_justify="left")
    table.add_column("POPE")
    for title in ("questions", *METRICS.values(), "unparsed"):
        table.add_column(title, justify="right")
    for one in scored:
        intervals = [mean_interval(one.examples.values[name]) for name in METRICS]
        cells = [f"{100 * i.mean:.2f}\n{100 * i.low:.1f} to {100 * i.high:.1f}" for i in intervals]
        table.add_row(one.split, f"{one.questions:,}", *cells, str(one.unparsed))
    if len(scored) > 1:
        means = [sum(one.examples.metrics[name] for one in scored) / len(scored) for name in METRICS]
        unparsed = str(sum(one.unparsed for one in scored))
        questions = f"{sum(one.questions for one in scored):,}"
        table.add_row("mean", questions, *(f"{100 * mean:.2f}" for mean in means), unparsed)
    table.caption = f"In percent, with 95 % intervals of a bootstrap over images. {_version(scored)}"
    return table


def _version(scored: Sequence[Scored]) -> str:
    counts = {one.split: one.questions for one in scored}
    if counts.get("random") == 2910:
        return "The random split is the one before October 2023, with 2,910 questions, as in LLaVA-1.5's scores."
    if set(counts.values()) == {3000}:
        return "Version: POPE on COCO since October 2023, 3,000 questions a split."
    return "Not a published version: those have 3,000 questions a split, or 2,910 in the random one."


def _stem(path: Path) -> str:
    """The file's name without the name of the split."""
    words = path.stem
    for split in pope.SPLITS:
        words = words.replace(split, "")
    return words.strip("_-. ") or path.parent.name or "model"

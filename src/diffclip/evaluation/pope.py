"""POPE: does a language model that sees see things that are not there (Li et al. 2023)? Scoring of its answers.

Half of the questions "Is there a … in the image?" are to be answered with yes. The answer is read by the rule of
the benchmark's own script, to the letter; how many answers it could only guess at is counted. A model that always
says yes has accuracy and precision 50 % and recall 100 %: none of the three means anything without the yes ratio.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffclip.errors import UserError
from diffclip.evaluation.datasets.pope import Question, keys_of, pope_labels, read_questions, read_rows
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats.ratio import ratio_values
from diffclip.reading import read_bytes

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Answer:
    """What a model said. `id` is None where its file has no ids: then the order counts."""

    id: str | None
    text: str
    category: str | None = None


def says_yes(answer: str) -> bool:
    """The benchmark's rule: "no" if the first sentence has the word No, no or not, else "yes".

    A sentence ends at a full stop, words end at spaces, commas are left out; "NO", "No!" and an empty answer
    therefore are a yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def is_unparsed(answer: str) -> bool:
    """Whether the rule read a yes only for want of a no: the first sentence has no word "yes" in any case."""
    return says_yes(answer) and "yes" not in re.findall(r"\w+", answer.split(".")[0].lower())


def read_answers(path: Path) -> tuple[Answer, ...]:
    """JSON lines with the answer as `answer` or `text`, and question_id and category if there are any.

    Raises UserError for another form.
    """
    answers = []
    for number, row in enumerate(read_rows(path), start=1):
        text = row.get("answer", row.get("text"))
        if not isinstance(text, str):
            raise UserError(f"{path} entry {number}: expected the answer as `answer` or `text`, found {keys_of(row)}")
        given, category = row.get("question_id"), row.get("category")
        answers.append(Answer(None if given is None else str(given), text, category and str(category)))
    return tuple(answers)


def read_categories(path: Path) -> dict[str, str]:
    """question_id → category, of a file of questions such as LLaVA's llava_pope_test.jsonl."""
    split_of = {}
    for number, row in enumerate(read_rows(path), start=1):
        if "question_id" not in row or row.get("category") not in SPLITS:
            raise UserError(
                f"{path} entry {number}: expected question_id and a category out of {', '.join(SPLITS)}, "
                f"found {keys_of(row)}"
            )
        split_of[str(row["question_id"])] = str(row["category"])
    return split_of


def match_answers(questions: Sequence[Question], answers: Sequence[Answer], where: str) -> tuple[str, ...]:
    """The text of the answer to each question: by question_id, or by order where the answers have no ids.

    Raises UserError where they are not the answers to these questions, all of them and once each.
    """
    if len(answers) != len(questions):
        hint = ""
        if {len(answers), len(questions)} == {2910, 3000}:
            hint = ": the random split had 2,910 questions before October 2023 and has 3,000 since"
        raise UserError(f"{where} has {len(answers):,} answers to {len(questions):,} questions{hint}")
    if any(answer.id is None for answer in answers):
        return tuple(answer.text for answer in answers)
    repeated = [key for key, count in Counter(answer.id for answer in answers).items() if count > 1]
    if repeated:
        raise UserError(f"{where} answers question {repeated[0]} more than once")
    by_id = {answer.id: answer.text for answer in answers}
    missing = [question.id for question in questions if question.id not in by_id]
    if missing:
        raise UserError(f"{where} has no answer to question {missing[0]} ({len(missing):,} are missing)")
    return tuple(by_id[question.id] for question in questions)


def evaluate(questions: Sequence[Question], answers: Sequence[str]) -> PerExampleScores:
    """What each image adds to accuracy, precision, recall, f1, yes_ratio and unparsed, all of them fractions.

    An image is what was sampled: its questions, six as a rule, are not independent of each other. Each metric is a
    ratio of sums over images (`ratio_values`); accuracy has the number of right answers over that of questions.
    Precision without a single yes is 0.
    """
    label = torch.tensor([question.yes for question in questions], dtype=torch.float64)
    said = torch.tensor([says_yes(answer) for answer in answers], dtype=torch.float64)
    guessed = torch.tensor([is_unparsed(answer) for answer in answers], dtype=torch.float64)
    every, hit = torch.ones_like(label), label * said  # (Q,)
    parts = {
        "accuracy": ((label == said).double(), every),
        "precision": (hit, said),
        "recall": (hit, label),
        "f1": (hit, (said + label) / 2),
        "yes_ratio": (said, every),
        "unparsed": (guessed, every),
    }
    place = {image: i for i, image in enumerate(dict.fromkeys(question.image for question in questions))}
    owner = torch.tensor([place[question.image] for question in questions])

    def by_image(values: Tensor) -> Tensor:
        return torch.zeros(len(place), dtype=torch.float64).index_add(0, owner, values)

    values = {name: ratio_values(by_image(y), by_image(x)) for name, (y, x) in parts.items()}
    chance = {"accuracy": 0.5, "precision": label.mean().item(), "recall": 0.5}
    return PerExampleScores(torch.arange(len(place)), values, chance)


def dataset_name(split: str, questions: int) -> str:
    """What results call it: pope_random, and pope_random_2910 for a version with another number of questions."""
    return f"pope_{split}" if questions == 3000 else f"pope_{split}_{questions}"


@dataclass(frozen=True)
class SplitScores:
    """One split, scored."""

    split: str
    questions: int
    unparsed: int
    examples: PerExampleScores
    fingerprint: str
    """Of the questions and the answers."""


def score(answers: Sequence[Path], labels: Path, categories: Path | None = None) -> list[SplitScores]:
    """Each split that is answered, in the order of `SPLITS`.

    labels: the benchmark's folder, or one of its files for one file of answers. categories: a file that says of
    each question_id which split it belongs to, for answers to all splits in one file. Raises UserError where
    answers and questions do not belong together.
    """
    if not answers:
        raise UserError("no answers to score: give a file of JSON lines for each split")
    if labels.is_file():
        if len(answers) > 1:
            raise UserError(f"{labels} is one file of questions, but {len(answers)} files of answers are given")
        split = next((name for name in SPLITS if name in labels.stem.lower()), labels.stem)
        return [_score(split, labels, read_answers(answers[0]), answers[0])]
    files = pope_labels(labels)
    if not files:
        raise UserError(f"{labels} holds no coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json")
    parts: dict[str, tuple[tuple[Answer, ...], Path]] = {}
    for path in answers:
        for split, part in _by_split(path, categories).items():
            if split in parts:
                raise UserError(f"{path} and {parts[split][1]} both answer the {split} split")
            parts[split] = part, path
    return [_score(split, files[split], *parts[split]) for split in SPLITS if split in parts]


def _by_split(path: Path, categories: Path | None) -> dict[str, tuple[Answer, ...]]:
    answers = read_answers(path)
    if categories:
        known = read_categories(categories)
        strange = next((a.id for a in answers if a.id not in known), None)
        if strange is not None or any(a.id is None for a in answers):
            raise UserError(f"{path}: question {strange} is not in {categories}")
        # Its ids number all splits through, so within a split the order counts, which is that of the questions.
        order = {key: i for i, key in enumerate(known)}
        ordered = sorted(answers, key=lambda a: order[a.id or ""])
        pairs = [(known[a.id or ""], Answer(None, a.text)) for a in ordered]
    elif all(a.category in SPLITS for a in answers):
        pairs = [(a.category or "", a) for a in answers]
    else:
        named = [split for split in SPLITS if split in path.name.lower()]
        if len(named) != 1:
            raise UserError(
                f"{path}: which split does it answer? Name the file so ({', '.join(SPLITS)}), "
                "or say with --categories which question belongs to which"
            )
        pairs = [(named[0], a) for a in answers]
    return {split: tuple(a for key, a in pairs if key == split) for split in dict.fromkeys(key for key, _ in pairs)}


def _score(split: str, questions: Path, answers: Sequence[Answer], where: Path) -> SplitScores:
    asked = read_questions(questions)
    texts = match_answers(asked, answers, f"{where} ({split})")
    digest = hashlib.sha256(read_bytes(questions) + "\0".join(texts).encode()).hexdigest()
    return SplitScores(split, len(asked), sum(map(is_unparsed, texts)), evaluate(asked, texts), digest)

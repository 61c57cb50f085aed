"""POPE's answers by the rules of two other evaluations, which differ from the authors' (`evaluation.pope`).

Scores by different rules do not compare: lmms-eval counts "Yes." as wrong, VLMEvalKit an answer with both words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from diffclip.evaluation.pope import is_unparsed, says_yes


@dataclass(frozen=True)
class Counted:
    """Fractions by one rule. `yes_ratio` is what the rule's own program prints under this name."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unparsed: float


def authors(answers: Sequence[str], labels: Sequence[bool]) -> Counted:
    """The benchmark's own script: whatever has no "no" in its first sentence is a yes."""
    said = [says_yes(answer) for answer in answers]
    return _counted(said, labels, said_no=[not yes for yes in said], unparsed=sum(map(is_unparsed, answers)))


def lmms_eval(answers: Sequence[str], labels: Sequence[bool]) -> Counted:
    """The whole answer, in lower case, is to be "yes" or "no"; its yes ratio is that of the labels."""
    words = [answer.lower().strip() for answer in answers]
    counted = _counted(
        [word == "yes" for word in words],
        labels,
        said_no=[word == "no" for word in words],
        unparsed=sum(word not in ("yes", "no") for word in words),
    )
    return Counted(**vars(counted) | {"yes_ratio": sum(labels) / len(labels)})


def vlmevalkit(answers: Sequence[str], labels: Sequence[bool]) -> Counted:
    """One of the words yes and no, and not the other, is to be among the words; else the answer is wrong, as a no."""
    sets = [set(re.findall(r"\w+", answer.lower())) for answer in answers]
    yes = ["yes" in words and "no" not in words for words in sets]
    no = ["no" in words and "yes" not in words for words in sets]
    unparsed = sum(not a and not b for a, b in zip(yes, no, strict=True))
    return _counted(yes, labels, said_no=no, unparsed=unparsed, missed=[not one for one in yes])


def _counted(
    yes: Sequence[bool],
    labels: Sequence[bool],
    *,
    said_no: Sequence[bool],
    unparsed: int,
    missed: Sequence[bool] | None = None,
) -> Counted:
    """said_no: answers read as a no. missed: answers that recall counts as no yes; those by default."""
    rows = list(zip(yes, said_no, missed or said_no, labels, strict=True))
    right = sum(said if label else no for said, no, _, label in rows)
    hits = sum(said and label for said, _, _, label in rows)
    false = sum(said and not label for said, _, _, label in rows)
    lost = sum(gone and label for _, _, gone, label in rows)
    precision, recall = _ratio(hits, hits + false), _ratio(hits, hits + lost)
    return Counted(
        right / len(rows),
        precision,
        recall,
        _ratio(2 * precision * recall, precision + recall),
        sum(yes) / len(rows),
        unparsed / len(rows),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


RULES: Mapping[str, Callable[[Sequence[str], Sequence[bool]], Counted]] = MappingProxyType(
    {"authors": authors, "lmms-eval": lmms_eval, "VLMEvalKit": vlmevalkit}
)

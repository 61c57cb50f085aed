"""What came out of comparisons, in words: every verdict of the program is made here.

A verdict needs several seeds, numbers that vary, and a p that is adjusted for what is judged with it. Where a sweep has
declared a design, nothing is judged but what that names, once all of its seeds are there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from diffclip.evaluation.stats.seeds import Difference
from diffclip.evaluation.stats.significance import LEVEL, holm, outlier
from diffclip.evaluation.task import is_evidence, metric_title, title_of_task
from diffclip.reporting.design import Study
from diffclip.reporting.rows import Row
from diffclip.reporting.scores import Score
from diffclip.text import percent

ONE_PAIR, NO_EVIDENCE, SATURATED, NOT_ESTIMABLE = "one pair", "no evidence", "saturated", "not estimable"
RELEVANCE = (
    "Relevance is not neutral between the two kinds of attention: a difference in it is no evidence of where the "
    "models look, unless occlusion agrees (docs/analysis.md)."
)


def judge(rows: Sequence[Row], study: Study | None = None) -> tuple[Row, ...]:
    """The rows with their verdicts: "higher", "lower", "equivalent", "undecided", or why there is none.

    p is adjusted by Holm's method among the rows of one role: the primary outcome's, the secondary ones', and where no
    design was declared all of them.
    """
    design = study.design if study else None
    why = [_unjudged(row, study) for row in rows]
    found = dict(enumerate(replace(row, verdict=text or "") for row, text in zip(rows, why, strict=True)))
    for role in dict.fromkeys(row.role for row in rows):
        places = [i for i, row in enumerate(rows) if row.role == role and why[i] is None]
        differences = [difference for i in places if (difference := rows[i].difference)]
        margin = design.margin if design and role == "primary" else None
        # What was declared and is not there yet shares the level too.
        declared = sum(row.role == role and row.model != row.baseline for row in rows) if design else 0
        waiting = [1.0] * max(0, declared - len(places))
        different = holm([*(d.p or 0.0 for d in differences), *waiting])[: len(places)]
        alike = [1.0] * len(places)
        if margin:
            alike = holm([*(d.p_equivalence(margin / 100) or 0.0 for d in differences), *waiting])[: len(places)]
        for i, difference, p, same in zip(places, differences, different, alike, strict=True):
            within = f"± {margin:g}" if same < LEVEL else ""
            found[i] = replace(rows[i], p=p, verdict=_verdict(difference, p, within))
    return tuple(found.values())


def _unjudged(row: Row, study: Study | None) -> str | None:
    """Why a row has no verdict; None where it gets one."""
    difference, design = row.difference, study.design if study else None
    if difference is None:
        return ""
    if not is_evidence(row.task, row.metric):
        return NO_EVIDENCE
    if design and not row.role:
        return "not judged"
    if not difference.count:
        return "no common seed"
    if design and study and difference.count < len(study.seeds):
        return f"{difference.count} of {len(study.seeds)} seeds"
    if difference.count == 1:
        return ONE_PAIR
    return None if difference.estimable else _constant(row)


def _constant(row: Row) -> str:
    """What numbers that do not vary are called: saturated where both models get everything right, or nothing."""
    values = [value for score in row.counted if score for value in score.by_seed.values()]
    return SATURATED if max(values) < 1e-9 or min(values) > 1 - 1e-9 else NOT_ESTIMABLE


def _verdict(difference: Difference, p: float, within: str) -> str:
    if p < LEVEL:
        text = "higher" if difference.mean > 0 else "lower"
        return f"{text}, within {within}" if within else text
    return f"equivalent {within}" if within else f"undecided, ± {percent(difference.half_width)}"


def verdict_text(row: Row) -> str:
    """The verdict with the name of the higher model, for tables that name both."""
    for word, name in (("higher", row.model), ("lower", row.baseline)):
        if row.verdict.startswith(word):
            return f"{name} higher{row.verdict.removeprefix(word)}"
    return row.verdict


def decided(row: Row) -> bool:
    """Whether one of the two is higher."""
    return row.p is not None and row.p < LEVEL


def interval_text(row: Row) -> str:
    """ "+0.3 to +2.1", in percentage points; what keeps it from being estimated; or nothing."""
    difference = row.difference
    if difference is None or not (difference.count > 1 or difference.over_examples):
        return ""
    interval = difference.interval
    if interval is None:
        return _constant(row)
    return f"{percent(interval.low, signed=True)} to {percent(interval.high, signed=True)}"


def score_text(score: Score | None) -> str:
    """ "72.5 ± 0.1", in percent; without the deviation of one seed, and nothing for None."""
    return percent(score.mean, sd=score.sd) if score else ""


def difference_text(difference: Difference | None) -> str:
    """ "+1.2", in percentage points, or nothing."""
    return percent(difference.mean if difference else None, signed=True)


def count_text(row: Row) -> str:
    """How many seeds a row is over."""
    return str(row.difference.count if row.difference else row.score.count if row.score else "")


def p_text(row: Row) -> str:
    """The adjusted p, or nothing."""
    return "" if row.p is None else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"


def headline(rows: Sequence[Row]) -> str:
    """What came out for two models, in the first row that both have."""
    both = [row for row in rows if row.difference is not None]
    if not both:
        names = f"{rows[0].baseline} and {rows[0].model}" if rows else "the two models"
        return f"No data set has results of both {names}."
    return _sentence(both[0], f"On {both[0].dataset}, {metric_title(both[0].task, both[0].metric)}")


def summary(rows: Sequence[Row], study: Study | None = None) -> list[str]:
    """What came out, a sentence a model: of the primary outcome, or else of a group's first comparison."""
    chosen = [row for row in rows if row.role == "primary" and row.difference]
    if study and study.design:
        return [_sentence(row, f"Primary outcome, {row.dataset}") for row in chosen]
    row = next((row for row in rows if row.difference and "zero" in row.task), next(iter(rows), None))
    if row is None:
        return []
    title = f"{metric_title(row.task, row.metric)} on {row.dataset}, {title_of_task(row.task)}"
    return [_sentence(row, f"{row.group}: {title}", " (exploratory: no outcome was declared before the runs)")]


def _sentence(row: Row, title: str, caveat: str = "") -> str:
    """A row in words."""
    difference = row.difference
    first, second = row.counted
    text = f"{title} is {score_text(first)} % for {row.baseline} and {score_text(second)} % for {row.model}: "
    text += f"{difference_text(difference)} points"
    if difference is None or not difference.count:
        return f"{text}, over seeds of which none is common."
    interval = interval_text(row)
    known = difference.interval is not None
    if difference.count == 1:
        over = f" ({interval}, over test images of this one pair)" if known else ""
        return f"{text}{over}. One pair of runs: another seed can turn it round, so there is no verdict."
    over = f" ({f'95 % interval {interval}, ' * known}over {difference.count} seeds)"
    p = f", p = {p_text(row)}".replace("= <", "<") if row.p is not None else ""
    return f"{text}{over}: {verdict_text(row)}{p}{caveat}."


def by_seed(rows: Sequence[Row]) -> Iterator[str]:
    """Every seed of every row, the correlation of the models by seed, and seeds that are far from the others."""
    told = set()
    for row in rows:
        # A sweep's outcome is a row's name; elsewhere a data set has several metrics.
        what = row.dataset if row.dataset == row.group else f"{row.dataset}, {metric_title(row.task, row.metric)}"
        name = f"{what}, {row.model}"
        if row.missing:
            yield f"{name}: no whole result with {_seeds(row.missing)}"
        for model, score in ((row.baseline, row.baseline_score), (row.model, row.score)):
            if score is not None and (what, model) not in told:
                told.add((what, model))
                yield from _of_seeds(f"{what}, {model}", score)
        if row.difference and row.difference.correlation is not None:
            signed = f"{row.difference.correlation:+.2f}".replace("-", "−")
            yield f"{name}: correlation with {row.baseline} by seed {signed}"
        if row.left_out:
            there = f"where {row.baseline} has {score_text(row.counted[0])}; {row.left_out}"
            yield f"{name}: the difference is over {count_text(row)} seeds, {there}"


def _of_seeds(name: str, score: Score) -> Iterator[str]:
    seeds = list(score.by_seed.items())
    yield f"{name}: {', '.join(f'{percent(value)} (seed {seed})' for seed, value in seeds)}"
    far = outlier([value for _, value in seeds])
    if far is not None:
        said = "is far from the others (Grubbs's test, 5 %); it counts as they do"
        yield f"{name}: seed {seeds[far][0]} ({percent(seeds[far][1])}) {said}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def design_text(study: Study) -> str:
    """What was declared, in words."""
    design = study.design
    if design is None:
        return "No outcome was declared before the runs: whatever comes out is exploratory."
    seeds = ", ".join(map(str, study.seeds))
    test = {"t": "a paired t test", "permutation": "a permutation test (all sign flips)"}[design.test]
    margin = (
        f"Equivalent is what lies within ± {design.margin:g} points" if design.margin else "No margin of equivalence"
    )
    others = ", ".join(design.secondary) or "none"
    return (
        f"Declared before the first run: primary outcome {design.primary}, against {study.baseline}, by {test} over "
        f"the {len(study.seeds)} seeds {seeds}. {margin}. Secondary outcomes: {others}. Nothing else is judged."
    )


def note(rows: Sequence[Row], study: Study | None = None) -> str:
    """What a reader must know to read a table of rows."""
    differences = [row.difference for row in rows if row.difference]
    judged = [row for row in rows if row.p is not None]
    flips = study is not None and study.design is not None and study.design.test == "permutation"
    texts = [design_text(study)] if study else []
    if any(difference.count > 1 for difference in differences):
        texts.append(
            "Differences are paired by seed, in percentage points. The 95 % interval is the smallest that holds a "
            f"bootstrap over seeds and test images and {'all sign flips' if flips else 'Student’s t'} over the seeds."
        )
    if any(difference.count == 1 for difference in differences):
        texts.append(
            "Differences are in percentage points. Of one pair of runs the 95 % interval is over test images of this "
            "one pair: another seed would change the difference, so there is no verdict."
        )
    if differences:
        texts.append("Images are resampled, classes are held fixed.")
    if judged and study and study.design:
        texts.append("p is adjusted for the comparisons of the primary outcome, and for the secondary ones (Holm).")
    elif judged:
        beforehand = "" if study else "No outcome was declared beforehand: exploratory. "
        texts.append(f"{beforehand}Verdicts hold {len(judged)} comparisons together at 5 % (Holm).")
    if any(row.verdict == NO_EVIDENCE for row in rows):
        texts.append(RELEVANCE)
    return " ".join(texts)

"""A metric of a model against the baseline's, over seeds, and what came out in words.

Three things are compared: two models of one results.jsonl (`diffclip eval`, the quickstart), the families of a group
(`diffclip report`), and the variants of a sweep. tables/comparison.py has a table of each.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.stats.seeds import EXAMPLES, Difference, Spread, split_seed, spread
from diffclip.evaluation.task import is_compared, metric_title, title_of_task
from diffclip.reporting.collect import Collection as Results
from diffclip.reporting.families import Family, Group, Member
from diffclip.reporting.scores import Score, Scores, Source
from diffclip.text import percent

ZERO_SHOT = "zeroshot_classification"

Metric = tuple[str, str, str]
"""(data set, task, metric), as in results.jsonl."""


@dataclass(frozen=True)
class Row:
    """One metric of a model and of the baseline; scores are fractions, None where one was not measured."""

    group: str
    """What the models were pretrained on; in a sweep the metrics whose mean this is."""
    baseline: str
    model: str
    baseline_score: Spread | None
    score: Spread | None
    difference: Difference | None
    """None where a score is, and of the baseline itself."""
    dataset: str = ""
    task: str = ""
    metric: str = ""
    chance: float | None = None
    missing: tuple[int, ...] = ()
    """Seeds that have some results, but not all of this group."""

    @property
    def verdict(self) -> str:
        """ "MODEL higher", "not significant", or nothing where there is no interval."""
        return self.difference.verdict(f"{self.model} higher", f"{self.baseline} higher") if self.difference else ""


@dataclass(frozen=True)
class ModelName:
    """Whose results are compared: `model` and `pretrained` as in the results, and a label for people."""

    label: str
    model: str
    pretrained: str


def compare_two(
    path: Path, baseline: ModelName, candidate: ModelName, only: Collection[tuple[str, str]] | None = None
) -> tuple[Row, ...]:
    """Every metric of two models by their results in `path` (a results.jsonl), in its order.

    only: (data set, task) of what is wanted, the task as in results; None for all. Raises UserError where the file has
    no result of one of the two.
    """
    names = baseline, candidate
    found = results.read(path)
    for name in names:
        if not any((result.model, result.pretrained) == (name.model, name.pretrained) for result in found):
            others = ", ".join(sorted({f"{r.model} ({r.pretrained})" for r in found})) or "nothing"
            raise UserError(f"{path} has no result of {name.model} ({name.pretrained}), it has {others}")
    both = {(name.model, name.pretrained) for name in names}
    scores = Scores(
        Results.of_file(
            path,
            lambda result: (
                (result.model, result.pretrained) in both and (only is None or (result.dataset, result.task) in only)
            ),
        )
    )
    every = scores.collection.results
    pair = [Family(m.label, "", (Member(m.model, m.pretrained, ""),)) for m in names]
    metrics = [
        (dataset, task, metric)
        for dataset, task in dict.fromkeys((result.dataset, result.task) for result in every)
        for metric in dict.fromkeys(
            metric
            for family in pair
            for result in scores.of([family])
            if (result.dataset, result.task) == (dataset, task)
            for metric in result.metrics
        )
        if metric not in results.NOT_SCORES
    ]
    return tuple(_rows(scores, "", pair, metrics, chance_of=pair))


def compare_families(scores: Scores, group: Group) -> tuple[Row, ...]:
    """Each metric of quality that the baseline of a group and another family have."""
    metrics = dict.fromkeys(
        (result.dataset, result.task, metric)
        for result in scores.of([group.baseline])
        for metric in result.metrics
        if is_compared(result.task, metric)
    )
    rows = _rows(scores, group.name, group.families, metrics, chance_of=[group.baseline])
    return tuple(row for row in rows if row.difference is not None)


def _rows(
    scores: Scores, group: str, families: Sequence[Family], metrics: Iterable[Metric], chance_of: Sequence[Family]
) -> Iterable[Row]:
    """A row for each metric and family after the first. A metric that repeats acc1 exactly is left out."""
    baseline = families[0]
    for dataset, task, metric in metrics:
        source = Source.of(dataset, task, metric)
        for family in families[1:]:
            if metric == "mean_per_class_recall" and _repeats_acc1(scores, (baseline, family), source):
                continue
            yield Row(
                group,
                baseline.label,
                family.label,
                _spread(scores.score(baseline, (source,))),
                _spread(scores.score(family, (source,))),
                scores.difference(baseline, family, (source,)),
                dataset,
                task,
                metric,
                _chance(scores, chance_of, source),
            )


def _spread(score: Score | None) -> Spread | None:
    return Spread(score.mean, score.sd, len(score.by_seed)) if score else None


def _repeats_acc1(scores: Scores, families: Sequence[Family], source: Source) -> bool:
    """Whether all families score the same in acc1, as in mean per-class recall where classes are of one size."""
    for family in families:
        score = scores.score(family, (source,))
        acc1 = scores.score(family, (Source(source.datasets, source.task, ("acc1",)),))
        if score is not None and (acc1 is None or abs(score.mean - acc1.mean) > 1e-9):
            return False
    return True


def _chance(scores: Scores, families: Sequence[Family], source: Source) -> float | None:
    for member in (member for family in families for member in family.members):
        found = scores.result(member, source)
        examples = scores.collection.examples(found[0].key) if found else None
        if examples is not None and source.metrics[0] in examples.chance:
            return examples.chance[source.metrics[0]]
    return None


def compare_variants(
    path: Path,
    weights: Mapping[str, str],
    groups: Mapping[str, Sequence[Metric]],
    baseline: str,
    *,
    resamples: int = 10_000,
) -> tuple[Row, ...]:
    """Each variant of a sweep on each group of metrics, the baseline too, from its results.jsonl.

    weights: variant → what results call its weights, with `*` for the seed, as `split_seed` gives it. A group is the
    mean over its metrics. A seed counts where it has all of them, and for a difference where both variants have it.
    """
    scores = Scores(Results.of_file(path), resamples=resamples)
    members: dict[str, list[Member]] = {stem: [] for stem in weights.values()}
    for model, pretrained in dict.fromkeys((result.model, result.pretrained) for result in scores.collection.results):
        stem, seed = split_seed(pretrained)
        if stem in members and seed is not None:
            members[stem].append(Member(model, pretrained, "", seed))
    by_name = {
        name: Family(name, "", tuple(sorted(members[stem], key=lambda member: member.seed or 0)))
        for name, stem in weights.items()
    }
    rows = []
    for group, metrics in groups.items():
        sources = tuple(Source.of(*metric) for metric in metrics)
        measured = {name: scores.score(family, sources) for name, family in by_name.items()}
        by_seed = {name: score.by_seed if score else {} for name, score in measured.items()}
        spreads = {name: spread(list(values.values())) if values else None for name, values in by_seed.items()}
        for name, family in by_name.items():
            difference = None
            if name != baseline and by_seed[name].keys() & by_seed[baseline].keys():
                difference = scores.difference(by_name[baseline], family, sources)
            missing = tuple(seed for seed in family.by_seed if seed is not None and seed not in by_seed[name])
            rows.append(Row(group, baseline, name, spreads[baseline], spreads[name], difference, missing=missing))
    return tuple(rows)


def interval_text(difference: Difference | None) -> str:
    """ "+0.3 to +2.1", in percentage points, or nothing."""
    interval = difference.interval if difference else None
    return f"{percent(interval.low, signed=True)} to {percent(interval.high, signed=True)}" if interval else ""


def score_text(score: Spread | None) -> str:
    """ "72.5 ± 0.1", in percent; without the deviation of one seed, and nothing for None."""
    return percent(score.mean, sd=score.sd) if score else ""


def difference_text(difference: Difference | None) -> str:
    """ "+1.2", in percentage points, or nothing."""
    return percent(difference.mean if difference else None, signed=True)


def headline(rows: Sequence[Row]) -> str:
    """What came out for two models: the first row that both have in numbers, then the tally of all."""
    both = [row for row in rows if row.difference is not None]
    if not both:
        names = f"{rows[0].baseline} and {rows[0].model}" if rows else "the two models"
        return f"No data set has results of both {names}."
    row = both[0]
    first, second = (percent(score.mean if score else None) for score in (row.baseline_score, row.score))
    scores = f"{metric_title(row.task, row.metric)} is {first} % for {row.baseline} and {second} % for {row.model}"
    text = f"On {row.dataset}, {scores}: {difference_text(row.difference)} points"
    return " ".join([f"{text}{_certainty(row)}.", *_tally(both)])


def summary(rows: Sequence[Row]) -> str:
    """What came out for a group: its first zero-shot comparison in numbers, then the tally of each model."""
    if not rows:
        return ""
    row = next((row for row in rows if row.task == ZERO_SHOT), rows[0])
    scores = f"{score_text(row.baseline_score)} for {row.baseline} and {score_text(row.score)} for {row.model}"
    text = (
        f"{row.group}: {metric_title(row.task, row.metric)} on {row.dataset}, {title_of_task(row.task)}, is {scores}: "
        f"{difference_text(row.difference)} points"
    )
    over = f", over {row.difference.over}" if row.difference else ""
    return " ".join([f"{text}{_certainty(row, over)}.", *_tally(rows)])


def _certainty(row: Row, over: str = "") -> str:
    difference = row.difference
    if difference is None or difference.interval is None:
        return ""
    outcome = "significant" if difference.interval.significant else "not significant"
    alone = " for this pair of training runs" if difference.over == EXAMPLES else ""
    return f" (95 % interval {interval_text(difference)}{over}), {outcome}{alone}"


def _tally(rows: Sequence[Row]) -> list[str]:
    """For each model that has several verdicts, how many of them went which way."""
    sentences = []
    for model in dict.fromkeys(row.model for row in rows):
        verdicts = [row.verdict for row in rows if row.model == model and row.verdict]
        if len(verdicts) > 1:
            baseline = rows[0].baseline
            up, down = (verdicts.count(f"{name} higher") for name in (model, baseline))
            sentences.append(
                f"Of {len(verdicts)} comparisons {model} is significantly higher in {up}, {baseline} in {down}, "
                f"and neither in {len(verdicts) - up - down}."
            )
    return sentences

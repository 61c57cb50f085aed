"""A metric of a model against the baseline's, over seeds.

Three things are compared: two models of one results.jsonl (`diffclip eval`, the quickstart), the families of a group
(`diffclip report`), and the variants of a sweep. verdicts.py says what came out, tables/comparison.py has a table of
each.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.stats.seeds import split_seed
from diffclip.evaluation.task import get_task, is_compared
from diffclip.reporting.collect import Collection as Results
from diffclip.reporting.design import Study
from diffclip.reporting.families import Family, Group, Member
from diffclip.reporting.rows import Row
from diffclip.reporting.scores import Scores, Source
from diffclip.reporting.verdicts import judge

ZERO_SHOT = "zeroshot_classification"

Metric = tuple[str, str, str]
"""(data set, task, metric), as in results.jsonl."""


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
    return judge(tuple(_rows(scores, "", pair, metrics, chance_of=pair)))


def compare_families(scores: Scores, group: Group) -> tuple[Row, ...]:
    """Each metric of quality that the baseline of a group and another family have; not judged."""
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
                scores.score(baseline, (source,)),
                scores.score(family, (source,)),
                scores.difference(baseline, family, (source,)),
                dataset,
                task,
                metric,
                _chance(scores, chance_of, source),
            )


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


def compare_variants(path: Path, study: Study, *, resamples: int = 10_000) -> tuple[Row, ...]:
    """Each variant of a sweep on each outcome, the baseline too, from its results.jsonl, judged by the design.

    A seed counts where it has all metrics of an outcome, and for a difference where both variants have it.
    """
    scores = Scores(Results.of_file(path), resamples=resamples, test=study.design.test if study.design else "t")
    members: dict[str, list[Member]] = {stem: [] for stem in study.weights.values()}
    for model, pretrained in dict.fromkeys((result.model, result.pretrained) for result in scores.collection.results):
        stem, seed = split_seed(pretrained)
        # Seeds beyond the declared ones have been added after something was seen.
        if stem in members and seed is not None and (study.design is None or seed in study.seeds):
            members[stem].append(Member(model, pretrained, "", seed))
    by_name = {
        name: Family(name, "", tuple(sorted(members[stem], key=lambda member: member.seed or 0)))
        for name, stem in study.weights.items()
    }
    rows = []
    for outcome in study.outcome:
        task = get_task(outcome.task).result
        sources = tuple(Source.of(name, task, outcome.metric_on(name)) for name in outcome.data)
        measured = {name: scores.score(family, sources) for name, family in by_name.items()}
        first = measured[study.baseline]
        for name, family in by_name.items():
            score = measured[name]
            has = score.by_seed if score else {}
            row = Row(
                outcome.name,
                study.baseline,
                name,
                first,
                score,
                scores.difference(by_name[study.baseline], family, sources) if name != study.baseline else None,
                outcome.name,
                task,
                outcome.resolved_metric,
                missing=tuple(seed for seed in family.by_seed if seed is not None and seed not in has),
                role=study.role(outcome.name),
            )
            rows.append(row)
    return judge(rows, study)

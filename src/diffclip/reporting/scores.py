"""A family's score on a task, over its seeds, and how sure its difference from another family's is."""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffclip.evaluation.results import PerExampleScores, Result
from diffclip.evaluation.stats import seeds
from diffclip.evaluation.stats.seeds import Difference
from diffclip.evaluation.stats.significance import Test
from diffclip.reporting.collect import Collection
from diffclip.reporting.families import Family, Member


@dataclass(frozen=True)
class Source:
    """Which result a number is taken from."""

    datasets: tuple[str, ...]
    """Names of one data set, as results or `plain_name` have them; the first with a result counts."""
    task: str
    metrics: tuple[str, ...]
    """The first that the result has counts."""

    @classmethod
    def of(cls, dataset: str, task: str, *metrics: str) -> "Source":
        """Of a data set as results call it, under its plain name too: other results may write it otherwise."""
        return cls((dataset, plain_name(dataset)), task, metrics)


Sources = tuple[Source, ...]
"""What a number is the mean of: one source, or all of an average."""


@dataclass(frozen=True)
class Score:
    """A number as a fraction, for each seed that has it; for an average, for each seed that has all of it."""

    by_seed: Mapping[int | None, float]
    repeats_sd: float | None = None
    """Of one training run whose evaluation was repeated: the standard deviation between the repeats."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds (n − 1); of one seed that of the repeats, where it has any."""
        return statistics.stdev(self.by_seed.values()) if self.count > 1 else self.repeats_sd

    @property
    def count(self) -> int:
        """How many seeds."""
        return len(self.by_seed)

    def common(self, other: "Score") -> "Score":
        """The same over the seeds that another score has too; of two that have none in common, itself."""
        both = {seed: value for seed, value in self.by_seed.items() if seed in other.by_seed}
        return Score(both, self.repeats_sd if len(self.by_seed) == 1 else None) if both else self


class Scores:
    """The results of a collection, found by data set, task and member."""

    def __init__(self, collection: Collection, *, resamples: int = 10_000, test: Test = "t") -> None:
        self.collection = collection
        self._resamples, self._test = resamples, test
        self._differences: dict[tuple[object, ...], Difference | None] = {}
        self._found: dict[tuple[str, str, str, str], Result] = {}
        for rename in (plain_name, str):  # of two data sets with one plain name, each also has its own
            for result in collection.results:
                self._found[rename(result.dataset), result.task, result.model, result.pretrained] = result

    def result(self, member: Member, source: Source) -> tuple[Result, str] | None:
        """The result of a source and the metric of it that counts."""
        for dataset in source.datasets:
            result = self._found.get((dataset, source.task, member.model, member.pretrained))
            for metric in source.metrics if result is not None else ():
                if result is not None and metric in result.metrics:
                    return result, metric
        return None

    def score(self, family: Family, sources: Sources) -> Score | None:
        """None where no member has every source: no mean is taken over what happens to be there."""
        by_seed = {}
        for member in family.members:
            values = [self._value(member, source) for source in sources]
            numbers = [value for value in values if value is not None]
            if numbers and len(numbers) == len(values):
                by_seed[member.seed] = float(np.mean(numbers))
        return Score(by_seed, self._repeats_sd(family, sources) if len(by_seed) == 1 else None) if by_seed else None

    def _repeats_sd(self, family: Family, sources: Sources) -> float | None:
        """What few-shot, repeated with other episodes, says beside its one number."""
        results = [self.result(member, sources[0]) for member in family.members] if len(sources) == 1 else []
        return next((found[0].metrics.get(f"{found[1]}_sd") for found in results if found), None)

    def difference(self, baseline: Family, family: Family, sources: Sources) -> Difference | None:
        """Paired by seed, over the seeds that both have; None where one of the two has no score.

        Two lone runs are a pair, whatever their seeds: then the interval is over the test examples alone.
        """
        names = tuple(tuple((m.model, m.pretrained) for m in of.members) for of in (baseline, family))
        if (names, sources) not in self._differences:  # a bootstrap takes long, and tables share their numbers
            self._differences[names, sources] = self._difference(baseline, family, sources)
        return self._differences[names, sources]

    def _difference(self, baseline: Family, family: Family, sources: Sources) -> Difference | None:
        first, second = self.score(baseline, sources), self.score(family, sources)
        if first is None or second is None:
            return None
        pairs = [(seed, seed) for seed in sorted(first.by_seed.keys() & second.by_seed.keys(), key=_place)]
        if len(first.by_seed) == len(second.by_seed) == 1:
            pairs = [(next(iter(first.by_seed)), next(iter(second.by_seed)))]
        if not pairs:
            return seeds.unpaired(second.mean - first.mean)
        members = [(baseline.by_seed[a], family.by_seed[b]) for a, b in pairs]
        matrices = self._example_differences(members, sources)
        return seeds.paired(
            {_place(seed): first.by_seed[seed] for seed, _ in pairs},
            {_place(seed): second.by_seed[other] for seed, other in pairs},
            examples=matrices,
            test=self._test,
            resamples=self._resamples,
        )

    def _example_differences(
        self, members: Sequence[tuple[Member, Member]], sources: Sources
    ) -> list[NDArray[np.float64]]:
        """What each test example adds to the difference, by source; empty where one source cannot tell."""
        matrices = []
        for source in sources:
            results = [[self.result(member, source) for member in pair] for pair in members]
            metrics = {found[1] for pair in results for found in pair if found is not None}
            if len(metrics) != 1:
                return []
            pairs = [tuple(map(self._examples, pair)) for pair in results]
            matrix = seeds.example_differences([(first, second) for first, second in pairs], metrics.pop())
            if matrix is None:
                return []
            matrices.append(matrix)
        return matrices

    def _examples(self, found: tuple[Result, str] | None) -> PerExampleScores | None:
        return None if found is None else self.collection.examples(found[0].key)

    def _value(self, member: Member, source: Source) -> float | None:
        found = self.result(member, source)
        return None if found is None else found[0].metrics[found[1]]

    def of(self, families: Sequence[Family]) -> Iterator[Result]:
        """Every result of some families, in the order in which they were read."""
        names = {(member.model, member.pretrained) for family in families for member in family.members}
        return (r for r in self.collection.results if (r.model, r.pretrained) in names)


def _place(seed: int | None) -> int:
    """For one order and one kind of key: a lone run's seed may not be known."""
    return -1 if seed is None else seed


def plain_name(dataset: str) -> str:
    """A data set's name without what differs between programs: `wds/vtab/caltech101`, `caltech-101`."""
    name = re.sub(r"[-_ ]", "", dataset.lower())
    return re.sub(r"^(wds/)?(vtab/)?", "", name)

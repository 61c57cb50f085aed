"""One comparison: a metric of a model and of the baseline, over the seeds of both."""

from dataclasses import dataclass

from diffclip.evaluation.stats.seeds import Difference
from diffclip.reporting.design import Role
from diffclip.reporting.scores import Score


@dataclass(frozen=True)
class Row:
    """One metric of a model and of the baseline; scores are fractions, None where one was not measured."""

    group: str
    """What the models were pretrained on; in a sweep the metrics whose mean this is."""
    baseline: str
    model: str
    baseline_score: Score | None
    """Of all its seeds, as `score`; `counted` are those that both have."""
    score: Score | None
    difference: Difference | None
    """None where a score is, and of the baseline itself."""
    dataset: str = ""
    task: str = ""
    metric: str = ""
    chance: float | None = None
    missing: tuple[int, ...] = ()
    """Seeds that have some results, but not all of this group."""

    role: Role = ""
    """In the design of a sweep; empty where there is none, and for what it does not name."""
    p: float | None = None
    """Adjusted for all comparisons that are judged with it; None where nothing is."""
    verdict: str = ""
    """Of the model, as `verdicts.judge` gives it."""

    @property
    def counted(self) -> tuple[Score | None, Score | None]:
        """The baseline's and the model's score over the seeds that both have, of which the difference is the mean."""
        if self.baseline_score is None or self.score is None:
            return self.baseline_score, self.score
        return self.baseline_score.common(self.score), self.score.common(self.baseline_score)

    @property
    def left_out(self) -> str:
        """The seeds that only one of both has, in words, or nothing."""
        names = (self.baseline, self.baseline_score), (self.model, self.score)
        parts = []
        for (name, score), counted in zip(names, self.counted, strict=True):
            seeds = [seed for seed in score.by_seed if counted and seed not in counted.by_seed] if score else []
            parts += [f"{name} also has seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
        return "; ".join(parts)

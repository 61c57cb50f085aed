"""A sweep's outcome with every seed drawn: scores, paired by seed, and differences with their intervals."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from diffclip.reporting.figures.bars import COLUMN, Palette
from diffclip.reporting.rows import Row


def outcome(rows: Sequence[Row], palette: Palette, margin: float | None = None) -> Figure:
    """Left the scores, a dot a seed, lines between those of one seed; right the differences from the baseline.

    rows: of one outcome, the baseline's own among them. Bars across are means; whiskers are 95 % intervals; the band is
    the margin of equivalence, in points.
    """
    measured = [row for row in rows if row.score]
    compared = [row for row in measured if row.difference and row.difference.count]
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ink = matplotlib.rcParams["text.color"]
    for seed in dict.fromkeys(seed for row in measured if row.score for seed in row.score.by_seed):
        points = [
            (place, 100 * row.score.by_seed[seed])
            for place, row in enumerate(measured)
            if row.score and seed in row.score.by_seed
        ]
        left.plot(*zip(*points, strict=True), color=ink, linewidth=0.5, alpha=0.35, zorder=1)
    for place, row in enumerate(measured):
        assert row.score is not None
        values = [100 * value for value in row.score.by_seed.values()]
        left.plot([place] * len(values), values, "o", color=palette[row.model], markersize=3, zorder=3)
        left.plot([place - 0.25, place + 0.25], [100 * row.score.mean] * 2, color=palette[row.model], linewidth=1.5)
    right.axhline(0, color=ink, linewidth=0.6)
    if margin is not None:
        right.axhspan(-margin, margin, color=ink, alpha=0.1, linewidth=0)
    for place, row in enumerate(compared):
        assert row.difference is not None
        mean, interval = 100 * row.difference.mean, row.difference.interval
        values = [100 * value for value in row.difference.by_seed]
        right.plot([place] * len(values), values, "o", color=palette[row.model], markersize=3, alpha=0.6, zorder=3)
        if interval and row.difference.count > 1:
            ends = [[mean - 100 * interval.low], [100 * interval.high - mean]]
            right.errorbar(
                place + 0.25, mean, yerr=ends, color=palette[row.model], marker="_", linewidth=1.2, capsize=2
            )
    for axes, shown, title in ((left, measured, "score, %"), (right, compared, "difference, points")):
        axes.set_title(title, fontsize=7, loc="left", pad=3)
        axes.set_xlim(-0.6, max(len(shown), 1) - 0.4)
        slanted = {"rotation": 30, "ha": "right"} if len(shown) > 3 else {}
        axes.set_xticks(range(len(shown)), [row.model for row in shown], fontsize=5.5, **slanted)
    return figure

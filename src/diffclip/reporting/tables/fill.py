"""Tables with their numbers: scores, gains over the baseline, the best of each group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from diffclip.evaluation.stats.seeds import Difference
from diffclip.evaluation.stats.significance import LEVEL, holm
from diffclip.reporting.families import Family, Group
from diffclip.reporting.scores import Score, Scores
from diffclip.reporting.tables import paper_numbers
from diffclip.reporting.tables.layouts import PER_CLASS, Block, Layout


@dataclass(frozen=True)
class Cell:
    """What a row has in a column; everything None where there is no number."""

    score: Score | None = None
    difference: Difference | None = None
    stated: paper_numbers.PaperNumber | None = None
    """The paper's number instead of a measured one."""
    significant: bool | None = None
    """Whether the difference is, with all of the table's held together by Holm; None where it is not judged."""
    best: bool = False
    by_class: bool = False
    """Whether it is of one data set and the mean over its classes."""

    @property
    def mean(self) -> float | None:
        """A fraction."""
        return self.stated.mean if self.stated else self.score.mean if self.score else None

    @property
    def sd(self) -> float | None:
        """Over seeds, a fraction."""
        return self.stated.sd if self.stated else self.score.sd if self.score else None

    @property
    def gain(self) -> float | None:
        """Over the baseline, a fraction."""
        return self.stated.gain if self.stated else self.difference.mean if self.difference else None


@dataclass(frozen=True)
class Row:
    """One family, or the paper's numbers of one model."""

    group: str
    label: str
    kind: str
    cells: tuple[Cell, ...]
    paper: bool = False
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Seeds of the family ("seed 3") → the columns whose numbers are without them."""


@dataclass(frozen=True)
class Table:
    """A layout with its numbers: rows by block."""

    layout: Layout
    rows: tuple[tuple[Row, ...], ...]
    missing: tuple[str, ...]
    """One line for each row that has empty cells."""
    notes: tuple[str, ...]


def fill(
    layout: Layout, scores: Scores, groups: Sequence[Group], *, with_paper: bool = False, judged: bool = True
) -> Table | None:
    """The table's numbers; None where it has none. A family without any number of a block has no row in it.

    judged: whether differences over several seeds may be called significant; not where a sweep declared what is.
    """
    names = [column.name for column in layout.columns]
    rows: list[tuple[Row, ...]] = []
    missing: list[str] = []
    measured = {
        (block.title, group.name): [
            row for family in group.families if (row := _row(layout, block, scores, group, family)) is not None
        ]
        for block in layout.blocks
        for group in groups
    }
    measured = _judge(measured) if judged else measured
    for block in layout.blocks:
        of_block: list[Row] = []
        for group in groups:
            rows_of_group = _mark_best(measured[block.title, group.name])
            if with_paper and block.paper:
                rows_of_group += paper_rows(block.paper, group.name, names)
            of_block += rows_of_group
        if with_paper and block.paper:
            here = {group.name for group in groups}
            for other in paper_numbers.groups(block.paper):
                if other not in here:
                    of_block += paper_rows(block.paper, other, names)
        for row in of_block:
            wanted = zip(names, block.sources, row.cells, strict=True)
            empty = [name for name, sources, cell in wanted if sources and cell.mean is None]
            place = ", ".join(part for part in (block.title, row.group, row.label) if part)
            if empty and not row.paper:
                missing.append(f"{layout.title.partition(':')[0]}: {place}: {', '.join(empty)}")
            for seeds, columns in row.without.items():
                missing.append(f"{layout.title.partition(':')[0]}: {place}, {seeds}: {', '.join(columns)}")
        rows.append(tuple(of_block))
    if not any(rows):
        return None
    return Table(layout, tuple(rows), tuple(missing), tuple(_notes(layout, rows, groups)))


def _row(layout: Layout, block: Block, scores: Scores, group: Group, family: Family) -> Row | None:
    cells = []
    for sources in block.sources:
        score = scores.score(family, sources)
        difference = None
        if score is not None and family is not group.baseline and not layout.seeds:
            difference = scores.difference(group.baseline, family, sources)
            first = scores.score(group.baseline, sources)
            score = score.common(first) if first else score  # what the difference is of
        found = scores.result(family.members[0], sources[0]) if len(sources) == 1 else None
        by_class = found is not None and found[1] == PER_CLASS and len(sources[0].metrics) > 1
        cells.append(Cell(score, difference, by_class=by_class))
    if not any(cell.score for cell in cells):
        return None
    if layout.seeds and not any(cell.sd is not None for cell in cells):
        return None
    without: dict[str, list[str]] = {}
    for column, cell in zip(layout.columns, cells, strict=True):
        left = [seed for seed in family.by_seed if cell.score is not None and seed not in cell.score.by_seed]
        if left:
            name = f"seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}"
            without.setdefault(name, []).append(column.name)
    return Row(group.name, family.label, family.kind, tuple(cells), without=without)


def _judge(measured: Mapping[tuple[str, str], Sequence[Row]]) -> dict[tuple[str, str], list[Row]]:
    """Whether each difference is significant, all of them held together."""
    cells = [cell for rows in measured.values() for row in rows for cell in row.cells if _p(cell) is not None]
    adjusted = iter(holm([_p(cell) or 0.0 for cell in cells]))

    def judged(cell: Cell) -> Cell:
        return cell if _p(cell) is None else replace(cell, significant=next(adjusted) < LEVEL)

    return {
        place: [replace(row, cells=tuple(map(judged, row.cells))) for row in rows] for place, rows in measured.items()
    }


def _p(cell: Cell) -> float | None:
    return cell.difference.p if cell.difference else None


def _mark_best(rows: Sequence[Row]) -> list[Row]:
    """Mark the highest number of each column, to the decimal that is shown.

    Nothing is marked where there is one row, nor where the highest is not known to be significantly above the baseline,
    or is the baseline and another is not known to be below it.
    """
    if len(rows) < 2:
        return list(rows)
    columns = []
    for column in zip(*(row.cells for row in rows), strict=True):
        shown = [None if cell.mean is None else round(100 * cell.mean, 1) for cell in column]
        known = [value for value in shown if value is not None]
        best = max(known) if len(known) > 1 else None
        top = [cell for cell, value in zip(column, shown, strict=True) if value is not None and value == best]
        judged = column if any(cell.difference is None for cell in top) else top
        if any(cell.difference is not None and not cell.significant for cell in judged):
            best = None
        columns.append(
            [replace(cell, best=value is not None and value == best) for cell, value in zip(column, shown, strict=True)]
        )
    return [replace(row, cells=cells) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)]


def paper_rows(name: str, group: str, columns: Sequence[str]) -> list[Row]:
    """The paper's numbers of one pretraining, as rows."""
    return [
        Row(group, model, model, tuple(Cell(stated=stated.get(column)) for column in columns), paper=True)
        for model, stated in paper_numbers.rows(name, group).items()
    ]


def _notes(layout: Layout, rows: Sequence[Sequence[Row]], groups: Sequence[Group]) -> Iterator[str]:
    """What a reader must know to read the numbers."""
    measured = [row for block in rows for row in block if not row.paper]
    shown = {(row.group, row.label) for row in measured}
    scores = [cell.score for row in measured for cell in row.cells if cell.score]
    if any(score.sd is not None and len(score.by_seed) == 1 for score in scores):
        yield "± of a single training run: one standard deviation over repeats of the evaluation with other episodes."
    if any(len(score.by_seed) > 1 for score in scores):
        spans = [
            f"{group.name} {family.label}: {', '.join(str(seed) for seed in family.by_seed)}"
            for group in groups
            for family in group.families
            if (group.name, family.label) in shown and len(family.members) > 1
        ]
        yield f"Mean ± sd over seeds of the training ({'; '.join(spans)})."
    differences = [cell for row in measured for cell in row.cells if cell.difference]
    if differences:
        text = "In brackets the gain over the first model of the pretraining, in points"
        several = any(cell.difference and cell.difference.count > 1 for cell in differences)
        text += ", over the seeds that both have" if several else ""
        judged = [cell for cell in differences if cell.significant is not None]
        if judged:
            text += (
                "; “ns”, not significant, where its p, paired over seeds and held together by Holm with the "
                f"{len(judged)} of this table, is 0.05 or more"
            )
        yield text + "."
        if any(cell.difference and cell.difference.count == 1 for cell in differences):
            yield "Gains of one pair of runs have no mark: another seed can turn them round."
    by_class = [
        column.name for place, column in enumerate(layout.columns) if any(row.cells[place].by_class for row in measured)
    ]
    if by_class:
        yield f"{', '.join(by_class)}: mean per class, as the protocol says; the others are plain top-1."
    if any(row.paper for block in rows for row in block):
        yield "Rows marked “paper” are the paper's own numbers (arXiv 2503.06626), not measured here."

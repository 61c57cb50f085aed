"""What a report holds: the tables and drawings of each group of models, the differences, and what is missing."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

from diffclip.analysis.curves import Curve, ends, read_curves
from diffclip.evaluation.task import metric_title
from diffclip.reporting.compare import compare_families
from diffclip.reporting.families import Group, run_warnings
from diffclip.reporting.figures import bars as paper_figures
from diffclip.reporting.figures import curves as curve_figures
from diffclip.reporting.figures import points as figure_points
from diffclip.reporting.figures.bars import Palette
from diffclip.reporting.figures.points import lambdas_in_words, panels_in_words
from diffclip.reporting.page.outcomes import difference_parts, study_parts
from diffclip.reporting.page.parts import Drawing, Part, Report
from diffclip.reporting.scores import Scores
from diffclip.reporting.tables import layouts as paper_tables
from diffclip.reporting.tables.fill import Table, fill
from diffclip.reporting.tables.formats import gain_text, value_text
from diffclip.reporting.tables.layouts import Layout, grounding_layouts
from diffclip.text import slug


def build(scores: Scores, groups: Sequence[Group], *, with_paper: bool = False) -> Report:
    """Tables and drawings of all results; what the paper has and these do not is listed as missing."""
    palette = Palette.of([family.label for group in groups for family in group.families])
    papers = [group for group in groups if paper_tables.uses_paper_data(scores, group)]
    studies = scores.collection.studies
    judged = not any(study.design for _, study in studies)
    parts: list[Part] = [part for path, study in studies for part in study_parts(path, study, palette)]
    missing: list[str] = []
    if papers or with_paper:
        parts.append(_paper_part(scores, papers, palette, missing, with_paper, judged))
    else:
        missing.append("Tables 1, 2, 4 and 5, Figures 1, 3, 4 and 5: no results on the paper's data sets")
    for group in groups:
        parts += _group_parts(scores, group, palette, missing, judged)
        missing += [
            f"{group.name}: the run {member.run.path} is not finished"
            for family in group.families
            for member in family.members
            if member.run is not None and not member.run.finished
        ]
    return Report(tuple(parts), tuple(missing), scores.collection.notes, run_warnings(groups))


def _paper_part(
    scores: Scores, groups: Sequence[Group], palette: Palette, missing: list[str], with_paper: bool, judged: bool
) -> Part:
    tables = []
    for layout in paper_tables.paper_layouts():
        table = _fill(layout, scores, groups, missing, with_paper, judged)
        if table is not None:
            tables.append(table)
        if table is None or not any(not row.paper for block in table.rows for row in block):
            why = "no model was trained with several seeds" if layout.seeds else "no results"
            missing.append(f"{layout.title.partition(':')[0]}: {why}")
    drawings = [d for group in groups for d in _task_drawings(scores, group, palette, missing, judged, with_paper)]
    return Part("The paper's tables and figures", "", tuple(tables), tuple(drawings))


def _group_parts(scores: Scores, group: Group, palette: Palette, missing: list[str], judged: bool) -> Iterator[Part]:
    tables = [
        table
        for layout in (*paper_tables.other_layouts(scores, group), *paper_tables.pope_layouts(scores, group))
        if (table := _fill(layout, scores, [group], missing, judged=judged))
    ]
    drawings: list[Drawing] = []
    if not paper_tables.uses_paper_data(scores, group):
        drawings = list(_task_drawings(scores, group, palette, missing, judged))
    if tables or drawings:
        yield Part(f"Results, {group.name}", "", tuple(tables), tuple(drawings))
    sections = (
        ("Robustness", _robustness(scores, group, palette)),
        ("Inside the attention", chain(_noise(scores, group, palette), _lambda(group, palette))),
        ("Training", _training(group, palette)),
    )
    for title, section in sections:
        if of_section := tuple(section):
            yield Part(f"{title}, {group.name}", "", (), of_section)
    relevance = [_fill(layout, scores, [group], missing, judged=False) for layout in grounding_layouts(scores, group)]
    yield from difference_parts(compare_families(scores, group), group, relevance, judged)


TRAINED = {"loss": "Loss", "logit_scale": "Logit scale, 1 / temperature"}
EVALUATED = {
    "acc1": paper_tables.ZERO_SHOT,
    "image_retrieval_recall@1": paper_tables.RETRIEVAL,
    "text_retrieval_recall@1": paper_tables.RETRIEVAL,
    "pair_accuracy": paper_tables.FINE_GRAINED,
}


def _fill(
    layout: Layout,
    scores: Scores,
    groups: Sequence[Group],
    missing: list[str],
    with_paper: bool = False,
    judged: bool = True,
) -> Table | None:
    table = fill(layout, scores, groups, with_paper=with_paper, judged=judged)
    if table is not None:
        missing += table.missing
    return table


def _task_drawings(
    scores: Scores, group: Group, palette: Palette, missing: list[str], judged: bool, with_paper: bool = False
) -> Iterator[Drawing]:
    """Figures 1, 3, 4 and 5 of a group."""
    name = group.name
    pair = Group(name, group.families[:2])
    variants = [(paper_tables.task_layout(scores, group, 5), group, f"Figure 5, {name}")]
    layouts = [
        (paper_tables.task_layout(scores, group, 1), pair, f"Figure 1, {name}"),
        *(variants if len(group.families) > 2 else []),
        (paper_tables.shift_layout(scores, group), group, f"Figure 3, {name}"),
        (paper_tables.pattern_layout(scores, group), group, f"Figure 4, {name}"),
    ]
    for layout, of, called in layouts:
        table = _fill(layout, scores, [of], missing, with_paper, judged) if layout else None
        if table is None:
            missing.append(f"{called}: no results")
            continue
        radar = table.layout.name.startswith("figure4")
        chart = paper_figures.radar if radar else paper_figures.bars
        yield Drawing(
            table.layout.name,
            table.layout.title,
            _caption(table, radar),
            describe(table, name),
            partial(chart, table, name, palette),
            table,
        )


def _caption(table: Table, radar: bool) -> str:
    """What a reader must know to read the chart of a table."""
    rows = [row for block in table.rows for row in block]
    measured = [row for row in rows if not row.paper]
    if radar:
        texts = ["Mean over seeds."] if any(cell.sd is not None for row in measured for cell in row.cells) else []
        if len(measured) == 2:
            texts.append(f"Below each pattern: {' / '.join(row.label for row in measured)}.")
        return " ".join(texts)
    texts = []
    if any(cell.sd is not None for row in measured for cell in row.cells):
        texts.append("Whiskers: one standard deviation over seeds; dots: the seeds.")
    if len(measured) <= 2 and any(cell.difference for row in measured for cell in row.cells):
        marked = any(cell.significant is False for row in measured for cell in row.cells)
        texts.append("Second line: the gain, in points" + ("; “ns”: not significant." if marked else "."))
    if any(row.paper for row in rows):
        texts.append("Hollow, in italics: the paper's own numbers, not measured here.")
    return " ".join(texts)


def describe(table: Table, group: str) -> str:
    """The numbers of a chart as a sentence: what it shows to those who do not see it."""
    rows = [row for block in table.rows for row in block if row.group == group and not row.paper]
    parts = []
    for place, column in enumerate(table.layout.columns):
        numbers = [
            f"{row.label} {value_text(row.cells[place]) or 'not measured'}"
            + (f" ({gain_text(row.cells[place])})" if gain_text(row.cells[place]) else "")
            for row in rows
        ]
        parts.append(f"{column.name}: {', '.join(numbers)}")
    return f"{table.layout.title}. {'; '.join(parts)}."


def _bands(group: Group) -> str:
    """What a caption says of bands, which are drawn where a family has several seeds."""
    return " Bands: one sd over seeds." if any(len(family.members) > 1 for family in group.families) else ""


def _robustness(scores: Scores, group: Group, palette: Palette) -> Iterator[Drawing]:
    for dataset in paper_tables.data_sets(scores, group, "robustness"):
        if attacks := figure_points.attacks(scores, group, dataset):
            yield Drawing(
                f"attacks-{slug(group.name)}-{slug(dataset)}",
                f"Adversarial robustness on {dataset}, {group.name}",
                "An image that is wrong without an attack counts as wrong under each." + _bands(group),
                f"Top-1 accuracy on {dataset} under attacks of growing strength ε, in percent. "
                + panels_in_words(attacks, x="ε"),
                partial(curve_figures.attacks, attacks, palette),
            )
    for dataset in paper_tables.data_sets(scores, group, "corruptions"):
        if severities := figure_points.severities(scores, group, dataset):
            yield Drawing(
                f"corruptions-{slug(group.name)}-{slug(dataset)}",
                f"Common corruptions on {dataset}, {group.name}",
                "Mean over the kinds of corruption." + _bands(group),
                f"Top-1 accuracy on {dataset} over the severity of corruptions, in percent. "
                + panels_in_words(severities, x="severity"),
                partial(curve_figures.severities, severities, palette),
            )


def _noise(scores: Scores, group: Group, palette: Palette) -> Iterator[Drawing]:
    for dataset in paper_tables.data_sets(scores, group, "noise"):
        if panels := figure_points.noise(scores, group, dataset):
            yield Drawing(
                f"noise-{slug(group.name)}-{slug(dataset)}",
                f"Correlation of A1 and A2 by layer on {dataset}, {group.name}",
                "On the same images clean, cluttered and noisy. Of standard attention, A1 and A2 are neighbouring "
                "heads." + _bands(group),
                f"Correlation of the two attention maps by layer on clean, cluttered and noisy images of {dataset}. "
                + panels_in_words(panels, x="layer", number="plain"),
                partial(curve_figures.noise, panels, palette),
            )


def _lambda(group: Group, palette: Palette) -> Iterator[Drawing]:
    having = [family for family in group.families if figure_points.lambda_curves(family)]
    several = any(len(curves) > 1 for family in having for curves in figure_points.lambda_curves(family).values())
    if having:
        yield Drawing(
            f"lambda-layers-{slug(group.name)}",
            f"λ by layer after training, {group.name}",
            "How much of the second map each layer subtracts." + (" Lines: mean; dots: seeds." if several else ""),
            "λ of each layer after training, from the input on. "
            + ". ".join(f"{family.label}: {lambdas_in_words(family)}" for family in having),
            partial(curve_figures.lambda_by_layer, having, palette),
        )
    for family in having:
        yield Drawing(
            f"lambda-time-{slug(group.name)}-{_file(family.label)}",
            f"λ over training, {family.label}, {group.name}",
            "Layer 1 is nearest the input." + (" Lines: mean; bands: range over seeds." if several else ""),
            f"λ of each layer over the steps of training of {family.label}, from the input on. At the first step that "
            f"was logged: {lambdas_in_words(family, 0)}. At the last: {lambdas_in_words(family)}",
            partial(curve_figures.lambda_over_time, family),
        )


def _training(group: Group, palette: Palette) -> Iterator[Drawing]:
    by_name: dict[str, dict[str, list[Curve]]] = {}
    for family in group.families:
        for member in family.members:
            for name, curve in read_curves(member.logs).items() if member.logs else ():
                # An evaluation after the last step alone is no curve.
                if name in TRAINED or (name.rpartition("/")[2] in EVALUATED and "/" in name and len(curve.steps) > 1):
                    by_name.setdefault(name, {}).setdefault(family.label, []).append(curve)
    for name, curves in by_name.items():
        title = TRAINED.get(name) or _evaluation_title(name)
        yield Drawing(
            f"{slug(name)}-{slug(group.name)}",
            f"{title} over training, {group.name}",
            "Lines: mean; bands: range over seeds." if max(map(len, curves.values())) > 1 else "",
            f"{title} over the steps of training: {ends(curves)}",
            partial(curve_figures.training_curves, curves, palette, ylabel=title),
        )


def _evaluation_title(name: str) -> str:
    """What is measured during training is logged as "data set/metric"."""
    dataset, _, metric = name.rpartition("/")
    title = metric_title(EVALUATED[metric], metric)
    return f"{title[:1].upper()}{title[1:]} on {dataset}"


def _file(label: str) -> str:
    """A label as part of a file's name; the paper's signs become words, so that no two labels share a file."""
    return slug(label.replace("*", " dynamic").replace("†", " vision"))

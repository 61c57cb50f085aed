"""The paper's tables as data: rows, columns, and which result fills each cell; and the same for other data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from diffclip.evaluation.task import columns_of
from diffclip.reporting.compare import ZERO_SHOT
from diffclip.reporting.families import Group
from diffclip.reporting.scores import Scores, Source, Sources, plain_name
from diffclip.text import slug

PROBE, FEW_SHOT = "linear_probe", "few_shot"
RETRIEVAL = "zeroshot_retrieval"
# Caltech-101, Pets, Flowers and Aircraft are scored by the mean over classes in the paper's protocol.
PER_CLASS = "mean_per_class_recall"
BY_CLASS = (PER_CLASS, "acc1")
TOP1 = ("acc1",)
RECALL = {"image": ("image_retrieval_recall@5",), "text": ("text_retrieval_recall@5",)}

NINE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Caltech-101": (("caltech101",), BY_CLASS),
    "DTD": (("dtd",), TOP1),
    "Pets": (("pets", "oxfordpets", "oxfordiiitpet"), BY_CLASS),
    "Flowers": (("flowers", "flowers102", "oxfordflowers", "oxfordflowers102"), BY_CLASS),
    "SUN397": (("sun397",), TOP1),
    "Aircraft": (("aircraft", "fgvcaircraft"), BY_CLASS),
    "CIFAR10": (("cifar10",), TOP1),
    "CIFAR100": (("cifar100",), TOP1),
    "Food-101": (("food101",), TOP1),
}
CAPTIONED = {
    "Flickr30k": ("flickr30k",),
    "Flickr8k": ("flickr8k",),
    "MSCOCO": ("mscoco", "mscococaptions", "coco", "cococaptions"),
}
IMAGENET = ("imagenet", "imagenet1k")
SHIFTS = {
    "V2": ("imagenetv2",),
    "A": ("imageneta",),
    "R": ("imagenetr",),
    "Sketch": ("imagenetsketch",),
}
MMVP = ("mmvpvlm", "mmvp")
FINE_GRAINED, PAIRS = "fine_grained", "pair_accuracy"
GROUNDING, POPE = "grounding", "pope"
ASKED = {"accuracy": "acc.", "precision": "prec.", "recall": "recall", "above_blind": "above blind"}
"""POPE's metrics in a table; the last is accuracy minus that of a run that sees nothing."""
SIX = ("Linear probing", "Few-shot", "Image retrieval", "Text retrieval", "Zero-shot", "Zero-shot OOD")
# Data sets that small models are tried on as well: alone they do not make a comparison with the paper.
SMALL = {"cifar10"}


@dataclass(frozen=True)
class Column:
    """A column's title, and the heading above it that it shares with its neighbours."""

    label: str
    over: str = ""

    @property
    def name(self) -> str:
        """Both in one line."""
        return f"{self.over} {self.label}".strip()


@dataclass(frozen=True)
class Block:
    """Rows of a table under one title; sources: what fills each column."""

    title: str
    sources: tuple[Sources, ...]
    paper: str = ""
    """Which of the paper's numbers belong beside it, as `paper_numbers.rows` calls them."""


@dataclass(frozen=True)
class Layout:
    """A table before it has numbers."""

    name: str
    """Of its files."""
    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    seeds: bool = False
    """Whether the table is about the spread over seeds: then it has no gains, and only rows with several."""


def paper_layouts() -> list[Layout]:
    """Tables 1, 2, 4 and 5; Table 3, which is of language models, is `pope_layouts`."""
    nine = (*(Column(label) for label in NINE), Column("Avg."))
    probe, few_shot = (
        _with_average([Source(names, task, metrics) for names, metrics in NINE.values()]) for task in (PROBE, FEW_SHOT)
    )
    captioned = (Column(label, f"{way.title()} retrieval") for way in RECALL for label in (*CAPTIONED, "Avg."))
    recall = (
        sources
        for metrics in RECALL.values()
        for sources in _with_average([Source(names, RETRIEVAL, metrics) for names in CAPTIONED.values()])
    )
    return [
        Layout(
            "table1",
            "Table 1: linear probing and few-shot classification (accuracy, %)",
            nine,
            (Block("Linear probing", probe, "linear_probe"), Block("Few-shot", few_shot, "few_shot")),
        ),
        Layout(
            "table2",
            "Table 2: zero-shot retrieval (recall@5, %) and zero-shot ImageNet (accuracy, %)",
            (*captioned, Column("ImageNet", "Zero-shot")),
            (Block("", (*recall, (Source(IMAGENET, ZERO_SHOT, TOP1),)), "retrieval"),),
        ),
        Layout(
            "table4",
            "Table 4: linear probing over seeds (accuracy, mean ± sd, %)",
            nine,
            (Block("", probe, "seeds linear_probe"),),
            seeds=True,
        ),
        Layout(
            "table5",
            "Table 5: few-shot classification over seeds (accuracy, mean ± sd, %)",
            nine,
            (Block("", few_shot, "seeds few_shot"),),
            seeds=True,
        ),
    ]


def shift_layout(scores: Scores, group: Group) -> Layout | None:
    """Figure 3: zero-shot accuracy on a data set, on its shifted versions, and the mean over those."""
    if uses_paper_data(scores, group):
        names = {"ImageNet": IMAGENET, **{f"ImageNet-{name}": spellings for name, spellings in SHIFTS.items()}}
        title = f"Figure 3: zero-shot ImageNet and its shifts, {group.name} (accuracy, %)"
        layout = _shifts(f"figure3-{slug(group.name)}", title, names)
        return replace(layout, blocks=(replace(layout.blocks[0], paper="shifts"),))
    shifts = shifts_of(data_sets(scores, group, ZERO_SHOT))
    if not shifts:
        return None
    reference, shifted = next(iter(shifts.items()))
    names = {name: (name, plain_name(name)) for name in (reference, *shifted)}
    title = f"Zero-shot on {reference} and its shifts (accuracy, %), as Figure 3 of the DiffCLIP paper"
    return _shifts(f"figure3-{slug(group.name)}", title, names)


def _shifts(name: str, title: str, names: Mapping[str, tuple[str, ...]]) -> Layout:
    reference, *shifted = ((Source(spellings, ZERO_SHOT, TOP1),) for spellings in names.values())
    average = tuple(source for sources in shifted for source in sources)
    columns = (*(Column(label) for label in names), Column("Avg. of shifts"))
    return Layout(name, title, columns, (Block("", (reference, *shifted, average)),))


def pattern_layout(scores: Scores, group: Group) -> Layout | None:
    """Figure 4: fine-grained pairs by pattern, and the mean over patterns."""
    results = [result for result in scores.of(group.families) if result.task == FINE_GRAINED]
    if not results:
        return None
    mmvp = next((result for result in results if plain_name(result.dataset) in MMVP), None)
    dataset = (mmvp or results[0]).dataset
    prefix = f"{PAIRS}/"
    patterns = [m for r in results if r.dataset == dataset for m in r.metrics if m.startswith(prefix)]
    patterns = list(dict.fromkeys(patterns))
    sources = [
        (Source(MMVP if mmvp else (dataset, plain_name(dataset)), FINE_GRAINED, (metric,)),)
        for metric in (*patterns, PAIRS)
    ]
    labels = [pattern.removeprefix(prefix).replace("_", " ").capitalize() for pattern in patterns]
    columns = (*map(Column, labels), Column("Avg."))
    if mmvp:
        title = f"Figure 4: MMVP-VLM, {group.name} (pairs right, %)"
    else:
        title = f"Fine-grained pairs of {dataset} (right, %), as Figure 4 of the DiffCLIP paper"
    paper = "mmvp" if mmvp else ""
    return Layout(f"figure4-{slug(group.name)}", title, columns, (Block("", tuple(sources), paper),))


def task_layout(scores: Scores, group: Group, number: int) -> Layout | None:
    """Figure 1 (of two models) or 5 (of all variants), by number: the mean of each of six groups of tasks."""
    paper = uses_paper_data(scores, group)
    if paper:
        classification, retrieval, *_ = paper_layouts()
        averages = [block.sources[-1] for block in classification.blocks]
        recall = retrieval.blocks[0].sources
        averages += [recall[3], recall[7], recall[8]]
    else:
        averages = [
            tuple(Source.of(name, task, *TOP1) for name in data_sets(scores, group, task)) for task in (PROBE, FEW_SHOT)
        ]
        captioned = data_sets(scores, group, RETRIEVAL)
        averages += [tuple(Source.of(n, RETRIEVAL, *metrics) for n in captioned) for metrics in RECALL.values()]
        zero_shot = data_sets(scores, group, ZERO_SHOT)
        reference = next(iter(shifts_of(zero_shot)), zero_shot[0] if zero_shot else "")
        averages.append((Source.of(reference, ZERO_SHOT, *TOP1),) if reference else ())
    shifts = shift_layout(scores, group)
    averages.append(shifts.blocks[0].sources[-1] if shifts else ())
    title = f"Figure {number}: six groups of tasks, {group.name} (%)"
    if not paper:
        title = f"Six groups of tasks, {group.name} (%), as Figure {number} of the DiffCLIP paper"
    kept = [(label, sources) for label, sources in zip(SIX, averages, strict=True) if sources]
    if not kept:
        return None
    columns = tuple(Column("ImageNet" if paper and label == SIX[4] else label) for label, _ in kept)
    name = f"figure{number}-{slug(group.name)}"
    return Layout(name, title, columns, (Block("", tuple(sources for _, sources in kept), "tasks" if paper else ""),))


def grounding_layouts(scores: Scores, group: Group) -> list[Layout]:
    """Where the models look, on each data set with masks: what the paper's Appendix A leaves to pictures."""
    layouts = []
    for dataset in data_sets(scores, group, GROUNDING):
        known = {m for r in scores.of(group.families) if (r.dataset, r.task) == (dataset, GROUNDING) for m in r.metrics}
        measured = {metric: label for metric, label in columns_of(GROUNDING).items() if metric in known}
        columns = tuple(map(Column, measured.values()))
        sources = tuple((Source.of(dataset, GROUNDING, metric),) for metric in measured)
        title = f"Relevance and masks on {dataset} (%)"
        layouts.append(Layout(f"grounding-{slug(group.name)}-{slug(dataset)}", title, columns, (Block("", sources),)))
    return layouts


def pope_layouts(scores: Scores, group: Group) -> list[Layout]:
    """Table 3: POPE by split, on COCO or on drawn scenes, and how far a model is above a run that sees nothing."""
    names = data_sets(scores, group, POPE)
    if not names:
        return []
    known = {metric for result in scores.of(group.families) if result.task == POPE for metric in result.metrics}
    metrics = {metric: label for metric, label in ASKED.items() if metric in known}
    columns = tuple(Column(label, name) for name in names for label in metrics.values())
    sources = tuple((Source.of(name, POPE, metric),) for name in names for metric in metrics)
    title = f"POPE on {group.name} (%), as Table 3 of the DiffCLIP paper"
    return [Layout(f"table3-{slug(group.name)}", title, columns, (Block("", sources),))]


def data_sets(scores: Scores, group: Group, task: str) -> list[str]:
    """The data sets on which a group was measured by a task."""
    return list(dict.fromkeys(result.dataset for result in scores.of(group.families) if result.task == task))


def _with_average(sources: Sequence[Source]) -> tuple[Sources, ...]:
    """A column for each source and, of two or more, one for their mean."""
    each = [(source,) for source in sources]
    return (*each, tuple(sources)) if len(sources) > 1 else tuple(each)


def paper_data_sets() -> set[str]:
    """Plain names of every data set in the paper's tables and in its Figure 3."""
    names = [names for names, _ in NINE.values()]
    return {name for spellings in (*names, *CAPTIONED.values(), IMAGENET, *SHIFTS.values()) for name in spellings}


def uses_paper_data(scores: Scores, group: Group) -> bool:
    """Whether a group was measured on a data set that speaks of the paper's comparison."""
    telling = paper_data_sets() - SMALL
    return any(plain_name(result.dataset) in telling for result in scores.of(group.families))


def other_layouts(scores: Scores, group: Group) -> list[Layout]:
    """The same tables for the data sets of a group that are not in the paper's: whatever it was measured on."""
    mine = list(scores.of(group.families))
    skip = paper_data_sets() if uses_paper_data(scores, group) else set()

    def on(task: str) -> list[str]:
        return list(dict.fromkeys(r.dataset for r in mine if r.task == task and plain_name(r.dataset) not in skip))

    shifted = {name for shifts in shifts_of(on(ZERO_SHOT)).values() for name in shifts}
    classified = {PROBE: on(PROBE), FEW_SHOT: on(FEW_SHOT), ZERO_SHOT: [d for d in on(ZERO_SHOT) if d not in shifted]}
    names = list(dict.fromkeys(name for names in classified.values() for name in names))
    titles = {PROBE: "Linear probing", FEW_SHOT: "Few-shot", ZERO_SHOT: "Zero-shot"}
    layouts = []

    def block(task: str, measured: Sequence[str]) -> Block:
        """A data set on which nobody was measured leaves its column empty, and out of the average."""
        each = {name: Source.of(name, task, *TOP1) for name in measured}
        columns: list[Sources] = [(each[name],) if name in each else () for name in names]
        average = [tuple(each.values()) if len(each) > 1 else ()] if len(names) > 1 else []
        return Block(titles[task], (*columns, *average))

    columns = tuple(Column(n) for n in names) + ((Column("Avg."),) if len(names) > 1 else ())
    if names:
        blocks = tuple(block(task, measured) for task, measured in classified.items() if measured)
        title = f"Classification on {group.name} (accuracy, %), as Table 1 of the DiffCLIP paper"
        layouts.append(Layout(f"table1-{slug(group.name)}", title, columns, blocks))
    captioned = on(RETRIEVAL)
    if captioned:
        image, text = (
            _with_average([Source.of(name, RETRIEVAL, *metrics) for name in captioned]) for metrics in RECALL.values()
        )
        labels = (*captioned, "Avg.") if len(captioned) > 1 else captioned
        columns = tuple(Column(label, f"{way.title()} retrieval") for way in RECALL for label in labels)
        title = f"Zero-shot retrieval on {group.name} (recall@5, %), as Table 2 of the DiffCLIP paper"
        layouts.append(Layout(f"table2-{slug(group.name)}", title, columns, (Block("", (*image, *text)),)))
    return layouts


def shifts_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Data set → its shifted versions: those whose names continue its own, as scenes/test_v2 does scenes/test."""
    by_name = {name: [other for other in names if other.startswith((f"{name}_", f"{name}-"))] for name in names}
    return {name: shifts for name, shifts in by_name.items() if shifts}

import csv
import io
import re

import pytest
from made_results import NINE, paper_results, put, scene_results

from diffclip.reporting.collect import collect
from diffclip.reporting.families import find_groups
from diffclip.reporting.scores import Scores
from diffclip.reporting.tables import formats
from diffclip.reporting.tables import layouts as paper_tables
from diffclip.reporting.tables.fill import fill


def read(path):
    collection = collect([path])
    return Scores(collection), find_groups(collection)


def tables_of(path, **options):
    """name → filled table, of every layout there is."""
    scores, groups = read(path)
    papers = [one for one in groups if paper_tables.uses_paper_data(scores, one)]
    layouts = [(layout, papers) for layout in paper_tables.paper_layouts()]
    for one in groups:
        of_group = [
            *paper_tables.other_layouts(scores, one),
            *paper_tables.grounding_layouts(scores, one),
            *paper_tables.pope_layouts(scores, one),
            paper_tables.shift_layout(scores, one),
            paper_tables.pattern_layout(scores, one),
            paper_tables.task_layout(scores, one, 5),
        ]
        layouts += [(layout, [one]) for layout in of_group if layout]
    filled = ((layout.name, fill(layout, scores, among, **options)) for layout, among in layouts)
    return {name: table for name, table in filled if table}


def cells(table, label, block=0):
    (row,) = (row for row in table.rows[block] if row.label == label and not row.paper)
    return dict(zip((column.name for column in table.layout.columns), row.cells, strict=True))


@pytest.fixture
def paper(tmp_path):
    return tables_of(paper_results(tmp_path / "results.jsonl"))


def test_table_1_takes_each_cell_from_its_result(paper):
    clip, diff = cells(paper["table1"], "CLIP"), cells(paper["table1"], "DiffCLIP")
    # By class where the protocol says so, else by image.
    for name, value in {"Caltech-101": 0.40, "DTD": 0.51, "Pets": 0.42, "Flowers": 0.43, "Aircraft": 0.45}.items():
        assert clip[name].mean == pytest.approx(value), name
    assert clip["Food-101"].mean == pytest.approx(0.58)
    assert clip["Avg."].mean == pytest.approx((0.40 + 0.51 + 0.42 + 0.43 + 0.54 + 0.45 + 0.56 + 0.57 + 0.58) / 9)
    assert diff["DTD"].gain == pytest.approx(0.02)
    assert diff["Caltech-101"].gain == pytest.approx(-0.02)
    assert not any(cell.best for cell in (*clip.values(), *diff.values()))  # one pair of runs has no best
    (note,) = (note for note in paper["table1"].notes if "mean per class" in note)
    assert note.startswith("Caltech-101, Pets, Flowers, Aircraft: mean per class, as the protocol says")


def test_missing_cells_stay_empty_and_are_listed(paper):
    table = paper["table1"]
    diff = cells(table, "DiffCLIP")
    assert diff["Pets"].mean is None
    assert diff["Avg."].mean is None  # no mean over what happens to be there
    assert table.missing == ("Table 1: Linear probing, CC12M, DiffCLIP: Pets, Avg.",)
    assert table.rows[1] == ()  # few-shot was not measured
    assert "Few-shot" not in formats.to_markdown(table)
    assert "table4" not in paper  # no seeds


def test_table_2_and_the_figures_tables(paper):
    table = paper["table2"]
    assert cells(table, "CLIP")["Image retrieval Avg."].mean == pytest.approx(0.4)
    assert cells(table, "DiffCLIP")["Text retrieval MSCOCO"].mean == pytest.approx(0.62)
    assert cells(table, "DiffCLIP")["Zero-shot ImageNet"].gain == pytest.approx(0.02)
    shifts = cells(paper["figure3-cc12m"], "CLIP")
    assert shifts["Avg. of shifts"].mean == pytest.approx((0.25 + 0.05 + 0.4 + 0.2) / 4)  # without ImageNet itself
    patterns = cells(paper["figure4-cc12m"], "DiffCLIP")
    assert len(patterns) == 9 + 1
    assert patterns["Positional and relational context"].mean == pytest.approx(0.22)
    tasks = cells(paper["figure5-cc12m"], "CLIP")
    assert list(tasks) == [
        "Linear probing", "Few-shot", "Image retrieval", "Text retrieval", "ImageNet", "Zero-shot OOD",
    ]  # fmt: skip
    assert tasks["Few-shot"].mean is None
    assert tasks["Zero-shot OOD"].mean == pytest.approx(0.225)


def test_other_data_sets_get_the_same_tables(tmp_path):
    tables = tables_of(scene_results(tmp_path))
    assert "table1" not in tables  # CIFAR-10 alone is no comparison with the paper
    classification = tables["table1-scenes"]
    assert [block.title for block in classification.layout.blocks] == ["Linear probing", "Few-shot", "Zero-shot"]
    assert [column.name for column in classification.layout.columns] == ["scenes/test", "cifar10", "Avg."]
    diff = cells(classification, "DiffCLIP")
    assert diff["scenes/test"].mean == pytest.approx(0.67)
    assert diff["scenes/test"].sd == pytest.approx(0.02)  # of 0.65, 0.67, 0.69
    assert diff["scenes/test"].gain == pytest.approx(0.05)
    assert diff["scenes/test"].difference.count == 3
    assert classification.missing == ()  # on cifar10 nobody was measured by few-shot: there is nothing to miss
    assert cells(classification, "CLIP", block=1)["cifar10"].mean is None
    assert any("Mean ± sd over seeds of the training (scenes CLIP: 0, 1, 2;" in note for note in classification.notes)
    assert cells(tables["table2-scenes"], "CLIP")["Text retrieval scenes/test"].mean == pytest.approx(0.42)
    shifts = cells(tables["figure3-scenes"], "CLIP")
    assert shifts["Avg. of shifts"].mean == pytest.approx(0.52 - 0.15)
    assert cells(tables["figure5-scenes"], "DiffCLIP†")["Zero-shot OOD"].mean == pytest.approx(0.53 - 0.15)
    assert list(cells(tables["grounding-scenes-scenes-test"], "CLIP")) == ["Pointing game", "Energy in the mask"]


def test_table_3_is_of_language_models(tmp_path):
    path = tmp_path / "results.jsonl"
    for model, accuracy in (("clip_vlm", 0.6), ("diffclip_vlm", 0.7)):
        for split in ("random", "near"):
            counted = {"accuracy": accuracy, "precision": 0.5, "recall": 0.4, "above_blind": accuracy - 0.5}
            put(path, f"pope_scenes_{split}", model, f"vlm/{model}", "pope", **counted)
    found = cells(tables_of(path)["table3-vlm"], "DiffCLIP")
    assert list(found)[:4] == [f"pope_scenes_random {name}" for name in ("acc.", "prec.", "recall", "above blind")]
    assert found["pope_scenes_near acc."].mean == pytest.approx(0.7)
    assert found["pope_scenes_near above blind"].gain == pytest.approx(0.1)


def test_tables_4_and_5_are_of_models_with_several_seeds(tmp_path):
    path = tmp_path / "results.jsonl"
    for seed in range(3):
        put(path, "dtd", "clip_vit_b16", f"cc3m/c-seed{seed}", "few_shot", acc1=0.5 + seed / 10)
    put(path, "dtd", "diffclip_vit_b16", "cc3m/d", "few_shot", acc1=0.5)
    tables = tables_of(path)
    assert "table4" not in tables
    ((row,),) = tables["table5"].rows
    assert (row.label, row.cells[1].mean, row.cells[1].sd) == ("CLIP", pytest.approx(0.6), pytest.approx(0.1))
    assert formats.value_text(row.cells[1]) == "60.0 ± 10.0"
    assert row.cells[1].gain is None


def test_the_paper_s_numbers_stand_beside_and_are_marked(tmp_path):
    tables = tables_of(paper_results(tmp_path / "results.jsonl"), with_paper=True)
    rows = [(row.group, row.label, row.paper) for row in tables["table1"].rows[0]]
    assert rows == [
        ("CC12M", "CLIP", False), ("CC12M", "DiffCLIP", False), ("CC12M", "CLIP", True), ("CC12M", "DiffCLIP", True),
        ("CC3M", "CLIP", True), ("CC3M", "DiffCLIP", True),
    ]  # fmt: skip
    text = formats.to_markdown(tables["table1"])
    assert "| CC12M | DiffCLIP (paper) | 89.5 (+1.2) |" in text
    assert "not measured here" in text
    stated = next(row for row in tables["table1"].rows[0] if row.paper and row.label == "DiffCLIP")
    assert not any(cell.best for cell in stated.cells)
    assert not any("paper" in line for line in tables["table1"].missing)


def test_markdown(paper):
    text = formats.to_markdown(paper["table1"])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {2 + 10 + 1}
    assert "| CC12M | DiffCLIP | 38.0 (−2.0) | 53.0 (+2.0) |  |" in text
    assert "Gains of one pair of runs have no mark: another seed can turn them round." in text


def test_latex_has_as_many_cells_as_columns(tmp_path):
    scenes = tables_of(scene_results(tmp_path / "s"))
    every = [*scenes.values(), *tables_of(paper_results(tmp_path / "results.jsonl"), with_paper=True).values()]
    for table in every:
        text = formats.to_latex(table)
        for name in ("table", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
        (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
        assert len(columns) == 2 + len(table.layout.columns)
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) >= 2
        for line in lines:
            spans = [int(number) for number in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == len(columns), line
        for rule in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", text):
            assert 3 <= int(rule[0]) <= int(rule[1]) <= len(columns)
        written = re.sub(r"^% .*$", "", text, flags=re.MULTILINE).replace("{!}{%", "{!}{")
        assert not re.search(r"(?<!\\)[%#]", written)
        assert not re.search(r"(?<!\\)_", re.sub(r"\\label\{.*?\}", "", written))
        assert written.count("{") - written.count(r"\{") == written.count("}") - written.count(r"\}")
        assert written.isascii()


def test_escape():
    assert formats.escape("50 % of a_b & c# {x} ~ λ†") == (
        r"50 \% of a\_b \& c\# \{x\} \textasciitilde{} $\lambda$$^\dagger$"
    )


def test_csv_has_everything_in_full(tmp_path):
    table = tables_of(scene_results(tmp_path, apart=0.003))["table1-scenes"]
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(table))))
    assert len(rows) == 3 * 3
    row = rows[1]
    assert (row["task"], row["pretraining"], row["model"], row["source"]) == (
        "Linear probing", "scenes", "DiffCLIP", "measured",
    )  # fmt: skip
    assert (row["scenes/test"], row["scenes/test sd"], row["scenes/test gain"]) == ("67.1000", "2.0075", "5.1000")
    assert float(row["scenes/test low"]) < 5.1 < float(row["scenes/test high"])


def test_a_gain_that_is_not_significant_says_so(tmp_path):
    path = tmp_path / "results.jsonl"
    for seed in range(3):
        for model, gain in (
            ("clip", 0.0),
            ("diffclip", (0.1, -0.1, 0.0)[seed]),
            ("diffclip_vision", 0.2 + seed / 1000),
        ):
            name = model.replace("clip", "clip_vit_b16")
            put(path, "dtd", name, f"cc3m/{model}-seed{seed}", "linear_probe", acc1=0.5 + seed / 50 + gain)
    table = tables_of(path)["table1"]
    assert formats.gain_text(cells(table, "DiffCLIP")["DTD"]) == "0.0 ns"
    assert formats.gain_text(cells(table, "DiffCLIP†")["DTD"]) == "+20.1"
    assert cells(table, "DiffCLIP†")["DTD"].best
    assert "“ns”, not significant" in formats.to_markdown(table)
    scores, groups = read(path)
    (undeclared,) = (fill(layout, scores, groups, judged=False) for layout in paper_tables.paper_layouts()[:1])
    assert not any(cell.best or cell.significant is not None for row in undeclared.rows[0] for cell in row.cells)


def test_the_differences_of_a_table_are_held_together(tmp_path):
    """A p of 0.02 is one alone, and none among nine."""
    path = tmp_path / "results.jsonl"
    for places in (1, 9):
        for name in NINE[:places]:
            for seed, gain in enumerate((0.040, 0.055, 0.034)):
                for model, add in (("clip_vit_b16", 0.0), ("diffclip_vit_b16", gain)):
                    put(path, name, model, f"cc3m/{model}-seed{seed}", "linear_probe", acc1=0.5 + seed / 50 + add)
        found = cells(tables_of(path)["table1"], "DiffCLIP")
        assert found["Caltech-101"].difference.p < 0.05
        assert found["Caltech-101"].significant == (places == 1)


def test_means_are_over_the_seeds_of_the_difference(tmp_path):
    path = tmp_path / "results.jsonl"
    for seed in range(5):
        put(path, "dtd", "clip_vit_b16", f"cc3m/c-seed{seed}", "linear_probe", acc1=0.5 + seed / 100)
        put(path, "dtd", "diffclip_vit_b16", f"cc3m/d-seed{seed + 3}", "linear_probe", acc1=0.6)
    table = tables_of(path)["table1"]
    cell = cells(table, "DiffCLIP")["DTD"]
    assert sorted(cell.score.by_seed) == [3, 4] == list(cell.difference.seeds)
    assert "Table 1: Linear probing, CC3M, DiffCLIP, seeds 5, 6, 7: DTD" in table.missing


def test_a_seed_that_was_not_measured_is_listed(tmp_path):
    path = tmp_path / "results.jsonl"
    for seed in range(3):
        put(path, "dtd", "clip_vit_b16", f"cc3m/c-seed{seed}", "linear_probe", acc1=0.5)
        if seed != 1:
            put(path, "cifar100", "clip_vit_b16", f"cc3m/c-seed{seed}", "linear_probe", acc1=0.5)
    missing = tables_of(path)["table1"].missing
    assert "Table 1: Linear probing, CC3M, CLIP, seed 1: CIFAR100" in missing


def test_repeats_of_the_evaluation_are_a_deviation_of_their_own(tmp_path):
    path = tmp_path / "results.jsonl"
    put(path, "dtd", "clip_vit_b16", "cc3m/c", "few_shot", acc1=0.5, acc1_sd=0.002)
    table = tables_of(path)["table5"]
    assert formats.value_text(cells(table, "CLIP")["DTD"]) == "50.0 ± 0.2"
    (note,) = (note for note in table.notes if "±" in note)
    assert "over repeats of the evaluation" in note


@pytest.mark.parametrize(
    ("gains", "bold"), [([0.1, -0.1, 0.2], False), ([-0.1, 0.1, -0.2], False), ([0.1, 0.101, 0.102], True)]
)
def test_no_lead_that_is_not_significant_is_bold(tmp_path, gains, bold):
    """Neither the higher of two, nor the baseline where the other is not surely below it."""
    path = tmp_path / "results.jsonl"
    for seed, gain in enumerate(gains):
        for model, add in (("clip_vit_b16", 0.0), ("diffclip_vit_b16", gain)):
            put(path, "mine", model, f"runs/x/{model}-seed{seed}", "linear_probe", acc1=0.5 + seed / 50 + add)
    scores, (group,) = read(path)
    (layout,) = paper_tables.other_layouts(scores, group)
    table = fill(layout, scores, [group])
    assert any(cell.best for row in table.rows[0] for cell in row.cells) == bold
    text = formats.to_latex(table)
    assert (r"\textbf" in text) == bold
    assert r"\caption{Classification on " in text
    assert r"\resizebox{\ifdim\width>\linewidth" in text

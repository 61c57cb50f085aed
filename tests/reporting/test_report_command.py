"""The command from results to files, and the page as a browser would take it."""

import csv
import hashlib
import itertools
import re

import pytest
from html_checker import Checker
from made_results import make_run, paper_results, put, put_examples, scene_results

from diffclip import cli
from diffclip.errors import UserError
from diffclip.reporting import report as command
from diffclip.reporting.figures.contrast import GROUNDS, contrast
from diffclip.reporting.figures.style import MODELS
from diffclip.reporting.report import Options


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of everything at once: the paper's data sets and scenes, with the paper's numbers."""
    folder = tmp_path_factory.mktemp("results")
    scene_results(folder / "scenes", seeds=2)
    paper_results(folder / "paper" / "results.jsonl")
    out = folder / "out"
    command.report([folder / "scenes", folder / "paper"], out, Options(with_paper=True))
    return folder, out


def files(out):
    return {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}


def test_every_table_and_figure_is_written(made):
    _, out = made
    names = set(files(out))
    for table in ("table1", "table2", "table4", "table5", "table1-scenes", "table2-scenes", "figure5-scenes"):
        assert {f"tables/{table}.{suffix}" for suffix in ("md", "tex", "csv")} <= names
    drawn = ("figure1-cc12m", "figure3-cc12m", "figure4-cc12m", "figure1-scenes", "figure3-scenes", "figure4-scenes",
             "figure5-scenes", "attacks-scenes-scenes-test", "corruptions-scenes-scenes-test",
             "noise-scenes-scenes-test", "lambda-layers-scenes", "lambda-time-scenes-diffclip-vision",
             "loss-scenes")  # fmt: skip
    for figure in drawn:
        assert {f"figures/{figure}.png", f"figures/{figure}.pdf"} <= names
    assert {"tables/differences-scenes.csv", "tables/relevance-scenes.csv"} <= names
    assert not any("unfinished" in name for name in names)


DESIGN = """
baseline = "CLIP"
seeds = [0, 1, 2]
[weights]
CLIP = "sweep/clip/seed_*"
DiffCLIP = "sweep/diffclip/seed_*"
[[outcome]]
name = "zero-shot"
task = "zero_shot"
data = ["mine"]
[[outcome]]
name = "probe"
task = "linear_probe"
data = ["mine"]
[design]
primary = "zero-shot"
margin = 1.0
"""


def test_a_sweep_is_judged_by_its_design_and_nothing_else_is(tmp_path):
    """First what was asked, then every seed of the primary outcome, in text and drawn; no other verdict on the page."""
    folder, out = tmp_path / "sweep", tmp_path / "out"
    folder.mkdir()
    (folder / "design.toml").write_text(DESIGN)
    for model, gain in (("clip", 0.0), ("diffclip", 0.1)):
        for seed in range(3):
            where = (f"{model}_vit_quickstart", f"sweep/{model}/seed_{seed}")
            value = 0.5 + seed / 50 + gain * (1 + seed / 50)
            for task in ("zeroshot_classification", "linear_probe"):
                put(folder / "results.jsonl", "mine", *where, task, acc1=value)
    page = command.report([folder], out, Options(scenes=0)).page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    words = " ".join(" ".join(checker.text).split())
    parts = "Primary outcome, zero-shot is", "Declared before", "Differences, "
    first, asked, rest = map(words.rindex, parts)
    assert first < asked < rest
    assert "zero-shot, DiffCLIP: 60.0 (seed 0), 62.2 (seed 1), 64.4 (seed 2)" in words
    assert {"figures/outcome-sweep.png", "tables/outcomes-sweep.md", "tables/outcomes-sweep.csv"} <= set(files(out))
    assert "zero-shot, every seed" in words
    with (out / "tables" / "outcomes-sweep.csv").open() as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["DiffCLIP higher", "not judged"]
    with (out / "tables" / "differences-sweep.csv").open() as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["", ""]
    assert words.count("DiffCLIP higher") == 2  # in the head and in its row
    assert "exploratory" not in words
    assert "<strong>" not in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "CLIP"', 'baseline = "CLAP"', "'CLAP' is none of CLIP, DiffCLIP"),
        ('primary = "zero-shot"', 'primary = "shots"', "'shots' is none of "),
        ("seeds = [0, 1, 2]", 'seeds = "all"', "seeds: "),
        ("[design]", "[[design", "is not valid TOML"),
    ],
)
def test_a_design_of_another_form_is_one_line(tmp_path, old, new, message):
    (tmp_path / "design.toml").write_text(DESIGN.replace(old, new))
    put(tmp_path / "results.jsonl", "mine", "clip_vit_quickstart", "sweep/clip/seed_0", "linear_probe", acc1=0.5)
    with pytest.raises(UserError, match=message) as caught:
        command.report([tmp_path], tmp_path / "out", Options(scenes=0))
    assert "\n" not in str(caught.value)


def test_the_fonts_of_a_pdf_are_embedded_as_text(made):
    _, out = made
    data = (out / "figures" / "figure1-scenes.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/FontFile2" in data
    assert b"/Type3" not in data


def test_the_page_is_whole_and_opens_offline(made):
    _, out = made
    text = (out / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert all(url.startswith(("data:", "#")) for url in checker.urls if url != "https://arxiv.org/abs/2503.06626")
    assert "script" not in checker.seen
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert set(re.findall(r"https?://([\w.]+)", text)) <= {"www.w3.org", "purl.org", "creativecommons.org", "arxiv.org"}
    ids = re.findall(r'<(?:section|h2) id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'<a href="#([^"]+)"', text)
    labels = re.findall(r'aria-labelledby="([^"]+)"', text)
    assert len(targets) == len(labels) > 5
    assert {*targets, *labels} == set(ids)


def test_the_page_can_be_read_without_seeing_it(made):
    _, out = made
    text = (out / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg[^>]*>", text)
    assert len(drawings) > 10
    assert all('role="img"' in tag and re.search(r'aria-label="[^"]{20,}"', tag) for tag in drawings)
    assert 'aria-label="Figure 3: zero-shot ImageNet and its shifts, CC12M (accuracy, %). ImageNet: CLIP 30.0' in text
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    assert text.count("<caption>") == text.count("<table") - text.count('<table class="differences">')
    assert all("scope=" in head for head in re.findall(r"<th[ >][^>]*>?", text))


def test_the_page_says_what_came_out_what_is_missing_and_how_it_was_made(made):
    folder, out = made
    checker = Checker()
    checker.feed((out / "report.html").read_text(encoding="utf-8"))
    words = " ".join(" ".join(checker.text).split())
    for part in (
        "scenes: top-1 accuracy on scenes/test, zero-shot classification is 51.0 ± 1.4 % for CLIP and 56.0 ± 1.4 % for "
        "DiffCLIP: +5.0 points (over 2 seeds): not estimable (exploratory: no outcome was declared before the runs).",
        "scenes/test, top-1 accuracy, CLIP: 50.0 (seed 0), 52.0 (seed 1)",
        "scenes/test, top-1 accuracy, DiffCLIP: 55.0 (seed 0), 57.0 (seed 1)",
        "Relevance is not neutral between the two kinds of attention",
        "Table 1: Linear probing, CC12M, DiffCLIP: Pets, Avg.",
        "Table 4: no model was trained with several seeds",
        "Table 5: no model was trained with several seeds",
        "Nothing is filled in from elsewhere",
        f"diffclip report {folder / 'scenes'}",
        "--with-paper",
        "DiffCLIP (paper)",
        "seeds 0, 1",
    ):
        assert part in words, part


def test_a_second_run_writes_the_same(tmp_path):
    for model in ("clip_vit_b16", "diffclip_vit_b16"):
        put(tmp_path / "results.jsonl", "imagenet1k", model, f"cc3m/{model}", "zeroshot_classification", acc1=0.5)
    digests = []
    for _ in range(2):
        command.report([tmp_path / "results.jsonl"], tmp_path / "out")
        written = files(tmp_path / "out")
        digests.append({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in written.items()})
    assert digests[0] == digests[1]
    assert {"figures/figure1-cc3m.pdf", "figures/figure1-cc3m.png", "tables/table2.tex"} <= set(digests[0])


def test_runs_alone_have_curves(tmp_path):
    make_run(tmp_path / "runs" / "d", seed=0, preset="diffclip_vit_quickstart")
    command.report([tmp_path / "runs"], tmp_path / "out")
    names = set(files(tmp_path / "out"))
    assert {"report.html", "figures/lambda-time-scenes-diffclip.pdf", "figures/loss-scenes.png"} <= names
    assert not any(name.startswith("tables") for name in names)


def test_names_are_escaped_and_sizes_told(tmp_path):
    nasty = "<script>alert('x')</script>"
    for model in ("clip_vit_b16", "diffclip_vit_b16"):
        put_examples(tmp_path / "results.jsonl", nasty, model, f"cc3m/{model}", "linear_probe", [1.0, 0.0])
    command.report([tmp_path / "results.jsonl"], tmp_path / "out", Options(labels=("<b>=diff*",)))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; 2" in text  # under "test examples"


@pytest.mark.parametrize("label", ["x", "=x", "x="])
def test_a_wrong_label_is_one_line_and_writes_nothing(tmp_path, label):
    put(tmp_path / "results.jsonl", "dtd", "clip_vit_b16", "x", "linear_probe", acc1=0.5)
    with pytest.raises(UserError, match="expected NAME=PATTERN"):
        command.report([tmp_path / "results.jsonl"], tmp_path / "out", Options(labels=(label,)))
    assert not (tmp_path / "out").exists()


def test_no_results_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "out")])
    assert str(ended.value.code).startswith(f"diffclip: no results in {tmp_path / 'empty'}: expected results.jsonl")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_named_and_not_drawn(tmp_path):
    run = make_run(tmp_path / "runs" / "d", seed=0, preset="diffclip_vit_quickstart")
    (run / "config.json").unlink()
    command.report([tmp_path / "runs"], tmp_path / "out")
    assert set(files(tmp_path / "out")) == {"report.html"}
    assert f"the run {run.resolve()} is not finished" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("desk.jpg", "expected IMAGE=QUERY;QUERY"),
        ("desk.jpg=;", "expected IMAGE=QUERY;QUERY"),
        ("nowhere.jpg=a mug", "there is no file nowhere.jpg"),
    ],
)
def test_a_wrong_image_is_one_line(tmp_path, image, message):
    put(tmp_path / "results.jsonl", "dtd", "clip_vit_b16", "x", "linear_probe", acc1=0.5)
    with pytest.raises(UserError, match=message):
        command.report([tmp_path / "results.jsonl"], tmp_path / "out", Options(images=(image,)))
    assert not (tmp_path / "out").exists()


def test_images_need_weights(tmp_path):
    put(tmp_path / "results.jsonl", "dtd", "clip_vit_b16", "x", "linear_probe", acc1=0.5)
    (tmp_path / "desk.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no group has the weights of two models at hand"):
        command.report([tmp_path / "results.jsonl"], tmp_path / "out", Options(images=(f"{tmp_path}/desk.jpg=a mug",)))


def test_the_report_shows_what_the_runs_warned_of(tmp_path):
    run = make_run(tmp_path / "runs" / "clip-seed0", seed=0, preset="diffclip_vit_quickstart")
    make_run(tmp_path / "runs" / "other-seed0", seed=0, preset="clip_vit_quickstart")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "loss": 1.0, "warning": "step 300: one <b> | step 300: two"}\n')
    page = command.report([tmp_path / "runs"], tmp_path / "out", Options(scenes=0)).page.read_text(encoding="utf-8")
    section = page[page.index('<section id="warnings-of-training"') :]
    lines = re.findall(r"<li>(.*)</li>", section[: section.index("</section>")])
    assert [line.rpartition("clip-seed0, ")[2] for line in lines] == ["step 300: one &lt;b&gt;", "step 300: two"]


def test_everything_that_is_drawn_or_written_stands_out_in_both_modes(made):
    """4.5 to 1: the page's text on its grounds, and each colour of a figure on the ground behind figures."""
    _, out = made
    page = (out / "report.html").read_text(encoding="utf-8")
    used = set(re.findall(r"var\(--c([0-9a-f]{6}), ", page))
    assert {colour[1:] for colour in (MODELS["CLIP"], MODELS["DiffCLIP"])} <= used
    assert not re.search(r"(?:fill|stroke): #(?!ffffff)[0-9a-f]{6}", page)
    for mode, block in zip(("light", "dark"), re.findall(r":root \{([^}]*--ground[^}]*)\}", page), strict=True):
        named = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
        assert named["surface"] == GROUNDS[mode]
        for ink, ground in itertools.product(("ink", "soft", "accent", "up", "down"), ("ground", "surface")):
            assert contrast(named[ink], named[ground]) >= 4.5, (mode, ink, ground)
    light, dark = (
        dict(re.findall(r"--c([0-9a-f]{6}): (#[0-9a-f]{6});", b)) for b in re.findall(r"\{ (--c[^}]*)\}", page)
    )
    for mode, colours in (("light", light), ("dark", dark)):
        assert colours.keys() == used
        assert all(contrast(colour, GROUNDS[mode]) >= 4.5 for colour in colours.values())


def test_the_page_can_be_skipped_into_and_says_what_it_is_about(made):
    page = (made[1] / "report.html").read_text(encoding="utf-8")
    assert page.index('<a class="skip" href="#results">') < page.index("<nav")
    assert '<main id="results">' in page
    for word in ("https://arxiv.org/abs/2503.06626", "A1 − λA2", "“ns” stands for", "pointing game"):
        assert word in page[page.index("<header>") : page.index("</header>")]


def test_a_curve_s_alternative_text_has_its_values(made):
    page = (made[1] / "report.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'aria-label="(Loss over the steps of training: [^"]*)"', page)
    assert re.search(r"CLIP from 0\.505 to 0\.03, DiffCLIP from ", text), text

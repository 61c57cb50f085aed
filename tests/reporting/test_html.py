import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from diffclip.errors import UserError
from diffclip.evaluation.bootstrap import Interval
from diffclip.reporting import html
from diffclip.reporting.figures import AttentionPanel
from diffclip.reporting.tables import Comparison, Row

NASTY = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Collects tags, and fails where one is closed that was not opened last."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.urls = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make_run(path, *, differential):
    path.mkdir()
    lines = []
    for step in range(10, 110, 10):
        record = {"step": step, "epoch": 1, "loss": 5 / step, "logit_scale": 14.0, "lr": 1e-3}
        if step % 50 == 0:
            record |= {"scenes/test/acc1": step / 200, "scenes/test/acc5": step / 150}
        if step == 100:
            record["other/acc1"] = 0.5
        if differential:
            record |= {"lambda_visual": [0.8, 0.7, 0.6], "lambda_text": [0.8, 0.9]}
        lines.append(json.dumps(record))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def report(tmp_path):
    def write(**changes):
        unsure = Interval(-0.1, -0.3, 0.1)
        rows = (
            Row("scenes", "zeroshot_classification", "acc1", 0.61, 0.66, 0.05, Interval(0.05, 0.02, 0.08)),
            Row("scenes", "zeroshot_retrieval", "text_retrieval_recall@1", 0.5, 0.4, 0.1, unsure),
            Row(NASTY, "zeroshot_classification", "acc1", 0.3, None, None, None),
        )  # fmt: skip
        maps = tuple(np.random.default_rng(i).random((4, 4)) for i in range(2))
        image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        arguments = {
            "title": NASTY,
            "introduction": NASTY,
            "comparison": Comparison("CLIP", "DiffCLIP", rows),
            "runs": {
                "CLIP": make_run(tmp_path / "a", differential=False),
                "DiffCLIP": make_run(tmp_path / "b", differential=True),
            },
            "panels": [AttentionPanel(image, ("a red star", NASTY), maps, maps)],
            "facts": {"seed": "0", NASTY: NASTY},
            "notes": [NASTY],
        } | changes
        path = tmp_path / "new" / "report.html"
        html.write_report(path, **arguments)
        assert [file.name for file in path.parent.iterdir()] == ["report.html"]
        text = path.read_text(encoding="utf-8")
        checker = Checker()
        checker.feed(text)
        assert not checker.open
        return text, checker

    return write


def test_report_is_whole_and_opens_offline(report):
    text, checker = report()
    assert checker.urls
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in checker.urls)
    assert "script" not in checker.seen
    assert "@import" not in text
    # No address is fetched: what looks like one is a namespace or a document type of SVG.
    assert set(re.findall(r"https?://([\w.]+)", text)) <= {"www.w3.org", "purl.org", "creativecommons.org"}
    assert re.findall(r"url\((?!#)", text) == []
    assert checker.seen.count("img") == 1 + 2 * 2
    # loss, temperature, one metric of the evaluation that was repeated; λ of two towers
    assert checker.seen.count("svg") == 3 + 2


def test_report_says_what_came_out(report):
    text, checker = report()
    words = " ".join(" ".join(checker.text).split())
    assert "On scenes, top-1 accuracy is 61.0 % for CLIP and 66.0 % for DiffCLIP: +5.0 points" in words
    assert "(95 % interval +2.0 to +8.0), significant for this pair of training runs." in words
    for part in (
        "scenes/test, top-1 accuracy",
        "DiffCLIP higher",
        "not significant",
        "from one seed",
        "text recall@1",
        "a red star",
        "–",
    ):
        assert part in words
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_every_text_of_the_caller_is_escaped(report):
    text, checker = report()
    assert "<script" not in text
    words = "".join(checker.text)
    # title, its heading, introduction, note, fact and its name, data set, query; image descriptions are
    # attributes
    assert words.count(NASTY) == 8


def test_without_panels_and_without_differential_attention(report, tmp_path):
    clip = make_run(tmp_path / "c", differential=False)
    text, checker = report(panels=[], runs={"CLIP": clip, "DiffCLIP": clip})
    assert "img" not in checker.seen
    assert "there is no λ" in text


def test_a_run_without_metrics_is_named(report, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere.*metrics.jsonl"):
        report(runs={"CLIP": tmp_path / "nowhere"})

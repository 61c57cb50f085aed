import numpy as np
import pytest
import torch
from rich.console import Console

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.results import PerExampleScores, Result
from diffclip.reporting import pair as tables

CLIP = tables.ModelName("CLIP", "clip_vit_quickstart", "runs/clip")
DIFFCLIP = tables.ModelName("DiffCLIP", "diffclip_vit_quickstart", "runs/diffclip")
ZERO_SHOT = "zeroshot_classification"


def put(path, name, dataset, values, *, task=ZERO_SHOT, indices=None, chance=0.05):
    """A result whose metrics are the means of `values`, metric → numbers of each example."""
    tensors = {metric: torch.tensor(v, dtype=torch.float32) for metric, v in values.items()}
    metrics = {metric: v.double().mean().item() for metric, v in tensors.items()}
    result = Result(dataset=dataset, model=name.model, pretrained=name.pretrained, task=task, metrics=metrics)
    results.append(path, result)
    count = len(next(iter(tensors.values())))
    places = torch.arange(count) if indices is None else torch.tensor(indices)
    results.save_examples(path, result.key, PerExampleScores(places, tensors, dict.fromkeys(tensors, chance)), "x")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_difference_is_paired(path):
    # The same 60 of 100 are right for CLIP, and all of them for DiffCLIP, plus 5: sure, though each alone is
    # not.
    first, second = np.zeros(100), np.zeros(100)
    first[:60] = second[:65] = 1
    put(path, CLIP, "scenes", {"acc1": first})
    put(path, DIFFCLIP, "scenes", {"acc1": second})
    (row,) = tables.compare(path, CLIP, DIFFCLIP).rows
    assert (row.baseline, row.candidate, row.chance) == (0.6, 0.65, 0.05)
    assert row.difference.mean == pytest.approx(0.05)
    assert row.difference.low > 0
    # As unrelated examples the same accuracies would be far from significant.
    unpaired = second[np.random.default_rng(0).permutation(100)]
    put(path, DIFFCLIP, "scenes", {"acc1": unpaired})
    comparison = tables.compare(path, CLIP, DIFFCLIP)
    assert comparison.rows[0].candidate == 0.65
    assert not comparison.rows[0].difference.significant
    assert tables.verdict(comparison, comparison.rows[0]) == "not significant"


def test_the_sign_is_candidate_minus_baseline(path):
    put(path, CLIP, "scenes", {"acc1": np.ones(50)})
    put(path, DIFFCLIP, "scenes", {"acc1": np.zeros(50)})
    comparison = tables.compare(path, CLIP, DIFFCLIP)
    (row,) = comparison.rows
    assert tables.cells_of(comparison, row) == (
        "scenes", "zero-shot classification", "top-1 accuracy", "100.0", "0.0", "−100.0", "CLIP higher",
        "−100.0 to −100.0", "5.0",
    )  # fmt: skip
    assert tables.verdict(tables.compare(path, DIFFCLIP, CLIP), row) == "DiffCLIP higher"


def test_missing_cells_stay_empty(path):
    put(path, CLIP, "only clip", {"acc1": [1, 0]})
    put(path, CLIP, "both", {"acc1": [1, 0]})
    put(path, DIFFCLIP, "both", {"acc1": [1, 1]}, indices=[0, 2])  # other examples could be read
    comparison = tables.compare(path, CLIP, DIFFCLIP)
    alone, both = comparison.rows
    assert (alone.candidate, alone.difference) == (None, None)
    assert tables.cells_of(comparison, alone)[3:] == ("50.0", "", "", "", "", "5.0")
    assert both.difference is None
    assert tables.cells_of(comparison, both)[5:8] == ("+50.0", "", "")


def test_mean_per_class_recall_shows_only_where_it_says_more(path):
    for name in (CLIP, DIFFCLIP):
        put(path, name, "balanced", {"acc1": [1, 0, 1, 1], "mean_per_class_recall": [1, 0, 1, 1]})
        put(path, name, "unbalanced", {"acc1": [1, 0, 1, 1], "mean_per_class_recall": [0.5, 0, 0.5, 1]})
    rows = tables.compare(path, CLIP, DIFFCLIP).rows
    assert [(r.dataset, r.metric) for r in rows] == [
        ("balanced", "acc1"), ("unbalanced", "acc1"), ("unbalanced", "mean_per_class_recall"),
    ]  # fmt: skip


def test_a_model_without_results_is_an_error_that_names_what_there_is(path):
    put(path, CLIP, "scenes", {"acc1": [1]})
    with pytest.raises(UserError, match=r"no result of diffclip_vit_quickstart \(runs/diffclip\), it has clip_vit_q"):
        tables.compare(path, CLIP, DIFFCLIP)


def test_headline_says_significance_and_tally(path):
    coin = np.random.default_rng(0).random(200) < 0.5
    for dataset, first, second in (
        ("test", coin, coin), ("shifted", np.zeros(200), coin), ("sketch", coin, np.zeros(200)),
    ):  # fmt: skip
        put(path, CLIP, dataset, {"acc1": first})
        put(path, DIFFCLIP, dataset, {"acc1": second})
    put(path, CLIP, "unpaired", {"acc1": coin})
    text = tables.headline(tables.compare(path, CLIP, DIFFCLIP))
    share = f"{100 * coin.mean():.1f} %"
    assert text == (
        f"On test, top-1 accuracy is {share} for CLIP and {share} for DiffCLIP: 0.0 points "
        "(95 % interval 0.0 to 0.0), not significant for this pair of training runs. "
        "Of 3 comparisons DiffCLIP is significantly higher in 1, CLIP in 1, and neither in 1."
    )


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.1234, False, "12.3"),
        (-0.05, True, "−5.0"),
        (0.05, True, "+5.0"),
        (-0.0001, True, "0.0"),
        (None, True, ""),
    ],
)
def test_percent(value, signed, text):
    assert tables.percent(value, signed=signed) == text


def test_metric_names():
    names = {
        "image_retrieval_recall@5": "image recall@5",
        "mean_per_class_recall": "mean per-class recall",
        "pair_accuracy/color_and_appearance": "color and appearance",
        "unheard_of": "unheard of",
    }
    for metric, name in names.items():
        assert tables.metric_name(tables.Row("d", "t", metric, None, None, None, None)) == name


def test_renderings_hold_the_numbers_the_note_and_any_name(path):
    put(path, CLIP, "a|b [red]", {"acc1": [1, 1, 1, 0]})
    put(path, DIFFCLIP, "a|b [red]", {"acc1": [1, 1, 0, 0]})
    comparison = tables.compare(path, CLIP, DIFFCLIP)
    markdown = tables.to_markdown(comparison)
    head, rule, row = markdown.splitlines()[:3]
    assert head.count("|") == rule.count("|") == row.count("|") - 1  # the escaped one in the name
    assert "a\\|b [red]" in row
    assert "| 75.0 | 50.0 | −25.0 | not significant |" in row
    assert "from one seed" in markdown
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables.to_rich(comparison, title="Results"))
    text = console.export_text()
    for part in ("a|b [red]", "75.0", "50.0", "−25.0", "not significant", "5.0", "from one seed", "Results"):
        assert part in text

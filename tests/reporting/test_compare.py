import csv
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.results import PerExampleScores, Result
from diffclip.evaluation.stats.bootstrap import Interval, mean_interval
from diffclip.evaluation.stats.seeds import Difference, Spread
from diffclip.reporting import compare
from diffclip.reporting.compare import ModelName, Row, compare_two, compare_variants
from diffclip.reporting.tables import comparison

CLIP = ModelName("CLIP", "clip_vit_quickstart", "runs/clip")
DIFFCLIP = ModelName("DiffCLIP", "diffclip_vit_quickstart", "runs/diffclip")
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


def printed(rows, width=80, **options):
    """The table on a terminal of 80 columns, its lines without the spaces around them."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison.two_models(rows, width=width, **options))
    return [line.strip() for line in console.export_text().splitlines()]


def test_difference_is_paired(path):
    # The same 60 of 100 are right for CLIP, and all of them for DiffCLIP, plus 5: sure, though each alone is
    # not.
    first, second = np.zeros(100), np.zeros(100)
    first[:60] = second[:65] = 1
    put(path, CLIP, "scenes", {"acc1": first})
    put(path, DIFFCLIP, "scenes", {"acc1": second})
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    assert (row.baseline_score.mean, row.score.mean, row.chance) == (0.6, 0.65, 0.05)
    assert row.difference.mean == pytest.approx(0.05)
    assert row.difference.interval.low > 0
    # As unrelated examples the same accuracies would be far from significant.
    unpaired = second[np.random.default_rng(0).permutation(100)]
    put(path, DIFFCLIP, "scenes", {"acc1": unpaired})
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    assert row.score.mean == 0.65
    assert not row.difference.significant
    assert row.verdict == "not significant"


def test_the_interval_of_two_models_is_that_of_the_bootstrap_over_their_examples(path):
    first, second = np.random.default_rng(0).random((2, 90)) < [[0.4], [0.6]]
    put(path, CLIP, "scenes", {"acc1": first})
    put(path, DIFFCLIP, "scenes", {"acc1": second})
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    expected = mean_interval(second.astype(float) - first)
    assert row.difference.over == "test examples"
    assert row.difference.mean == pytest.approx(expected.mean, abs=1e-8)  # results are kept in float32
    found = row.difference.interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_sign_is_candidate_minus_baseline(path):
    put(path, CLIP, "scenes", {"acc1": np.ones(50)})
    put(path, DIFFCLIP, "scenes", {"acc1": np.zeros(50)})
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    assert row.verdict == "CLIP higher"
    assert compare.interval_text(row.difference) == "−100.0 to −100.0"
    (line,) = (line for line in printed([row]) if "top-1" in line)
    assert line.split() == ["zero_shot:", "top-1", "accuracy", "100.0", "0.0", "−100.0", "CLIP", "higher"]
    (line,) = (line for line in printed([row], width=120) if "top-1" in line)
    assert line.split()[3:] == ["100.0", "0.0", "−100.0", "−100.0", "to", "−100.0", "CLIP", "higher", "5.0"]
    (row,) = compare_two(path, DIFFCLIP, CLIP)
    assert row.verdict == "CLIP higher"
    assert compare.difference_text(row.difference) == "+100.0"


def test_missing_cells_stay_empty(path):
    put(path, CLIP, "only clip", {"acc1": [1, 0]})
    put(path, CLIP, "both", {"acc1": [1, 0]})
    put(path, DIFFCLIP, "both", {"acc1": [1, 1]}, indices=[0, 2])  # other examples could be read
    alone, both = rows = compare_two(path, CLIP, DIFFCLIP)
    assert (alone.score, alone.difference, alone.verdict) == (None, None, "")
    assert both.difference.interval is None
    assert both.verdict == ""
    lines = [line.split() for line in printed(rows) if "top-1" in line]
    assert [line[3:] for line in lines] == [["50.0"], ["50.0", "100.0", "+50.0"]]


def test_what_is_no_score_is_no_row_and_two_models_show_no_deviation(path):
    for name in (CLIP, DIFFCLIP):
        metrics = {"acc1": 0.5, "std": 0.25, "acc1_sd": 0.1}
        results.append(
            path, Result(dataset="set", model=name.model, pretrained=name.pretrained, task="few_shot", metrics=metrics)
        )
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    assert (row.metric, row.score.sd) == ("acc1", 0.1)
    (line,) = (line for line in printed([row]) if "top-1" in line)
    assert line.split() == ["few_shot:", "top-1", "accuracy", "50.0", "50.0", "0.0"]


def test_two_data_sets_whose_names_are_nearly_alike_are_two(path):
    for name in (CLIP, DIFFCLIP):
        put(path, name, "caltech-101", {"acc1": [1, 0]})
        put(path, name, "caltech101", {"acc1": [1, 1]})
    assert [row.score.mean for row in compare_two(path, CLIP, DIFFCLIP)] == [0.5, 1.0]


def test_mean_per_class_recall_shows_only_where_it_says_more(path):
    for name in (CLIP, DIFFCLIP):
        put(path, name, "balanced", {"acc1": [1, 0, 1, 1], "mean_per_class_recall": [1, 0, 1, 1]})
        put(path, name, "unbalanced", {"acc1": [1, 0, 1, 1], "mean_per_class_recall": [0.5, 0, 0.5, 1]})
    rows = compare_two(path, CLIP, DIFFCLIP)
    assert [(r.dataset, r.metric) for r in rows] == [
        ("balanced", "acc1"), ("unbalanced", "acc1"), ("unbalanced", "mean_per_class_recall"),
    ]  # fmt: skip


def test_a_model_without_results_is_an_error_that_names_what_there_is(path):
    put(path, CLIP, "scenes", {"acc1": [1]})
    with pytest.raises(UserError, match=r"no result of diffclip_vit_quickstart \(runs/diffclip\), it has clip_vit_q"):
        compare_two(path, CLIP, DIFFCLIP)


def test_headline_says_significance_and_tally(path):
    coin = np.random.default_rng(0).random(200) < 0.5
    for dataset, first, second in (
        ("test", coin, coin), ("shifted", np.zeros(200), coin), ("sketch", coin, np.zeros(200)),
    ):  # fmt: skip
        put(path, CLIP, dataset, {"acc1": first})
        put(path, DIFFCLIP, dataset, {"acc1": second})
    put(path, CLIP, "unpaired", {"acc1": coin})
    text = compare.headline(compare_two(path, CLIP, DIFFCLIP))
    share = f"{100 * coin.mean():.1f} %"
    assert text == (
        f"On test, top-1 accuracy is {share} for CLIP and {share} for DiffCLIP: 0.0 points "
        "(95 % interval 0.0 to 0.0), not significant for this pair of training runs. "
        "Of 3 comparisons DiffCLIP is significantly higher in 1, CLIP in 1, and neither in 1."
    )


def test_a_task_without_a_title_of_its_own_is_called_as_on_the_command_line(path):
    for task in ("linear_probe", "fine_grained"):
        for name in (CLIP, DIFFCLIP):
            put(path, name, "set", {"acc1": [1, 0]}, task=task)
    lines = printed(compare_two(path, CLIP, DIFFCLIP), every=True)
    assert "linear_probe" in lines
    assert "fine-grained pairs" in lines


def test_the_table_holds_the_numbers_the_note_and_any_name(path):
    put(path, CLIP, "a|b [red]", {"acc1": [1, 1, 1, 0]})
    put(path, DIFFCLIP, "a|b [red]", {"acc1": [1, 1, 0, 0]})
    text = "\n".join(printed(compare_two(path, CLIP, DIFFCLIP), title="Results"))
    for part in ("a|b [red]", "75.0", "50.0", "−25.0", "not significant", "from one seed", "Results"):
        assert part in text


def test_a_task_is_one_row_and_every_metric_is_there_on_request(path):
    metrics = {
        ZERO_SHOT: ["acc1", "acc5"],
        "zeroshot_retrieval": ["image_retrieval_recall@5", "image_retrieval_recall@1", "text_retrieval_recall@1"],
        "robustness": ["acc1", "acc1/fgsm/1", "acc1/pgd/1", "acc1/pgd/2"],
        "grounding": ["energy_in_mask", "pointing_game"],
    }
    for name in (CLIP, DIFFCLIP):
        for task, of_task in metrics.items():
            put(path, name, "scenes", {metric: [1, 0] for metric in of_task}, task=task)
    rows = compare_two(path, CLIP, DIFFCLIP)
    short, every = printed(rows), printed(rows, every=True)
    shown = [line.split(":")[0] for line in short if re.match(r"[a-z_]+: ", line)]
    assert shown == ["zero_shot", "retrieval", "robustness", "grounding"]
    standing = [comparison.standing_for([row for row in rows if row.task == task]).metric for task in metrics]
    assert standing == ["acc1", "image_retrieval_recall@1", "acc1/pgd/1", "pointing_game"]
    assert len([line for line in every if line.count("50.0") == 2]) == sum(map(len, metrics.values()))
    only = compare_two(path, CLIP, DIFFCLIP, {("scenes", "grounding")})
    assert {row.task for row in only} == {"grounding"}


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_terminal(path, width):
    """No line is cut: each name and number stands whole, long names in several lines."""
    long = ModelName("diffclip_vit_b16_cc12m_dynamic", "m", "runs/a")
    for name in (CLIP, long):
        put(path, name, "scenes/test_adversarial", {"acc1": [1, 0]})
    lines = printed(compare_two(path, CLIP, long), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert any("interval" in line for line in lines[:3]) == (width == 120)


def test_a_report_s_tables_keep_names_apart_from_their_own_signs():
    difference = Difference(-0.25, None, (0,), Interval(-0.25, -0.5, 0.125), None, True)
    row = Row("cc3m", "CLIP", "DiffCLIP*", Spread(0.75, None, 1), Spread(0.5, 0.01, 3), difference, "a|b", "few_shot",
              "acc1", 0.2)  # fmt: skip
    head, rule, line = comparison.report_markdown([row]).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") - 1  # the escaped one in the name
    assert line == (
        "| a\\|b | few shot | top-1 accuracy | DiffCLIP\\* | 75.0 | 50.0 ± 1.0 | −25.0 | −50.0 to +12.5 | "
        "not significant | 20.0 |"
    )
    assert comparison.report_csv([row]).splitlines()[1] == (
        "cc3m,a|b,few_shot,acc1,CLIP,DiffCLIP*,75.0000,,50.0000,1.0000,-25.0000,-50.0000,12.5000,test examples,"
        "not significant,20.0000"
    )


def test_variants_are_compared_over_the_seeds_that_both_have(path):
    scores = {"base": {0: 0.5, 1: 0.6, 2: 0.7}, "better": {2: 0.9, 1: 0.8, 3: 0.1}, "alone": {7: 0.9}}
    for variant, by_seed in scores.items():
        for seed, value in by_seed.items():
            for metric in ("acc1", "acc5") if (variant, seed) != ("better", 3) else ("acc1",):
                name = ModelName("", "clip", f"out/{variant}/seed_{seed}")
                put(path, name, metric, {metric: [value, value]})
    weights = {variant: f"out/{variant}/seed_*" for variant in ("base", "better", "alone", "missing")}
    groups = {"both": [("acc1", ZERO_SHOT, "acc1"), ("acc5", ZERO_SHOT, "acc5")]}
    base, better, alone, missing = compare_variants(path, weights, groups, "base")
    assert base.difference is None
    assert (base.score.mean, base.score.count) == (pytest.approx(0.6), 3)
    assert better.missing == (3,)  # has one of the two metrics
    assert better.score.mean == pytest.approx(0.85)
    assert better.difference.mean == pytest.approx(0.2)
    assert better.difference.seeds == (0, 1)  # places of the seeds 1 and 2
    assert (alone.score.count, alone.difference) == (1, None)
    assert (missing.score, missing.difference, missing.missing) == (None, None, ())
    table = list(csv.DictReader(comparison.sweep_csv([base, better, alone, missing]).splitlines()))
    assert [row["seeds"] for row in table] == ["3", "2", "1", ""]


def test_a_sweep_of_one_seed_gives_no_interval_and_no_verdict(path):
    for variant, right in (("base", 0.0), ("better", 1.0)):
        put(path, ModelName("", "clip", f"out/{variant}/seed_0"), "set", {"acc1": [right] * 50})
    weights = {variant: f"out/{variant}/seed_*" for variant in ("base", "better")}
    rows = compare_variants(path, weights, {"group": [("set", ZERO_SHOT, "acc1")]}, "base")
    assert "| group | better | 100.0 | 1 | +100.0 |  | one seed |" in comparison.sweep_markdown(rows)


def test_the_order_of_the_results_changes_no_interval(path):
    generator = np.random.default_rng(0)
    right = {(v, s): generator.random(40) < 0.5 for v in ("base", "better") for s in range(3)}
    intervals = []
    for order in (right, sorted(right, key=lambda run: -run[1])):
        path.unlink(missing_ok=True)
        for variant, seed in order:
            put(path, ModelName("", "clip", f"out/{variant}/seed_{seed}"), "set", {"acc1": right[variant, seed]})
        weights = {variant: f"out/{variant}/seed_*" for variant in ("base", "better")}
        *_, row = compare_variants(path, weights, {"group": [("set", ZERO_SHOT, "acc1")]}, "base")
        intervals.append(row.difference.bootstrap)
    assert intervals[0] == intervals[1]

import csv
import dataclasses
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.results import PerExampleScores, Result
from diffclip.evaluation.stats.bootstrap import mean_interval
from diffclip.evaluation.stats.seeds import paired
from diffclip.reporting import verdicts
from diffclip.reporting.compare import ModelName, compare_two, compare_variants
from diffclip.reporting.design import Design, Outcome, Study
from diffclip.reporting.rows import Row
from diffclip.reporting.scores import Score
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
    # The same 60 of 100 are right for CLIP, and all of them for DiffCLIP, plus 5: sure, though each alone is not.
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
    assert row.difference.interval.low < 0 < row.difference.interval.high


def test_the_interval_of_two_models_is_that_of_the_bootstrap_over_their_examples(path):
    first, second = np.random.default_rng(0).random((2, 90)) < [[0.4], [0.6]]
    put(path, CLIP, "scenes", {"acc1": first})
    put(path, DIFFCLIP, "scenes", {"acc1": second})
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    expected = mean_interval(second.astype(float) - first)
    assert row.difference.mean == pytest.approx(expected.mean, abs=1e-8)  # results are kept in float32
    found = row.difference.interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_sign_is_candidate_minus_baseline(path):
    put(path, CLIP, "scenes", {"acc1": np.ones(50)})
    put(path, DIFFCLIP, "scenes", {"acc1": np.zeros(50)})
    (row,) = compare_two(path, CLIP, DIFFCLIP)
    (line,) = (line for line in printed([row]) if "top-1" in line)
    assert line.split() == ["zero_shot:", "top-1", "accuracy", "100.0", "0.0", "−100.0", "not", "estimable"]
    (line,) = (line for line in printed([row], width=120) if "top-1" in line)
    assert line.split()[3:] == ["100.0", "0.0", "−100.0", "not", "estimable", "5.0"]
    (row,) = compare_two(path, DIFFCLIP, CLIP)
    assert verdicts.difference_text(row.difference) == "+100.0"


@pytest.mark.parametrize("seed", range(3))
def test_a_lone_pair_has_no_winner_however_far_apart(path, seed):
    """Not in the row, the table, the headline: another seed of training may turn it round."""
    right = np.random.default_rng(seed).random((2, 400)) < [[0.3], [0.8]]
    for name, values in zip((CLIP, DIFFCLIP), right, strict=True):
        put(path, name, "scenes", {"acc1": values})
    (row,) = rows = compare_two(path, CLIP, DIFFCLIP)
    assert row.difference.interval.low > 0.3
    assert (row.verdict, row.p) == ("one pair", None)
    assert not verdicts.decided(row)
    said = "\n".join([*printed(rows), *printed(rows, 120), verdicts.headline(rows), *verdicts.summary(rows)])
    assert "over test images of this one pair" in " ".join(said.split())
    for word in ("higher", "lower", "significant", "Of 1", "over seeds", "[1m"):
        assert word not in said


def test_what_both_get_all_right_or_all_wrong_is_saturated(path):
    for name in (CLIP, DIFFCLIP):
        for dataset, values in (("all", np.ones(50)), ("none", np.zeros(50)), ("alike", [0, 1] * 25)):
            put(path, name, dataset, {"acc1": values})
    rows = {row.dataset: verdicts.interval_text(row) for row in compare_two(path, CLIP, DIFFCLIP)}
    assert rows == {"all": "saturated", "none": "saturated", "alike": "not estimable"}
    assert "0.0 to 0.0" not in verdicts.headline(compare_two(path, CLIP, DIFFCLIP))


def test_missing_cells_stay_empty(path):
    put(path, CLIP, "only clip", {"acc1": [1, 0]})
    put(path, CLIP, "both", {"acc1": [1, 0]})
    put(path, DIFFCLIP, "both", {"acc1": [1, 1]}, indices=[0, 2])  # other examples could be read
    alone, both = rows = compare_two(path, CLIP, DIFFCLIP)
    assert (alone.score, alone.difference, alone.verdict) == (None, None, "")
    assert both.difference.interval is None
    assert both.verdict == "one pair"
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


def test_the_headline_is_about_the_first_row_and_tallies_nothing(path):
    coin = np.random.default_rng(0).random(200) < 0.5
    for dataset, first, second in (
        ("test", coin, coin), ("shifted", np.zeros(200), coin), ("sketch", coin, np.zeros(200)),
    ):  # fmt: skip
        put(path, CLIP, dataset, {"acc1": first})
        put(path, DIFFCLIP, dataset, {"acc1": second})
    put(path, CLIP, "unpaired", {"acc1": coin})
    text = verdicts.headline(compare_two(path, CLIP, DIFFCLIP))
    share = f"{100 * coin.mean():.1f} %"
    assert text == (
        f"On test, top-1 accuracy is {share} for CLIP and {share} for DiffCLIP: 0.0 points. "
        "One pair of runs: another seed can turn it round, so there is no verdict."
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
    for part in ("a|b [red]", "75.0", "50.0", "−25.0", "another seed", "Results"):
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
    for name in (CLIP, DIFFCLIP):
        looks = {metric: [1, 0] for metric in ("pointing_game", "pointing_game_by_occlusion")}
        put(path, name, "other", looks, task="grounding")
    (row,) = [comparison.standing_for(compare_two(path, CLIP, DIFFCLIP, {("other", "grounding")}))]
    assert row.metric == "pointing_game_by_occlusion"  # relevance is no evidence
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
    assert any("chance" in line for line in lines[:3]) == (width == 120)


def test_a_report_s_tables_keep_names_apart_from_their_own_signs():
    scores = Score({0: 0.75, 1: 0.75, 5: 0.1}), Score({0: 0.5, 1: 0.52})
    difference = paired(scores[0].by_seed, scores[1].by_seed)
    row = Row("cc3m", "CLIP", "DiffCLIP*", *scores, difference, "a|b", "few_shot", "acc1", 0.2)
    (row,) = verdicts.judge([row])
    head, rule, line, *others = comparison.report_markdown([row], "Said.").splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") - 1  # the escaped one in the name
    assert line == (
        "| a\\|b | few shot | top-1 accuracy | DiffCLIP\\* | 2 | 75.0 ± 0.0 | 51.0 ± 1.4 | −24.0 | −36.7 to −11.3 | "
        "0.027 | CLIP higher | 20.0 |"
    )
    assert others == ["", "Said.", "", "a|b, DiffCLIP*: CLIP also has seed 5."]
    (found,) = csv.DictReader(comparison.report_csv([row]).splitlines())
    assert (found["seeds"], found["baseline score"], found["model score"]) == ("2", "75.0000", "51.0000")
    assert (found["difference"], found["verdict"]) == ("-24.0000", "CLIP higher")
    assert (found["chance"], found["left out"]) == ("20.0000", "CLIP also has seed 5")


# Several seeds


def study(variants=("base", "better"), seeds=(0, 1, 2), outcomes=("acc1",), **design):
    return Study(
        baseline=variants[0],
        seeds=tuple(seeds),
        weights={variant: f"out/{variant}/seed_*" for variant in variants},
        outcome=tuple(Outcome(name=name, task="zero_shot", data=(name,)) for name in outcomes),
        design=Design(**design) if design else None,
    )


def put_seeds(path, scores, dataset="acc1"):
    """Of each variant the mean of two examples, by seed."""
    for variant, by_seed in scores.items():
        for seed, value in enumerate(by_seed) if isinstance(by_seed, list) else by_seed.items():
            put(path, ModelName("", "clip", f"out/{variant}/seed_{seed}"), dataset, {"acc1": [value, value]})


def test_variants_are_compared_over_the_seeds_that_both_have(path):
    put_seeds(path, {"base": [0.5, 0.6, 0.7], "better": {2: 0.9, 1: 0.82, 3: 0.1}, "alone": {7: 0.9}})
    both = Outcome(name="both", task="zero_shot", data=("acc1", "acc5"))
    for variant, seeds in (("base", (0, 1, 2)), ("better", (1, 2)), ("alone", (7,))):
        put_seeds(path, {variant: dict.fromkeys(seeds, 0.5)}, "acc5")
    asked = study(("base", "better", "alone", "missing"))
    asked = dataclasses.replace(asked, outcome=(both,))
    base, better, alone, missing = rows = compare_variants(path, asked)
    assert base.difference is None
    assert (base.score.mean, base.score.count) == (pytest.approx(0.55), 3)
    assert better.missing == (3,)  # has one of the two metrics
    first, second = better.counted
    assert (second.mean, first.mean) == (pytest.approx(0.68), pytest.approx(0.575))
    assert better.difference.mean == pytest.approx(second.mean - first.mean)
    assert better.difference.seeds == (1, 2)
    assert better.left_out == "base also has seed 0"
    assert (alone.score.count, alone.difference.count, alone.verdict) == (1, 0, "no common seed")
    assert (missing.score, missing.difference, missing.missing) == (None, None, ())
    table = list(csv.DictReader(comparison.sweep_csv(rows).splitlines()))
    assert [row["seeds"] for row in table] == ["3", "2", "1", ""]
    told = list(verdicts.by_seed(rows))
    assert "both, better: the difference is over 2 seeds, where base has 57.5 ± 3.5; base also has seed 0" in told
    assert "both, better: no whole result with seed 3" in told
    text = comparison.sweep_markdown(rows, asked)
    assert "| both |  | better | 68.0 ± 2.8 | 2 | +10.5 |" in text
    assert all(line in text for line in told)


def test_a_sweep_of_one_seed_gives_no_interval_and_no_verdict(path):
    for variant, right in (("base", 0.0), ("better", 1.0)):
        put(path, ModelName("", "clip", f"out/{variant}/seed_0"), "acc1", {"acc1": [right] * 50})
    rows = compare_variants(path, study())
    assert "| acc1 |  | better | 100.0 | 1 | +100.0 |  |  | one pair |" in comparison.sweep_markdown(rows, study())


def test_equal_differences_are_not_estimable(path):
    put_seeds(path, {"base": [0.5, 0.5], "better": [0.75, 0.75]})
    *_, row = compare_variants(path, study(primary="acc1", seeds=(0, 1)))
    assert (row.verdict, row.p, verdicts.interval_text(row)) == ("not estimable", None, "not estimable")
    put_seeds(path, {"base": [0.0, 0.0], "better": [0.0, 0.0]})
    *_, row = compare_variants(path, study(primary="acc1", seeds=(0, 1)))
    assert (row.verdict, verdicts.interval_text(row)) == ("saturated", "saturated")


FAR, NEAR, APART = [0.60, 0.61, 0.62], [0.501, 0.4995, 0.5005], [0.40, 0.55, 0.52]
BASE = [0.50, 0.505, 0.512]


def test_the_design_judges_its_outcomes_and_nothing_else(path):
    for dataset, by_seed in (("a", FAR), ("b", FAR), ("c", APART), ("d", FAR)):
        put_seeds(path, {"base": BASE, "better": by_seed}, dataset)
    asked = study(outcomes="abcd", primary="a", secondary=("b", "c"))
    found = {row.group: row for row in compare_variants(path, asked) if row.model == "better"}
    assert {name: row.role for name, row in found.items()} == {
        "a": "primary",
        "b": "secondary",
        "c": "secondary",
        "d": "",
    }
    alone = found["a"].difference.p
    assert found["a"].p == alone  # the primary outcome is one
    assert found["b"].p == pytest.approx(2 * alone)  # the secondary ones are two
    assert (found["a"].verdict, found["b"].verdict) == ("higher", "higher")
    assert re.fullmatch(r"undecided, ± \d+\.\d", found["c"].verdict)
    assert (found["d"].verdict, found["d"].p) == ("not judged", None)
    exploratory = [row for row in compare_variants(path, study(outcomes="abcd")) if row.p is not None]
    assert [row.p for row in exploratory if row.group != "c"] == pytest.approx([4 * alone] * 3)
    assert verdicts.summary(tuple(found.values()), asked) == [
        "Primary outcome, a is 50.6 ± 0.6 % for base and 61.0 ± 1.0 % for better: +10.4 points (95 % interval +9.4 to "
        "+11.4, over 3 seeds): better higher, p < 0.001."
    ]


def test_variants_of_the_primary_outcome_are_held_together(path):
    put_seeds(path, {"base": BASE, "x": FAR, "y": FAR})
    rows = compare_variants(path, study(("base", "x", "y"), primary="acc1"))
    assert [row.p for row in rows[1:]] == pytest.approx([2 * row.difference.p for row in rows[1:]])
    _, x, y = compare_variants(path, study(("base", "x", "not yet"), primary="acc1"))
    assert (x.p, y.verdict) == (pytest.approx(2 * x.difference.p), "")


def test_equivalence_needs_a_margin_that_was_declared(path):
    seeds = range(5)
    near = {"base": [0.5, 0.51, 0.52, 0.5, 0.51], "better": [0.501, 0.5095, 0.5195, 0.501, 0.5095]}
    put_seeds(path, near)
    *_, with_margin = compare_variants(path, study(seeds=seeds, primary="acc1", margin=1.0))
    *_, without = compare_variants(path, study(seeds=seeds, primary="acc1"))
    *_, narrow = compare_variants(path, study(seeds=seeds, primary="acc1", margin=0.05))
    assert with_margin.verdict == "equivalent ± 1"
    assert without.verdict == narrow.verdict == f"undecided, ± {100 * without.difference.half_width:.1f}"


@pytest.mark.parametrize("count", [2, 3, 4])
def test_before_all_seeds_are_there_nothing_is_judged(path, count):
    """Looking after each seed from three to ten gives 17 % false verdicts."""
    put_seeds(path, {"base": BASE[:count], "better": FAR[:count]})
    *_, row = compare_variants(path, study(seeds=range(5), primary="acc1"))
    assert (row.verdict, row.p) == (f"{min(count, 3)} of 5 seeds", None)


def test_seeds_that_were_not_declared_do_not_count(path):
    put_seeds(path, {"base": [*BASE, 0.9], "better": [*FAR, 0.1]})
    *_, row = compare_variants(path, study(primary="acc1"))
    assert (row.difference.seeds, row.verdict) == ((0, 1, 2), "higher")


def test_a_collapsed_seed_is_pointed_out_and_counts(path):
    collapsed = [0.71, 0.705, 0.712, 0.5, 0.708]
    put_seeds(path, {"base": [0.7, 0.702, 0.704, 0.701, 0.7], "better": collapsed})
    rows = compare_variants(path, study(seeds=range(5), primary="acc1"))
    told = list(verdicts.by_seed(rows))
    assert "acc1, better: seed 3 (50.0) is far from the others (Grubbs's test, 5 %); it counts as they do" in told
    (line,) = (line for line in told if line.startswith("acc1, better: 71.0 (seed 0)"))
    assert "50.0 (seed 3)" in line
    (said,) = (line for line in told if "correlation" in line)
    assert re.fullmatch(r"acc1, better: correlation with base by seed [+−]0\.\d\d", said)
    assert rows[1].score.mean == pytest.approx(np.mean(collapsed))


def test_relevance_is_no_evidence_and_occlusion_is_judged(path):
    rows = []
    for metric in ("pointing_game", "pointing_game_by_occlusion"):
        difference = paired(dict(enumerate(BASE)), dict(enumerate(FAR)))
        scores = Score(dict(enumerate(BASE))), Score(dict(enumerate(FAR)))
        rows.append(Row("g", "CLIP", "DiffCLIP", *scores, difference, "scenes", "grounding", metric))
    relevance, occlusion = verdicts.judge(rows)
    assert (relevance.verdict, relevance.p) == ("no evidence", None)
    assert (occlusion.verdict, occlusion.p) == ("higher", occlusion.difference.p)  # not shared with relevance
    assert "unless occlusion agrees" in verdicts.note([relevance, occlusion])


def test_the_order_of_the_results_changes_no_interval(path):
    generator = np.random.default_rng(0)
    right = {(v, s): generator.random(40) < 0.5 for v in ("base", "better") for s in range(3)}
    intervals = []
    for order in (right, sorted(right, key=lambda run: -run[1])):
        path.unlink(missing_ok=True)
        for variant, seed in order:
            put(path, ModelName("", "clip", f"out/{variant}/seed_{seed}"), "set", {"acc1": right[variant, seed]})
        *_, row = compare_variants(path, study(outcomes=("set",)))
        intervals.append(row.difference.interval)
    assert intervals[0] == intervals[1]

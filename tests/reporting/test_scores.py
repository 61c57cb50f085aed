import math
import statistics

import pytest
from made_results import put, put_examples

from diffclip.reporting.collect import collect
from diffclip.reporting.families import find_groups
from diffclip.reporting.scores import Scores, Source, plain_name

ON = (Source(("cifar10",), "linear_probe", ("mean_per_class_recall", "acc1")),)
BOTH = (*ON, Source(("dtd",), "linear_probe", ("acc1",)))


def of(path):
    collection = collect([path])
    (one,) = find_groups(collection)
    return Scores(collection), one


@pytest.mark.parametrize("name", ["wds/vtab/caltech101", "caltech-101", "vtab/caltech101", "Caltech_101", "caltech101"])
def test_plain_names(name):
    assert plain_name(name) == "caltech101"


def test_plain_keeps_folders_that_mean_something():
    assert plain_name("scenes/test_v2") == "scenes/testv2"


def test_mean_and_sd_over_seeds_and_pairing_by_seed(tmp_path):
    path = tmp_path / "results.jsonl"
    clip = {0: 0.50, 1: 0.60, 2: 0.40}
    diff = {2: 0.45, 1: 0.62, 7: 0.99}
    for model, values in (("clip_vit_b16", clip), ("diffclip_vit_b16", diff)):
        for seed, value in values.items():
            put(path, "cifar10", model, f"runs/cc3m/{model}-seed{seed}", "linear_probe", acc1=value)
    scores, one = of(path)
    score = scores.score(one.baseline, ON)
    assert score.by_seed == clip
    assert score.mean == pytest.approx(0.5)
    assert score.sd == pytest.approx(math.sqrt(0.01))
    difference = scores.difference(one.baseline, one.families[1], ON)
    assert difference.seeds == (1, 2)
    assert difference.mean == pytest.approx(statistics.fmean([0.02, 0.05]))  # of seeds 1 and 2, which both have
    assert difference.p > 0.05  # of two seeds Student's t says nothing
    first, second = score.common(scores.score(one.families[1], ON)), scores.score(one.families[1], ON).common(score)
    assert second.mean - first.mean == pytest.approx(difference.mean)
    assert (first.count, second.count) == (2, 2)


def test_an_average_needs_all_of_its_parts(tmp_path):
    path = tmp_path / "results.jsonl"
    for seed in (0, 1):
        put(path, "cifar10", "clip_vit_b16", f"cc3m/c-seed{seed}", "linear_probe", acc1=0.4)
    put(path, "dtd", "clip_vit_b16", "cc3m/c-seed1", "linear_probe", acc1=0.8)
    scores, one = of(path)
    assert scores.score(one.baseline, BOTH).by_seed == {1: pytest.approx(0.6)}
    assert scores.score(one.baseline, (*BOTH, Source(("pets",), "linear_probe", ("acc1",)))) is None


def test_two_runs_have_an_interval_over_their_examples_and_are_not_judged(tmp_path):
    path = tmp_path / "results.jsonl"
    put_examples(path, "cifar10", "clip_vit_b16", "cc3m/c", "linear_probe", [0.0] * 50 + [1.0] * 50)
    put_examples(path, "cifar10", "diffclip_vit_b16", "cc3m/d", "linear_probe", [0.0] * 20 + [1.0] * 80)
    scores, one = of(path)
    difference = scores.difference(one.baseline, one.families[1], ON)
    assert (difference.count, difference.over_examples) == (1, True)
    assert difference.mean == pytest.approx(0.3)
    # 30 of 100 examples differ, by 1: the standard error of their mean is √(0.3 · 0.7 / 100)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 100)
    assert difference.interval.low == pytest.approx(0.3 - half, abs=0.015)
    assert difference.interval.high == pytest.approx(0.3 + half, abs=0.015)
    assert difference.p is None


def test_without_examples_one_pair_of_runs_is_not_judged(tmp_path):
    path = tmp_path / "results.jsonl"
    put_examples(path, "cifar10", "clip_vit_b16", "cc3m/c", "linear_probe", [0.0, 1.0])
    put(path, "cifar10", "diffclip_vit_b16", "cc3m/d", "linear_probe", acc1=0.75)
    scores, one = of(path)
    difference = scores.difference(one.baseline, one.families[1], ON)
    assert difference.mean == pytest.approx(0.25)
    assert (difference.interval, difference.p) == (None, None)


def test_the_first_metric_that_a_result_has(tmp_path):
    path = tmp_path / "results.jsonl"
    put(path, "cifar10", "clip_vit_b16", "cc3m/c", "linear_probe", acc1=0.5, mean_per_class_recall=0.7)
    scores, one = of(path)
    assert scores.score(one.baseline, ON).mean == 0.7

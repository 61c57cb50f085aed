"""The transcription, checked against itself: every average and gain that the paper prints is worked out again."""

import pytest

from diffclip.reporting.tables import paper_numbers

PAPER = paper_numbers.load()
NINE = PAPER["classification"]["columns"][:-1]
TASKS = ("linear_probe", "few_shot")
CASES = [
    *((table, [(range(9), 9)]) for task in TASKS for table in PAPER["classification"][task].values()),
    *((PAPER["retrieval"][group], [(range(3), 3), (range(4, 7), 7)]) for group in ("CC3M", "CC12M")),
]


@pytest.mark.parametrize(("table", "averages"), CASES)
def test_averages_and_gains_are_those_of_the_numbers(table, averages):
    for model in ("CLIP", "DiffCLIP"):
        for places, average in averages:
            mean = sum(table[model][place] for place in places) / len(places)
            # Each printed number is rounded to 0.1, so a mean of them and the printed mean are within 0.1.
            assert mean == pytest.approx(table[model][average], abs=0.1)
    for one, other, gain in zip(table["CLIP"], table["DiffCLIP"], table["gains"], strict=True):
        assert round(other - one, 1) == pytest.approx(gain)


def test_pope():
    pope = PAPER["pope"]
    for split, gains in pope["gains"].items():
        for one, other, gain in zip(pope["CLIP"][split], pope["DiffCLIP"][split], gains, strict=True):
            assert round(other - one, 2) == pytest.approx(gain)


def test_what_the_text_says_of_the_tables():
    linear, few = (PAPER["classification"][task]["CC3M"]["gains"][-1] for task in ("linear_probe", "few_shot"))
    assert (linear, few) == (1.0, 0.7)  # 4.2: "about +1 % in linear probing and +0.7 % in few-shot"
    gains = {group: PAPER["retrieval"][group]["gains"] for group in ("CC3M", "CC12M")}
    assert (gains["CC3M"][3], gains["CC3M"][7]) == (1.2, 1.8)  # 4.2
    assert (gains["CC3M"][8], gains["CC12M"][8]) == (0.8, 2.0)
    mmvp = PAPER["mmvp"]["CC12M"]
    assert mmvp["DiffCLIP"] - mmvp["CLIP"] == pytest.approx(5.7)  # 4.4
    variants = PAPER["variants"]["CC12M"]
    # 4.5: DiffCLIP* is +0.8 better than DiffCLIP on ImageNet and on text retrieval, and 0.8 behind on the shifts
    assert variants["DiffCLIP*"]["ImageNet"] - gains["CC12M"][8] == pytest.approx(0.8)
    assert variants["DiffCLIP*"]["Text retrieval"] - gains["CC12M"][7] == pytest.approx(0.8)
    assert variants["DiffCLIP"]["Zero-shot OOD"] - variants["DiffCLIP*"]["Zero-shot OOD"] == pytest.approx(0.8)


def test_the_seeds_of_tables_4_and_5_agree_with_table_1():
    for task, groups in PAPER["seeds"].items():
        for group, models in groups.items():
            for model, numbers in models.items():
                single = dict(zip(NINE, PAPER["classification"][task][group][model][:-1], strict=True))
                for column, (mean, sd) in numbers.items():
                    assert mean == pytest.approx(single[column], abs=0.7), (task, group, model, column)
                    assert 0 <= sd <= 0.5


def test_rows_by_column():
    rows = paper_numbers.rows("linear_probe", "CC3M")
    assert rows["DiffCLIP"]["Caltech-101"] == paper_numbers.PaperNumber(0.762, None, pytest.approx(0.037))
    assert rows["CLIP"]["Avg."].mean == pytest.approx(0.638)
    assert rows["CLIP"]["Avg."].gain is None
    assert paper_numbers.rows("seeds few_shot", "CC12M")["CLIP"]["DTD"] == paper_numbers.PaperNumber(
        pytest.approx(0.819), pytest.approx(0.004)
    )
    assert paper_numbers.rows("retrieval", "LAION") == {}
    tasks = paper_numbers.rows("tasks", "CC12M")
    assert tasks["DiffCLIP*"]["ImageNet"].mean == pytest.approx(0.346)
    assert tasks["DiffCLIP†"]["Zero-shot OOD"] == paper_numbers.PaperNumber(None, None, pytest.approx(0.023))
    assert tasks["DiffCLIP"]["Zero-shot OOD"].gain == pytest.approx(0.021)
    assert paper_numbers.groups("tasks") == ["CC3M", "CC12M"]

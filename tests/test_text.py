"""Names, lists, durations and numbers as people read them."""

import pytest

from diffclip import text


def test_a_name_that_was_meant():
    assert text.closest("captoin", ["caption", "label"]) == "; is it caption?"
    assert text.closest("zzz", ["caption", "label"]) == ""
    assert text.did_you_mean("clip_vit_b61", {"clip_vit_b16": 1, "clip_vit_b32": 2, "x": 3}) == (
        "; did you mean clip_vit_b16 or clip_vit_b32?"
    )
    assert text.did_you_mean("zzz", ["clip"]) == ""


def test_a_list_is_cut_where_nobody_reads_on():
    assert text.listed([]) == "none"
    assert text.listed(["a", "b"]) == "a, b"
    assert text.listed(map(str, range(1023))).endswith("18, 19, 1,003 more")
    assert text.listed(["x" * 61]) == "x" * 60 + "…"


def test_things_are_counted():
    counts = [text.counted(count, "picture") for count in (0, 1, 2, 1234)]
    assert counts == ["no pictures", "1 picture", "2 pictures", "1,234 pictures"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "1 s"), (89.4, "89 s"), (90, "2 min"), (5369, "89 min"), (5400, "1 h 30 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds, expected):
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "signed", "expected"),
    [
        (0.1234, False, "12.3"),
        (-0.05, True, "−5.0"),
        (0.05, True, "+5.0"),
        (-0.0001, True, "0.0"),
        (None, True, ""),
    ],
)
def test_percent(value, signed, expected):
    assert text.percent(value, signed=signed) == expected


def test_percent_with_a_deviation():
    assert text.percent(0.725, sd=0.001) == "72.5 ± 0.1"
    assert text.percent(None, sd=0.001) == ""

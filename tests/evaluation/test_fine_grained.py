import csv
from collections import Counter

import pytest
import torch

from diffclip.errors import UserError
from diffclip.evaluation.datasets.mmvp import MMVPSource
from diffclip.evaluation.datasets.pairs import FilePair, PairImages
from diffclip.evaluation.features.encode import ImageFeatures
from diffclip.evaluation.tasks import fine_grained


def unit(*shape, seed=0):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, dim=-1)


def test_right_equals_the_rule_written_out():
    images, texts = unit(200, 2, 8), unit(200, 2, 8, seed=1)
    for found, image, text in zip(
        fine_grained.right(images, texts).tolist(), images.double(), texts.double(), strict=True
    ):
        first_picks_first = image[0] @ text[0] > image[1] @ text[0]
        second_picks_second = image[1] @ text[1] > image[0] @ text[1]
        assert found == bool(first_picks_first and second_picks_second)
    assert 0.15 < fine_grained.right(images, texts).float().mean() < 0.35  # chance is a quarter


def test_a_model_that_sees_no_difference_scores_nothing():
    same = unit(1, 1, 8)
    assert not fine_grained.right(same.expand(5, 2, 8), unit(5, 2, 8)).any()
    assert not fine_grained.right(unit(5, 2, 8), same.expand(5, 2, 8)).any()


class Pairs:
    name = "pairs"
    patterns = ("Color", "Color", "Color", "State and Condition", "Count")

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return FilePair(self.patterns[index], (b"", b""), ("one", "other"))


def test_the_score_is_the_mean_over_patterns():
    texts = torch.eye(2).repeat(5, 1)
    images = texts.clone()
    images[[2, 3]] = images[[3, 2]]  # pair 1 (Color) is the wrong way round
    images[8] = images[9]  # pair 4 (Count) shows one thing twice
    features = ImageFeatures(images, torch.arange(10), torch.full((10,), -1), ((),) * 10, Counter(), images)
    found = fine_grained.evaluate(Pairs(), features, texts)
    assert found.metrics == pytest.approx(
        {
            "pair_accuracy": (2 / 3 + 1 + 0) / 3,
            "pair_accuracy/color": 2 / 3,
            "pair_accuracy/state_and_condition": 1,
            "pair_accuracy/count": 0,
        }
    )
    assert set(found.chance.values()) == {0.25}
    # A pair with an unreadable image is left out: image 0, so pair 0, and the others stay what they were.
    features = ImageFeatures(
        images[1:], torch.arange(1, 10), torch.full((9,), -1), ((),) * 9, Counter(truncated=1), images[1:]
    )
    found = fine_grained.evaluate(Pairs(), features, texts[1:])
    assert found.indices.tolist() == [1, 2, 3, 4]
    assert found.metrics["pair_accuracy/color"] == 1 / 2


def write_mmvp(folder, rows):
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Question ID", "Type", "Statement"), *rows])
    for number, pattern, _ in rows:
        (folder / "MLLM_VLM Images" / pattern).mkdir(parents=True, exist_ok=True)
        (folder / "MLLM_VLM Images" / pattern / f"{number}.jpg").write_bytes(f"image {number}".encode())
    return folder


ROWS = [
    (1, "Color", "a red, ripe apple"),
    (2, "Color", "a green apple"),
    (3, "Count", "one dog"),
    (4, "Count", "two dogs"),
]


def test_reads_the_benchmark_s_folder(tmp_path):
    source = MMVPSource(write_mmvp(tmp_path, ROWS))
    assert len(source) == 2
    assert source[0] == FilePair(
        "Color", (b"image 1", b"image 2"), ("a photo of a red, ripe apple", "a photo of a green apple")
    )
    images = PairImages(source)
    assert len(images) == 4
    assert (images[3].image, images[3].captions) == (b"image 4", ("a photo of two dogs",))


def test_pairs_are_told_by_their_numbers_whatever_the_order_and_the_kind_of_file(tmp_path):
    source = MMVPSource(write_mmvp(tmp_path, [ROWS[i] for i in (3, 0, 2, 1)]))
    assert [source[i].statements[0] for i in range(2)] == ["a photo of a red, ripe apple", "a photo of one dog"]
    folder = tmp_path / "MLLM_VLM Images"
    (folder / "Count" / "4.jpg").rename(folder / "Count" / "4.PNG")
    (folder / "Count").rename(folder / "count")
    assert MMVPSource(tmp_path)[1].images == (b"image 3", b"image 4")


def test_another_number_of_pairs_is_a_warning(tmp_path, caplog):
    nine = [(2 * k + i, f"Pattern {k // 15}", "text") for k in range(135) for i in (1, 2)]
    assert len(MMVPSource(write_mmvp(tmp_path, nine))) == 135
    assert not caplog.text
    MMVPSource(write_mmvp(tmp_path, nine[:-2]))
    assert "expected 15 pairs of each of 9 patterns, found 15 of pattern_0, " in caplog.text
    assert ", 14 of pattern_8" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:3], "statement 3 has no partner, which would be 4"),
        ([], "has no statements; expected MMVP-VLM's folder"),
        ([ROWS[0], ROWS[2]], "statement 1 has no partner, which would be 2"),
        ([ROWS[0], (2, "Count", "two")], "1 and 2 are a pair, but of two types, 'Color' and 'Count'"),
        ([ROWS[0], ROWS[0]], "line 3: statement 1 is there twice"),
        ([(1, "Color", "a", "b"), ROWS[1]], "line 2: expected a number, a type and a statement, found 4 columns"),
        ([ROWS[0], ("x", "Color", "b")], "line 3: expected a number, a type and a statement, found 3 columns"),
    ],
)
def test_a_wrong_table_is_told(tmp_path, rows, message):
    write_mmvp(tmp_path, [row[:3] for row in rows])
    with (tmp_path / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Question ID", "Type", "Statement"), *rows])
    with pytest.raises(UserError, match=message):
        MMVPSource(tmp_path)


def test_a_missing_table_or_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*Questions.csv: No such file"):
        MMVPSource(tmp_path)
    source = MMVPSource(write_mmvp(tmp_path, ROWS))
    (tmp_path / "MLLM_VLM Images" / "Count" / "4.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read .*Count/4.jpg: missing"):
        source[1]
    with pytest.raises(UserError, match=r"1 of 4 images are missing, the first is .*Count/4.jpg"):
        MMVPSource(tmp_path)

"""Winoground: its three scores, its parquet."""

from itertools import permutations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dataset_files import jpeg

from diffclip.data.scenes.compositional import SwapSource
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.evaluation.datasets.named import data_set
from diffclip.evaluation.datasets.pairs import FilePair, PairImages
from diffclip.evaluation.datasets.winoground import WinogroundSource
from diffclip.evaluation.run import suite
from diffclip.evaluation.run.suite import DataSet
from diffclip.evaluation.tasks import winoground
from diffclip.models.clip import create_model
from small_models import PICTURES


def features_of(s):
    """Images and captions (P, 2, 2) whose scores are s[p][caption][image]: images are the axes."""
    captions = torch.tensor(s, dtype=torch.float64)
    return torch.eye(2, dtype=torch.float64).expand_as(captions), captions


def test_scores_by_hand():
    # Rows are captions, columns images. Own scores on the diagonal.
    s = [
        [[0.9, 0.1], [0.2, 0.8]],  # all right
        [[0.9, 0.85], [0.1, 0.8]],  # image 1 prefers caption 0: no text score; captions are right
        [[0.5, 0.2], [0.6, 0.9]],  # image 0 prefers caption 1: no text score
        [[0.5, 0.6], [0.2, 0.9]],  # caption 0 prefers image 1: no image score; images are right
        [[0.5, 0.5], [0.5, 0.5]],  # no difference
    ]
    found = winoground.scores(*features_of(s))
    assert found["text_score"].tolist() == [True, False, False, True, False]
    assert found["image_score"].tolist() == [True, True, True, False, False]
    assert found["group_score"].tolist() == [True, False, False, False, False]


def test_chance_is_what_random_orders_of_the_four_scores_give():
    s = [[[a, b], [c, d]] for a, b, c, d in permutations((0.1, 0.2, 0.3, 0.4))]
    found = winoground.scores(*features_of(s))
    assert {name: hits.double().mean().item() for name, hits in found.items()} == pytest.approx(winoground.CHANCE)
    assert winoground.CHANCE == {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}


def test_by_tag_too():
    hits = {name: torch.tensor([True, False, True]) for name in winoground.CHANCE}
    found = winoground.evaluate(hits, ["object", "relation", "relation"], torch.tensor([0, 1, 3]))
    assert found.metrics["group_score"] == pytest.approx(2 / 3)
    assert found.metrics["text_score/object"] == 1
    assert found.metrics["image_score/relation"] == 1 / 2
    assert found.chance["group_score/relation"] == 1 / 6
    assert found.indices.tolist() == [0, 1, 3]


def test_a_pair_with_an_unreadable_image_is_left_out_and_the_others_keep_their_captions():
    class Damaged(SwapSource):
        """Its second pair has an image that is none."""

        def __getitem__(self, index):
            pair = super().__getitem__(index)
            return pair if index != 1 else FilePair(pair.pattern, (b"", b"no image"), pair.statements)

    torch.manual_seed(5)  # whose weights are right about a pair after the damaged one
    model, source = create_model("clip_vit_t16", **PICTURES).eval(), Damaged(count=4, size=16)
    data = DataSet("scenes", PairImages(source, "swaps"), ("winoground",))
    measured, skipped = suite.measure(model, data)
    found = measured["winoground"]
    assert sum(skipped.values()) == 2
    assert found.indices.tolist() == [0, 2, 3, 4, 5, 6, 7]
    config, by_hand = model.config, []
    for index in found.indices.tolist():
        pair = source[index]
        pixels = torch.stack([EvalTransform(16)(image) for image in pair.images])
        with torch.no_grad():
            images = model.encode_image(normalise(pixels, config.image_mean, config.image_std), normalize=True)
            s = model.encode_text(get_tokenizer()(list(pair.statements)), normalize=True) @ images.T
        by_hand.append(float(s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]))
    assert by_hand == [1, 0, 0, 0, 1, 0, 0]
    assert found.values["text_score"].tolist() == by_hand
    assert found.values["text_score/colour"].isnan().tolist() == [True] * 3 + [False] * 4


def write_winoground(folder, count=3, **columns):
    """The parquet of the hub: images as {bytes, path}."""
    folder.mkdir(parents=True)
    tags = ("Object", "Relation", "Both")
    table = {
        "id": list(range(count)),
        **{f"image_{s}": [{"bytes": jpeg(2 * i + s), "path": None} for i in range(count)] for s in (0, 1)},
        **{f"caption_{s}": [f"{i} words {s}" for i in range(count)] for s in (0, 1)},
        "tag": [""] * count,
        "secondary_tag": [""] * count,
        "collapsed_tag": [tags[i % 3] for i in range(count)],
    }
    pq.write_table(pa.table(table | columns), folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("place", [".", "data", "default/test"])
def test_reads_the_parquet_of_the_hub(tmp_path, caplog, place):
    write_winoground(tmp_path / "winoground" / place)
    source = WinogroundSource(tmp_path / "winoground")
    assert source.patterns == ("Object", "Relation", "Both")
    assert source[1] == FilePair("Relation", (jpeg(2), jpeg(3)), ("1 words 0", "1 words 1"))
    assert "3 examples, but 400 are published" in caplog.text
    caplog.clear()
    for name in (f"mine={tmp_path / 'winoground'}", f"winoground={tmp_path}"):
        data = data_set(name, ("winoground",))
        assert data.has("swaps")
        assert not data.has("pairs")
        assert data.split("swaps")[3].captions == ("1 words 1",)
        assert data.test.patterns == source.patterns


def test_a_folder_without_it_and_captions_that_are_not_one_are_said(tmp_path):
    pq.write_table(pa.table({"image_0": [b""], "caption_0": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(
        UserError, match=r"has no parquet file with caption_0, caption_1, collapsed_tag, image_0, image_1"
    ):
        WinogroundSource(tmp_path)
    source = WinogroundSource(write_winoground(tmp_path / "w", caption_1=[["a", "b"], ["c"], []]))
    assert source[1].statements == ("1 words 0", "c")
    for wrong in (0, 2):
        with pytest.raises(UserError, match=f"row {wrong} of row group 0: expected one caption a column, found"):
            source[wrong]

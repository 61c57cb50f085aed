import math

import numpy as np
import pytest
import torch

from diffclip.data.scenes import SceneSource
from diffclip.data.sources import Example
from diffclip.data.transforms import EvalTransform
from diffclip.errors import UserError
from diffclip.evaluation.stats.bootstrap import mean_interval
from diffclip.evaluation.tasks import noise
from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.maps import forward_with_maps
from small_models import small_model


def maps(batch, heads, size, seed=0):
    logits = np.random.default_rng(seed).normal(0, 2, (batch, heads, size, size))
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def test_correlation_equals_numpys_row_by_row_and_leaves_out_flat_rows():
    a1, a2 = maps(3, 2, 5), maps(3, 2, 5, seed=1)
    a1[0, 1, 2] = 0.2
    a2[2] = 0.2 + 1e-8 * a1[2]  # flat to within float32
    expected = []
    for image in range(3):
        rows = []
        for head in range(2):
            for query in range(5):
                one, other = a1[image, head, query], a2[image, head, query]
                if np.ptp(one) > 1e-5 and np.ptp(other) > 1e-5:
                    rows.append(np.corrcoef(one, other)[0, 1])
        expected.append(np.mean(rows) if rows else np.nan)
    found = noise.correlation(torch.from_numpy(a1), torch.from_numpy(a2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert noise.correlation(torch.from_numpy(a1), torch.from_numpy(a1))[1].item() == pytest.approx(1)


def test_entropy_equals_a_loop_and_lies_between_one_key_and_all():
    attention = maps(2, 3, 4)
    attention[0, 0, 0] = [0, 1, 0, 0]
    expected = []
    for image in attention:
        rows = [-sum(p * math.log(p) for p in row if p > 0) / math.log(4) for head in image for row in head]
        expected.append(sum(rows) / len(rows))
    np.testing.assert_allclose(noise.entropy(torch.from_numpy(attention)).numpy(), expected, rtol=1e-12)
    assert noise.entropy(torch.full((1, 1, 4, 4), 0.25)).item() == pytest.approx(1)
    assert noise.entropy(torch.eye(4)[None, None]).item() == 0


def test_pairs_of_standard_attention_are_the_heads_that_would_be_paired():
    a = torch.from_numpy(maps(2, 5, 3))
    first, second = noise.pairs(AttentionMaps(a, a))
    assert torch.equal(first, a[:, [0, 2]])
    assert torch.equal(second, a[:, [1, 3]])
    assert noise.pairs(AttentionMaps(a[:, :1], a[:, :1])) is None
    differential = AttentionMaps(a, a, a + 1, 0.8)
    assert noise.pairs(differential) == (differential.a1, differential.a2)


def tiny(kind, **changes):
    model = small_model(kind, **{"vision_depth": 2, "vision_heads": 4} | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


class Pictures:
    """Images that differ, of which number 3 cannot be read."""

    name = "pictures"

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3:
            return Example(b"")
        return Example(np.random.default_rng(index).integers(0, 255, (24, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["clip", "diffclip"])
def test_each_image_layer_and_condition_is_measured_on_its_own(kind, caplog):
    model = tiny(kind).train()
    found = noise.evaluate(model, Pictures(), batch_size=2, sigma=0.3, seed=5)
    assert model.training
    assert found.indices.tolist() == [0, 1, 2, 4, 5]
    assert "pictures: 1 of 6 images could not be read" in caplog.text
    model.eval()
    views = noise._Views(Pictures(), EvalTransform(16), 0.3, 5)(4)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (model.config.image_mean, model.config.image_std))
    for condition, pixels in zip(noise.CONDITIONS, views, strict=True):
        _, layers = forward_with_maps(model.visual, ((pixels / 255 - mean) / std)[None])
        means = dict.fromkeys(noise.METRICS, 0.0)
        for number, layer in enumerate(layers, start=1):
            a1, a2 = (layer.a1[:, ::2], layer.a1[:, 1::2]) if kind == "clip" else (layer.a1, layer.a2)
            pair = a1[0].detach().double().numpy(), a2[0].detach().double().numpy()
            rows = [
                np.corrcoef(x, y)[0, 1]
                for one, other in zip(*pair, strict=True)
                for x, y in zip(one, other, strict=True)
            ]
            entropies = [-(a * np.log(a)).sum(-1).mean() / math.log(5) for a in pair]
            for name, expected in zip(noise.METRICS, (np.mean(rows), *entropies), strict=True):
                value = found.values[f"{name}/layer_{number:02d}/{condition}"][3].item()
                assert value == pytest.approx(expected, rel=1e-3, abs=1e-5), (name, number, condition)
                means[name] += value / len(layers)
        for name, expected in means.items():
            assert found.values[f"{name}_{condition}"][3].item() == pytest.approx(expected)
    assert len(found.values) == 3 * 3 * (2 + 1)
    assert noise.evaluate(model, Pictures(), limit=2, seed=5, sigma=0.3).indices.tolist() == [0, 1]


def test_noise_has_its_sigma_and_the_middle_stays_under_clutter():
    class Grey(Pictures):
        def __getitem__(self, index):
            return Example(np.full((64, 64, 3), (127, 5, 250)[index % 3], np.uint8))

    views = noise._Views(Grey(), EvalTransform(64), 0.1, 0)
    clean, cluttered, noisy = views(0)
    assert (clean == 127).all()
    assert noisy.double().std().item() == pytest.approx(25.5, rel=0.03)
    assert (cluttered[:, 24:40, 24:40] == 127).all()
    changed = (cluttered != 127).float().mean().item()
    assert 2 / 16 <= changed <= 4 / 16  # four of 1/16 each, unless the source's own grey is pasted
    again = noise._Views(Grey(), EvalTransform(64), 0.1, 0)(0)
    assert all(torch.equal(one, other) for one, other in zip(again, (clean, cluttered, noisy), strict=True))
    other = noise._Views(Grey(), EvalTransform(64), 0.1, 1)(0)
    assert not torch.equal(other[1], cluttered)
    assert not torch.equal(other[2], noisy)


def test_an_image_is_cluttered_by_each_of_the_others_once():
    views = noise._Views(Pictures(), EvalTransform(16), 0.1, 0)
    clean = {index: views(index)[0] for index in (0, 1, 2, 4, 5)}
    for index in clean:
        pasted = list(views._distractors(index))
        assert len(pasted) == 4
        assert all(any(torch.equal(p, clean[other]) for p in pasted) for other in clean if other != index)


def test_scenes_clutter_themselves():
    source = SceneSource("test", length=3)
    views = noise._Views(source, EvalTransform(64), 0.1, 0)
    assert np.array_equal(views(1)[1].permute(1, 2, 0).numpy(), source.cluttered(1))


def test_the_table_holds_paired_changes():
    model = tiny("diffclip")
    found = noise.evaluate(model, Pictures())
    rows = noise.table(found)
    assert [(row.layer, row.condition) for row in rows[:6]] == [(n, c) for n in (1, 2) for c in noise.CONDITIONS]
    assert [row.metric for row in rows[::6]] == list(noise.METRICS)
    row = rows[4]
    clean, cluttered = (found.values[f"a1_a2_correlation/layer_02/{c}"] for c in ("clean", "cluttered"))
    assert row.value == mean_interval(cluttered.numpy())
    assert row.change == mean_interval((cluttered - clean).numpy())
    assert rows[3].change is None


def test_what_cannot_be_measured_is_told():
    with pytest.raises(UserError, match="sigma = 0"):
        noise.evaluate(tiny("clip"), Pictures(), sigma=0)
    with pytest.raises(UserError, match="no two heads"):
        noise.evaluate(tiny("clip", vision_heads=1), Pictures(), limit=1)

    class One(Pictures):
        def __len__(self):
            return 1

    with pytest.raises(UserError, match="holds 1 images"):
        noise.evaluate(tiny("clip"), One())

    class Broken(Pictures):
        def __getitem__(self, index):
            return Example(b"no image")

    with pytest.raises(UserError, match="none of its first 6 images"):
        noise.evaluate(tiny("clip"), Broken())

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffclip.errors import UserError
from diffclip.evaluation.tasks import retrieval


def unit(*shape, seed=0):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, dim=-1)


def brute_force(image_features, text_features, image_of_text, k):
    """Recall@k by sorting every query's scores, in float64."""
    scores = image_features.double().numpy() @ text_features.double().numpy().T
    owner = image_of_text.tolist()
    found_image = [owner[t] in np.argsort(-scores[:, t])[:k] for t in range(len(owner))]
    queries = sorted(set(owner))
    found_text = [any(owner[t] == i for t in np.argsort(-scores[i])[:k]) for i in queries]
    return np.mean(found_image), np.mean(found_text)


@pytest.mark.parametrize("captions", [[1] * 40, [5] * 20, [1, 4, 2, 7, 1, 3, 5, 1, 1, 2], [2, 0, 3, 0, 1, 1]])
def test_equals_brute_force(captions, monkeypatch):
    images = len(captions)
    owner = torch.tensor([i for i, count in enumerate(captions) for _ in range(count)])
    owner = owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(3))]
    image_features = unit(images, 12)
    text_features = torch.nn.functional.normalize(image_features[owner] + 0.9 * unit(len(owner), 12, seed=1), dim=-1)
    monkeypatch.setattr(retrieval, "BLOCK", 100)  # many blocks, the last one shorter
    found = retrieval.recall(image_features, text_features, owner, ks=(1, 3, 10))
    for k in (1, 3, 10):
        image, text = brute_force(image_features, text_features, owner, k)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(image)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(text)
    assert list(found) == [f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 3, 10)]


def test_a_constant_feature_scores_exactly_chance():
    owner = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    same = unit(1, 8)
    found = retrieval.recall(same.expand(4, 8), same.expand(10, 8), owner, ks=(1, 2, 5, 20))
    assert found == pytest.approx(retrieval.chance(4, owner, ks=(1, 2, 5, 20)))
    assert found["image_retrieval_recall@1"] == pytest.approx(1 / 4)
    assert found["text_retrieval_recall@1"] == pytest.approx((3 + 2 + 1 + 4) / 40)
    assert found["text_retrieval_recall@20"] == 1.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_are_the_mean_over_all_orders(k):
    # Scores on a coarse grid, so that many are equal; every order of five texts is tried.
    image_features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text_features = torch.tensor([[0.5, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 0.5], [0.5, 0.0]])
    owner = torch.tensor([0, 0, 1, 1, 1])
    scores = image_features @ text_features.T
    hits = []
    for order in itertools.permutations(range(5)):
        for image in (0, 1):
            best = sorted(order, key=lambda t: -scores[image, t])[:k]  # stable: ties stay in the order of `order`
            hits.append(any(owner[t] == image for t in best))
    found = retrieval.recall(image_features, text_features, owner, ks=(k,))
    # The best positive of image 0 is tied twice over: one of its two texts suffices.
    assert found[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(hits))


def test_duplicates_of_a_caption_share_the_hit():
    image_features = torch.eye(3)
    text_features = torch.eye(3)[[0, 0, 2]]
    found = retrieval.recall(image_features, text_features, torch.arange(3), ks=(1,))
    assert found["text_retrieval_recall@1"] == pytest.approx((0.5 + 1 / 3 + 1) / 3)  # image 1: three texts at score 0


def test_chance_of_data_where_an_image_has_no_text():
    found = retrieval.chance(4, torch.tensor([0, 0, 2]), ks=(1, 2))
    assert found == pytest.approx(
        {
            "image_retrieval_recall@1": 1 / 4,
            "image_retrieval_recall@2": 2 / 4,
            "text_retrieval_recall@1": (2 / 3 + 1 / 3) / 2,
            "text_retrieval_recall@2": (1 + 2 / 3) / 2,
        }
    )


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="3 texts, but image_of_text names the image of 2"):
        retrieval.recall(unit(2, 4), unit(3, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="from 0 to 2 for 2 images"):
        retrieval.recall(unit(2, 4), unit(2, 4), torch.tensor([0, 2]))
    broken = unit(2, 4) * torch.nan
    with pytest.raises(UserError, match="2 of 2 image features are not finite"):
        retrieval.recall(broken, unit(2, 4), torch.tensor([0, 1]))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_block(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 5_000)
    images, texts, owner = unit(300, 4), unit(700, 4, seed=1), torch.arange(700) % 300
    with LargestTensor() as largest:
        retrieval.recall(images, texts, owner)
    assert 2_800 <= largest.elements <= 5_000  # the features themselves at least; all scores would be 210,000

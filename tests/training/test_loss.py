"""The loss against its formula in float64 with loops, and against open_clip's."""

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from diffclip.training.loss import contrastive_loss, sigmoid_loss


def features(count: int, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def by_hand(image, text, scale, groups) -> float:
    """Both directions, one row at a time: the mean over the row's answers of −log of their softmax."""
    image, text, total = image.tolist(), text.tolist(), 0.0
    for queries, keys in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            scores = [scale * math.fsum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
            everything = math.log(math.fsum(math.exp(s) for s in scores))
            answers = [everything - s for s, group in zip(scores, groups, strict=True) if group == groups[i]]
            total += math.fsum(answers) / len(answers)
    return total / (2 * len(image))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 1, 0], [7] * 6])
def test_equals_the_formula(groups):
    image, text = features(6)
    loss = contrastive_loss(image, text, torch.tensor(14.3), torch.tensor(groups))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(image, text, 14.3, groups), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 1, 0, 3]])
def test_rows_lose_their_share_of_the_whole(groups):
    image, text = features(7)
    groups = groups and torch.tensor(groups)
    whole = contrastive_loss(image, text, torch.tensor(14.3), groups)
    blocks = [slice(0, 3), slice(3, 4), slice(4, 7)]
    parts = [contrastive_loss(image, text, torch.tensor(14.3), groups, rows=rows) for rows in blocks]
    assert (3 * parts[0] + parts[1] + 3 * parts[2]).item() / 7 == pytest.approx(whole.item(), rel=1e-6)
    assert parts[0].item() != pytest.approx(whole.item(), rel=1e-3)


def test_without_groups_it_is_open_clips():
    image, text = (x.float() for x in features(9))
    ours = contrastive_loss(image, text, torch.tensor(100.0))
    assert ours.item() == pytest.approx(ClipLoss()(image, text, torch.tensor(100.0)).item(), rel=1e-6)


def test_an_image_does_not_push_away_the_caption_it_shares():
    image, text = features(4)
    image.requires_grad_()
    for groups, repelled in ((None, True), (torch.tensor([0, 0, 1, 2]), False)):
        loss = contrastive_loss(image, text, torch.tensor(5.0, dtype=torch.float64), groups)
        (gradient,) = torch.autograd.grad(loss, image)
        # Image 0's gradient is a sum over the captions it is compared with; solve for the share of caption 1.
        share = torch.linalg.lstsq(text.T, gradient[0][:, None]).solution[1].item()
        assert (share > 0) == repelled


def test_is_computed_in_float32_under_autocast():
    image, text = (x.bfloat16() for x in features(64, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(image, text, torch.tensor(100.0))
    assert inside.item() == contrastive_loss(image.float(), text.float(), torch.tensor(100.0)).item()


def sigmoid_by_hand(image, text, scale, bias, groups) -> float:
    """Every pair a question of its own: −log of the probability of the right answer, summed, by the images."""
    total = 0.0
    for i, query in enumerate(image.tolist()):
        for j, key in enumerate(text.tolist()):
            score = scale * math.fsum(a * b for a, b in zip(query, key, strict=True)) + bias
            yes = 1 / (1 + math.exp(-score))
            total -= math.log(yes if groups[i] == groups[j] else 1 - yes)
    return total / len(image)


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 1, 0]])
def test_the_sigmoid_loss_equals_the_formula_and_its_rows_their_share(groups):
    image, text = features(6)
    given = None if groups is None else torch.tensor(groups)
    scale, bias = torch.tensor(10.0), torch.tensor(-2.5)
    loss = sigmoid_loss(image, text, scale, bias, given)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sigmoid_by_hand(image, text, 10.0, -2.5, groups or range(6)), rel=1e-5)
    one, two = (sigmoid_loss(image, text, scale, bias, given, rows=rows) for rows in (slice(0, 2), slice(2, 6)))
    assert (2 * one + 4 * two).item() / 6 == pytest.approx(loss.item(), rel=1e-6)


def test_the_sigmoid_loss_is_open_clips_with_its_gradients():
    found = []
    for function in (lambda i, t, s, b: sigmoid_loss(i, t, s, b), SigLipLoss()):
        inputs = [x.float().requires_grad_() for x in features(9)]
        inputs += [torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)]
        loss = function(*inputs)
        loss.backward()
        found.append([loss.detach(), *(x.grad for x in inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)

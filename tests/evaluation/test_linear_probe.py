import math
import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch.utils._python_dispatch import TorchDispatchMode

from diffclip.errors import UserError
from diffclip.evaluation.features import logistic_regression
from diffclip.evaluation.features.logistic_regression import Axes, Weights, fit
from diffclip.evaluation.tasks import linear_probe


def clusters(count, dim=12, classes=5, seed=0, spread=1.0):
    """Overlapping classes, features of very different scales whose mean is far from 0."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    features = means[labels] + spread * torch.randn(count, dim, generator=generator)
    return features * torch.logspace(0, -1.5, dim) + 0.7, labels


def solve(features, labels, C, **options):
    """Our classifier in the features' own coordinates."""
    axes = Axes.of(features)
    classes = int(labels.max()) + 1
    rotated = axes.rotate_(features.clone())
    return fit(axes, rotated, labels, C, Weights.prior(axes, labels, classes), **options).rotate_back(axes)


def gradient(features, labels, weight, bias, C):
    """Of the objective in the features' own coordinates, by autograd, in float64."""
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features.double() @ weight.T + bias, labels)
    loss = loss + weight.square().sum() / (2 * C * len(labels))
    return torch.autograd.grad(loss, (weight, bias))


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_weights_are_those_of_scikit_learn(C, classes, monkeypatch):
    monkeypatch.setitem(logistic_regression.BLOCK, "cpu", 300)  # many blocks, the last one shorter
    x, y = clusters(400, classes=classes)
    x = x.double()
    peer = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(x.numpy(), y.numpy())
    found = solve(x, y, C, tol=1e-8)
    weight, bias = found.weight, found.bias
    if classes == 2:  # scikit-learn has one vector there
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    else:
        bias = bias - bias.mean()  # a shift of all intercepts changes nothing
    assert np.allclose(weight, peer.coef_, rtol=1e-4, atol=1e-4 * np.abs(peer.coef_).max())
    assert np.allclose(bias, peer.intercept_, atol=1e-3)


def test_the_gradient_ends_below_the_tolerance_and_starts_far_above():
    x, y = clusters(600)
    found = solve(x, y, 10.0)
    assert max(g.abs().max() for g in gradient(x, y, found.weight, found.bias, 10.0)) < 1.05e-4
    start = Weights.prior(Axes.of(x), y, 5)
    assert gradient(x, y, start.weight, start.bias, 10.0)[0].abs().max() > 1e-2


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made, views apart."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_block(monkeypatch):
    monkeypatch.setitem(logistic_regression.BLOCK, "cpu", 2_000)
    x, y = clusters(1000, classes=40)
    axes = Axes.of(x)
    with LargestTensor() as largest:
        axes.rotate_(x)
        fit(axes, x, y, 1.0, Weights.prior(axes, y, 40)).predict(x)
    # One number an example at most where it is not a block: all logits would be 40,000.
    assert 1_000 <= largest.elements <= 2_000


def test_a_class_without_examples_takes_no_part():
    x, y = clusters(300, classes=4)
    gap = torch.tensor([0, 1, 3, 4])[y]
    with_gap, without = solve(x, gap, 1.0), solve(x, y, 1.0)
    assert with_gap.bias[2] == -math.inf
    assert torch.equal(torch.tensor([0, 1, 3, 4])[without.predict(x)], with_gap.predict(x))


def test_float32_predicts_as_scikit_learn_in_float64():
    x, y = clusters(1500, dim=20, classes=8, spread=1.5)
    for C in (1e-4, 1e-2, 1.0):
        peer = LogisticRegression(C=C, tol=1e-6, max_iter=10_000).fit(x.double().numpy(), y.numpy())
        same = (solve(x, y, C).predict(x).numpy() == peer.predict(x.double().numpy())).mean()
        assert same > 0.995, C


def sklearn_protocol(train, val, test, mean_per_class):
    """The protocol with scikit-learn: every C of both stages from nothing, floats for C, sklearn's own accuracy."""
    score = balanced_accuracy_score if mean_per_class else accuracy_score
    fitted = {}

    def accuracy(C):
        if C not in fitted:
            model = LogisticRegression(C=C, max_iter=1000, tol=1e-5).fit(train[0].double().numpy(), train[1].numpy())
            fitted[C] = score(val[1], model.predict(val[0].double().numpy()))
        return fitted[C]

    coarse = [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6]
    best = coarse[int(np.argmax([accuracy(C) for C in coarse]))]
    points = np.logspace(np.log10(best) - 2, np.log10(best) + 2, 29)
    points = [C for C in points.tolist() if 0.999e-6 <= C <= 1.001e6]
    tried = {best: fitted[best]}
    while len(points) > 1:
        a, b, c = points[len(points) // 4], points[len(points) // 2], points[-len(points) // 4]
        for C in (a, b, c):
            tried.setdefault(C, accuracy(C))
        top = max(tried[a], tried[b], tried[c])
        if tried[a] == top:
            points = points[: len(points) // 2]
        elif tried[c] == top:
            points = points[len(points) // 2 :]
        else:
            points = points[len(points) // 4 : -len(points) // 4]
    best = max(tried, key=tried.get)
    x, y = torch.cat([train[0], val[0]]).double().numpy(), torch.cat([train[1], val[1]]).numpy()
    return best, LogisticRegression(C=best, max_iter=1000, tol=1e-5).fit(x, y).predict(test[0].double().numpy())


@pytest.mark.parametrize("mean_per_class", [False, True])
def test_the_protocol_is_that_of_scikit_learn(mean_per_class):
    # Few examples in many dimensions: neither end of the scale of C is best.
    splits = (clusters(count, dim=40, spread=4.0, seed=seed) for seed, count in enumerate((150, 150, 400)))
    train, val, test = [(x.double(), y) for x, y in splits]
    C, predictions = sklearn_protocol(train, val, test, mean_per_class)
    probe = linear_probe.fit_and_predict(*train, *val, test[0], mean_per_class=mean_per_class)
    assert 1e-3 < C < 1e3
    assert math.isclose(probe.C, C, rel_tol=1e-6)
    assert (probe.predictions.numpy() == predictions).mean() > 0.99
    result = linear_probe.linear_probe(*train, *val, *test, mean_per_class=mean_per_class)
    recall = [(predictions[test[1] == label] == label).mean() for label in range(5)]
    expected = {"acc1": (predictions == test[1].numpy()).mean(), "mean_per_class_recall": np.mean(recall), "C": probe.C}
    assert result == pytest.approx(expected, abs=0.01)


def walk(accuracy):
    """The steps that the search tries when C = 10^(step / 7) has this accuracy on val."""
    best, tried = linear_probe.search(accuracy)
    return best, list(tried)


def test_the_search_visits_the_coarse_grid_and_halves_the_fine_one():
    best, tried = walk(lambda step: -abs(step - 9))
    assert [linear_probe.cost(step) for step in tried[:7]] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    # 14 is the best coarse step. The quarters of 0 … 28 are 7, 14, 21, of 0 … 13 3, 7, 10, of 7 … 13 8, 10, 12.
    assert tried[7:14] == [7, 21, 3, 10, 8, 12, 9]
    assert best == 9
    best, tried = walk(lambda step: -abs(step - 39))  # the grid ends at 1e6
    assert best == 39
    assert max(tried) == 42


def test_ties_go_to_the_smaller_cost():
    best, tried = walk(lambda step: 0.5)
    assert best == -42
    assert len(tried) == len(set(tried))
    # All of the plateau from step -14 on is equally good: the coarse winner stays.
    assert walk(lambda step: min(step, -14))[0] == -14


def test_a_fifth_of_each_class_is_held_out_always_the_same():
    labels = torch.tensor([3] * 10 + [7] * 4 + [1] * 21)[torch.randperm(35, generator=torch.Generator().manual_seed(1))]
    kept, held_out = linear_probe.hold_out(labels)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(35))
    assert torch.bincount(labels[held_out]).tolist() == [0, 4, 0, 2]
    members = (labels == 1).nonzero()[:, 0].tolist()
    random.Random(93).shuffle(members)
    assert set(members[:4]) == set(held_out[labels[held_out] == 1].tolist())
    with pytest.raises(UserError, match="no class has five training examples"):
        linear_probe.hold_out(torch.arange(30) % 10)


def test_without_validation_examples_it_holds_some_out():
    train, test = clusters(400), clusters(200, seed=1)
    kept, held_out = linear_probe.hold_out(train[1])
    split = [train[0][kept], train[1][kept], train[0][held_out], train[1][held_out]]
    assert linear_probe.linear_probe(*train, None, None, *test) == linear_probe.linear_probe(*split, *test)


def test_labels_need_not_be_dense_and_val_may_have_classes_of_its_own():
    names = torch.tensor([4, 11, 12, 40, 77])
    train, val, test = (clusters(count, seed=seed) for seed, count in enumerate((300, 200, 200)))
    few = train[1] != 3
    probe = linear_probe.fit_and_predict(train[0][few], names[train[1][few]], val[0], names[val[1]], test[0])
    assert set(probe.predictions.tolist()) == set(names.tolist())  # class 40 comes with the refit
    assert linear_probe.accuracy(probe.predictions, names[test[1]], False) > 0.7


def test_both_accuracies_have_laions_names_and_their_examples():
    """Plain accuracy is acc1 also where C is chosen by the mean over classes."""
    train, val, test = (clusters(count, seed=seed, spread=2.0) for seed, count in enumerate((300, 100, 250)))
    rare = torch.cat([(test[1] == 0).nonzero()[:3, 0], (test[1] > 0).nonzero()[:, 0]])
    test = test[0][rare], test[1][rare]
    places = torch.arange(len(test[1])) * 3
    for mean_per_class in (False, True):
        probe = linear_probe.fit_and_predict(*train, *val, test[0], mean_per_class=mean_per_class)
        found = linear_probe.evaluate(probe, test[1], places)
        assert found.metrics == {
            "acc1": pytest.approx(accuracy_score(test[1], probe.predictions)),
            "mean_per_class_recall": pytest.approx(balanced_accuracy_score(test[1], probe.predictions)),
            "C": probe.C,
        }
        assert found.metrics["acc1"] != pytest.approx(found.metrics["mean_per_class_recall"], abs=1e-3)
        assert linear_probe.linear_probe(*train, *val, *test, mean_per_class=mean_per_class) == found.metrics
        assert found.chance == {"acc1": 1 / 5, "mean_per_class_recall": 1 / 5}
        assert torch.equal(found.indices, places)


def test_inputs_stay_as_they_are():
    train, val, test = (clusters(100, seed=seed) for seed in range(3))
    before = [x.clone() for x in (*train, *val, *test)]
    linear_probe.linear_probe(*train, *val, *test)
    assert all(map(torch.equal, before, (*train, *val, *test)))


def test_wrong_input_is_refused():
    x, y = clusters(60)
    with pytest.raises(UserError, match="1 of 60 test features are not finite"):
        linear_probe.linear_probe(x, y, x, y, x.index_fill(0, torch.tensor(3), math.nan), y)
    with pytest.raises(UserError, match=r"val features must be \(N, 12\), one row an example, found \(60, 5\)"):
        linear_probe.linear_probe(x, y, x[:, :5], y, x, y)
    with pytest.raises(UserError, match="train has 60 features, but labels of shape"):
        linear_probe.linear_probe(x, y[1:], x, y, x, y)
    with pytest.raises(UserError, match="2 of 60 train examples have no label"):
        linear_probe.linear_probe(x, y.index_fill(0, torch.tensor([0, 9]), -1), x, y, x, y)
    with pytest.raises(UserError, match="all training labels are 2"):
        linear_probe.linear_probe(x, torch.full_like(y, 2), x, y, x, y)
    with pytest.raises(UserError, match="features and labels of the validation examples, or neither"):
        linear_probe.linear_probe(x, y, x, None, x, y)

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from diffclip.errors import UserError
from diffclip.evaluation.tasks import few_shot

PLAN = {"num_episodes": 200, "num_ways": 4, "num_shots": 3, "num_queries": 5, "seed": 3}


def data(classes=9, train=60, test=50, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = 0.5 * torch.randn(classes, dim, generator=generator) + 3
    sets = []
    for count in (train, test):
        labels = torch.randint(classes, (count * classes // 4,), generator=generator)
        sets += [means[labels] + torch.randn(len(labels), dim, generator=generator), labels]
    return sets


def loop(train_x, train_y, test_x, test_y, episodes):
    """Every episode by itself, in NumPy and float64, every distance written out."""
    train_x, test_x = train_x.double().numpy(), test_x.double().numpy()
    accuracies = []
    for support, query in zip(episodes.support.tolist(), episodes.query.tolist(), strict=True):
        centre = np.mean([train_x[i] for way in support for i in way], axis=0)
        prototypes = {}
        for way in support:
            unit = [(train_x[i] - centre) / np.linalg.norm(train_x[i] - centre) for i in way]
            prototypes[int(train_y[way[0]])] = np.mean(unit, axis=0)
        right = []
        for i in itertools.chain(*query):
            if i >= 0:
                q = (test_x[i] - centre) / np.linalg.norm(test_x[i] - centre)
                nearest = min(prototypes, key=lambda label: np.linalg.norm(q - prototypes[label]))
                right.append(nearest == test_y[i])
        accuracies.append(np.mean(right))
    return np.array(accuracies)


def accuracies(*sets, **plan):
    return few_shot.episode_hits(*sets, **plan)[1].flatten(1).nanmean(dim=1)


def test_equals_a_loop_over_the_same_episodes(monkeypatch):
    monkeypatch.setattr(few_shot, "BLOCK", 3000)  # many blocks, the last one shorter
    sets = data()
    found = accuracies(*sets, **PLAN)
    expected = loop(*sets, few_shot.draw(sets[1], sets[3], **PLAN))
    assert found.shape == (200,)
    assert found.numpy() == pytest.approx(expected)
    assert 0.5 < expected.mean() < 0.9  # neither all right nor chance
    assert few_shot.few_shot(*sets, **PLAN) == pytest.approx({"acc1": expected.mean(), "std": expected.std(ddof=1)})


def test_episodes_draw_distinct_examples_of_distinct_classes():
    train_y, test_y = data()[1::2]
    episodes = few_shot.draw(train_y, test_y, **PLAN)
    for support, query in zip(episodes.support, episodes.query, strict=True):
        ways = train_y[support]
        assert (ways == ways[:, :1]).all()
        assert (test_y[query] == ways[:, :1]).all()
        assert len(set(ways[:, 0].tolist())) == 4
        assert len(set(support.flatten().tolist())) == 12
        assert len(set(query.flatten().tolist())) == 20


def test_every_class_and_every_subset_is_equally_likely():
    train_y = torch.arange(5).repeat_interleave(5)
    episodes = few_shot.draw(train_y, train_y, num_episodes=20_000, num_ways=2, num_shots=3, num_queries=1, seed=0)
    pairs = Counter(frozenset(ways) for ways in train_y[episodes.support[:, :, 0]].tolist())
    assert len(pairs) == 10
    assert all(abs(count - 2000) < 200 for count in pairs.values())
    shots = Counter(frozenset(shots) for shots in (episodes.support % 5).flatten(0, 1).tolist())
    assert len(shots) == 10
    assert all(abs(count - 4000) < 300 for count in shots.values())


def test_a_class_with_few_test_examples_gives_all_of_them():
    train_x, train_y = torch.randn(40, 8), torch.arange(4).repeat_interleave(10)
    test_x, test_y = torch.randn(15, 8), torch.tensor([0] * 2 + [1] * 7 + [2] * 6)  # none of class 3
    plan = {**PLAN, "num_ways": 3, "num_queries": 6}
    episodes = few_shot.draw(train_y, test_y, **plan)
    assert set(train_y[episodes.support].flatten().tolist()) == {0, 1, 2}
    queries = Counter((episodes.query[0] >= 0).sum(dim=1).tolist())
    assert queries == {2: 1, 6: 2}
    expected = loop(train_x, train_y, test_x, test_y, episodes)
    assert accuracies(train_x, train_y, test_x, test_y, **plan).numpy() == pytest.approx(expected)


def test_the_seed_decides():
    sets = data()
    first = accuracies(*sets, **PLAN)
    assert torch.equal(first, accuracies(*sets, **PLAN))
    assert not torch.equal(first, accuracies(*sets, **{**PLAN, "seed": 4}))


def test_features_that_are_all_the_same_score_chance():
    _, train_y, _, test_y = data()
    same = torch.ones(1, 6)
    found = few_shot.few_shot(same.expand(len(train_y), 6), train_y, same.expand(len(test_y), 6), test_y, **PLAN)
    assert found == pytest.approx({"acc1": 1 / 4, "std": 0.0})


def test_examples_are_images_whose_mean_is_the_accuracy():
    sets = data()
    episodes, hits = few_shot.episode_hits(*sets, **PLAN)
    found = few_shot.evaluate(episodes, hits, sets[1], sets[3], torch.arange(len(sets[3])) * 2)
    assert found.metrics == pytest.approx(few_shot.few_shot(*sets, **PLAN))
    assert found.chance == {"acc1": 1 / 4}
    tested, trained = found.indices[found.indices >= 0], found.indices[found.indices < 0]
    assert set(tested.tolist()) == {2 * i for i in episodes.query.flatten().tolist() if i >= 0}
    assert set(trained.tolist()) == {-1 - i for i in episodes.support.flatten().tolist()}


@pytest.mark.parametrize("sizes", [(30, 30), (8, 150)])
def test_the_spread_over_images_is_that_of_other_images(sizes):
    """Of 40 sets of images, where test images matter, and where training images do; not that of the episodes."""
    plan = {"num_episodes": 3000, "num_ways": 4, "num_shots": 3, "num_queries": 5, "seed": 0}
    means = 0.9 * torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    scores, by_image, by_episode = [], [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        (x, y), (test_x, test_y) = (
            (means[y] + 1.2 * torch.randn(len(y), 8, generator=generator), y)
            for y in (torch.arange(6).repeat_interleave(size) for size in sizes)
        )
        episodes, hits = few_shot.episode_hits(x, y, test_x, test_y, **plan)
        values = few_shot.evaluate(episodes, hits, y, test_y).values["acc1"]
        scores.append(values.mean().item())
        by_image.append(values.std().item() / len(values) ** 0.5)
        by_episode.append(hits.flatten(1).mean(dim=1).std().item() / 3000**0.5)
    true = np.std(scores, ddof=1)
    assert 0.8 < np.mean(by_image) / true < 1.3
    assert np.mean(by_episode) < 0.5 * true


def test_wrong_input_is_refused():
    train_x, train_y, test_x, test_y = data()
    with pytest.raises(UserError, match="as many classes with 3 training examples and a test example, found 9 of 9"):
        few_shot.few_shot(train_x, train_y, test_x, test_y, **{**PLAN, "num_ways": 10})
    with pytest.raises(UserError, match="1 of 112 test features are not finite"):
        few_shot.few_shot(train_x, train_y, test_x.index_fill(0, torch.tensor(3), torch.nan), test_y, **PLAN)
    with pytest.raises(UserError, match=r"train features must be \(N, 16\) and its labels \(N,\), found .*\(4,\)"):
        few_shot.few_shot(train_x, train_y[:4], test_x, test_y, **PLAN)
    with pytest.raises(UserError, match="at least one of num_shots, found 0"):
        few_shot.few_shot(train_x, train_y, test_x, test_y, **{**PLAN, "num_shots": 0})

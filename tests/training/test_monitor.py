"""Entropy of attention, and what is warned of once a layer."""

import logging
import math

import pytest
import torch

from diffclip.training.monitor import Monitor, attention_entropy


def test_entropy_equals_the_sum_written_out():
    maps = torch.rand(2, 3, 5, 5, dtype=torch.float64).softmax(-1)
    total = sum(-p * math.log(p) for p in maps.flatten().tolist())
    assert attention_entropy(maps, causal=False) == pytest.approx(total / (2 * 3 * 5 * math.log(5)), rel=1e-9)


def test_uniform_maps_have_entropy_one_and_single_tokens_none():
    uniform = torch.full((1, 2, 6, 6), 1 / 6)
    causal = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    assert attention_entropy(uniform, causal=False) == pytest.approx(1.0)
    assert attention_entropy(causal.expand(1, 2, 6, 6), causal=True) == pytest.approx(1.0)
    assert attention_entropy(torch.eye(6).expand(1, 2, 6, 6), causal=False) == 0.0
    assert attention_entropy(torch.ones(1, 1, 1, 1), causal=True) == 1.0


def test_each_layer_is_warned_of_once(caplog):
    monitor = Monitor()
    with caplog.at_level(logging.WARNING):
        monitor.lambdas(10, {"visual": [0.8, 1.6], "text": [-0.1, 0.5]})
        monitor.lambdas(20, {"visual": [0.8, 1.7], "text": [0.2, float("nan")]})
        monitor.entropies(20, {"visual": [0.9, 0.01]})
        monitor.entropies(30, {"visual": [0.9, 0.01]})
    text = [record.getMessage() for record in caplog.records]
    assert len(text) == 4
    assert "step 10: λ of visual layer 1 is 1.600" in text[0]
    assert "text layer 0 is -0.100" in text[1]
    assert "text layer 1 is nan" in text[2]
    assert "visual layer 1 has collapsed" in text[3]

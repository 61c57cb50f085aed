"""Which parameters decay, and the learning rate of every step."""

import math

import pytest
import torch

from diffclip.config import Optimizer
from diffclip.models.clip import create_model
from diffclip.training.optimizer import adamw, learning_rate

SMALL = {
    "vision_width": 32,
    "vision_heads": 2,
    "vision_depth": 1,
    "text_width": 32,
    "text_heads": 2,
    "text_depth": 1,
}


def test_matrices_decay_and_nothing_else_does():
    model = create_model("diffclip_vit_b16", image_size=32, **SMALL)
    decaying, kept = adamw(model, Optimizer()).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decaying["weight_decay"] == 0.5
    assert kept["weight_decay"] == 0.0
    of_decaying = {names[id(p)] for p in decaying["params"]}
    of_kept = {names[id(p)] for p in kept["params"]}
    assert of_decaying | of_kept == set(names.values())
    assert not of_decaying & of_kept
    assert all(any(word in name for name in of_kept) for word in ("lambda_q1", "bias", "norm", "logit_scale"))
    assert not any("lambda" in name or "bias" in name or "norm" in name for name in of_decaying)


def test_learning_rate_follows_the_recipe():
    config = Optimizer(lr=1.0, warmup_lr=0.1, final_lr=0.2)
    rates = [learning_rate(s, steps=110, warmup_steps=10, config=config) for s in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx((0.1 + 1.0) / 2)
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx((1.0 + 0.2) / 2)
    assert rates[110] == pytest.approx(0.2)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)


def test_cosine_agrees_with_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
    for step in range(50):
        ours = learning_rate(step, steps=50, warmup_steps=0, config=Optimizer())
        assert math.isclose(ours, schedule.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        schedule.step()

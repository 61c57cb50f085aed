"""Which parameters decay, and the learning rate of every step."""

import math
import sys

import pytest
import torch

from diffclip.config import Optimizer, validate
from diffclip.errors import UserError
from diffclip.models.clip import create_model
from diffclip.training import checkpoint
from diffclip.training.background import BackgroundCheckpoints
from diffclip.training.checkpoint import Keep
from diffclip.training.optimizer import learning_rate, make_optimizer, moment_bytes
from small_models import TOWERS

SMALL = TOWERS | {"vision_depth": 1, "vision_heads": 2, "text_depth": 1, "text_heads": 2}


def test_matrices_decay_and_nothing_else_does():
    model = create_model("diffclip_vit_b16", **SMALL)
    decaying, kept = make_optimizer(model, Optimizer()).param_groups
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


EIGHT = Optimizer(kind="adamw_8bit", lr=1e-2, weight_decay=0.1)


def small_model():
    torch.manual_seed(0)
    return create_model("diffclip_vit_b16", **SMALL | {"vision_width": 64, "vision_heads": 4})


def steps(model, optimizer, first, last):
    """Steps on gradients that are a function of the step; those of a matrix differ in size from row to row."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.grad *= torch.rand(len(parameter), 1, generator=generator)
        optimizer.step()


def test_moments_in_8_bits_step_nearly_as_those_in_32():
    start, whole, few = small_model(), small_model(), small_model()
    steps(whole, make_optimizer(whole, Optimizer(lr=1e-2, weight_decay=0.1)), 0, 15)
    optimizer = make_optimizer(few, EIGHT)
    steps(few, optimizer, 0, 15)
    in_8_bits = 0
    for (name, first), a, b in zip(start.named_parameters(), whole.parameters(), few.parameters(), strict=True):
        apart = ((a - b).norm() / (a - first).norm()).item()
        if optimizer.state[b]["state1"].dtype == torch.uint8:
            in_8_bits += 1
            assert 1e-6 < apart < 0.05, name
        else:
            assert apart < 1e-5, name  # small ones, and the token embedding
    assert in_8_bits == sum(p.numel() >= 4096 for p in start.parameters()) - 1 > 5


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "muon"])
def test_the_bytes_of_moments_are_those_that_are_there(kind):
    model, config = small_model(), Optimizer(kind=kind)
    optimizer = make_optimizer(model, config)
    steps(model, optimizer, 0, 1)
    held = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step" and not key.startswith("qmap")  # the values that 8 bits stand for, the same for all
    )
    assert moment_bytes(model, config) == held


@pytest.mark.parametrize("config", [EIGHT, Optimizer(kind="muon", lr=1e-2)], ids=["adamw_8bit", "muon"])
def test_moments_go_through_a_checkpoint_to_the_bit(tmp_path, config):
    model = small_model()
    optimizer = make_optimizer(model, config)
    steps(model, optimizer, 0, 3)
    with BackgroundCheckpoints(tmp_path, model.config, Keep()) as checkpoints:
        checkpoints.save(checkpoint.state_tensors(model, optimizer), {"step": 3})
    again = small_model()
    resumed = make_optimizer(again, config)
    assert checkpoint.restore(tmp_path, again, resumed) == {"step": 3}
    for one, its in ((model, optimizer), (again, resumed)):
        steps(one, its, 3, 6)
    old, new = checkpoint.state_tensors(model, optimizer), checkpoint.state_tensors(again, resumed)
    for group, tensors in old.items():
        assert tensors.keys() == new[group].keys()
        assert all(torch.equal(tensor, new[group][name]) for name, tensor in tensors.items())


def test_muon_turns_the_matrices_of_blocks_and_leaves_the_rest_to_adamw():
    """A matrix's step has the singular vectors of its gradient, and of its singular values what the quintic makes."""
    start, model, beside = small_model(), small_model(), small_model()
    config = Optimizer(kind="muon", lr=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:  # as the loop does
        group["lr"] = 2e-3
    steps(model, optimizer, 0, 1)
    steps(beside, make_optimizer(beside, Optimizer(lr=2e-3, weight_decay=0.1)), 0, 1)
    turned = 0
    for (name, first), new, other in zip(
        start.named_parameters(), model.parameters(), beside.parameters(), strict=True
    ):
        if not (".blocks." in name and first.ndim == 2):
            assert torch.equal(new, other), name
            continue
        turned += 1
        gradient, step = new.grad.double(), (new - first * (1 - 2e-3 * 0.1)).detach().double()
        left, values, right = torch.linalg.svd(gradient, full_matrices=False)  # the first momentum is a multiple of it
        inside = left.T @ step @ right.T / (-2e-3 * 0.2 * math.sqrt(max(first.shape)))
        values /= values.square().sum().sqrt()
        for _ in range(5):
            values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
        assert (inside - values.diag()).abs().max() < 2e-3, (
            name
        )  # the step of a float32 weight, divided by a small rate
    assert turned == 8
    assert not any("lambda" in name for name, p in start.named_parameters() if p.ndim == 2)


def test_muon_in_bfloat16_is_torchs_to_the_bit():
    ours, peers = small_model(), small_model()
    config = Optimizer(kind="muon", lr=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(ours, config, dtype=torch.bfloat16)
    named = [p for name, p in peers.named_parameters() if ".blocks." in name and p.ndim == 2]
    peer = torch.optim.Muon(named, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    steps(ours, optimizer, 0, 4)
    steps(peers, peer, 0, 4)
    of_peer = {id(p) for p in named}
    compared = [(a, b) for a, b in zip(ours.parameters(), peers.parameters(), strict=True) if id(b) in of_peer]
    assert len(compared) == 8
    assert all(torch.equal(a, b) for a, b in compared)


@pytest.mark.parametrize("attention", ["gated", "differential_v2", "differential_gated", "mdgsa"])
def test_muon_leaves_what_makes_lambda_to_adamw(attention):
    kinds = {"vision_attention": attention, "text_attention": attention}
    model = create_model("clip_vit_b16", **SMALL | kinds)
    groups = make_optimizer(model, Optimizer(kind="muon")).param_groups
    muon = [group for group in groups if "ns_steps" in group]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {group["momentum"] for group in muon} == {0.95}
    turned = {names[id(p)].rpartition(".blocks.0.")[2] for group in muon for p in group["params"]}
    assert {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"} <= turned
    assert not [name for name in turned if "lambda" in name or "gate" in name]


@pytest.mark.parametrize("kind", ["adamw_8bit", "muon"])
def test_what_needs_whole_matrices_refuses_shards(kind):
    with pytest.raises(UserError, match=rf'test: optimizer.kind = "{kind}" does not go with training.layout = "fsdp"'):
        validate({"optimizer": {"kind": kind}, "training": {"layout": "fsdp"}}, where="test")


def test_8_bits_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"needs the bitsandbytes library: pip install 'diffclip\[8bit\]'"):
        make_optimizer(small_model(), EIGHT)

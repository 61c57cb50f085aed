"""The MLP that keeps its hidden layer once, against timm's."""

import copy

import pytest
import timm.layers
import torch
from timm.layers.activations import QuickGELU
from torch import nn

from diffclip.models.mlp import Mlp


def pair(act, dtype=torch.float32):
    torch.manual_seed(0)
    ours = Mlp(6, 24, act_layer=act).to(dtype)
    theirs = timm.layers.Mlp(6, 24, act_layer=act).to(dtype)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    return ours, theirs


@pytest.mark.parametrize("act", [nn.GELU, QuickGELU])
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-6), (True, 1e-2)])
def test_has_the_numbers_and_gradients_of_timms(act, autocast, tolerance):
    x = torch.randn(2, 5, 6)
    results = []
    for mlp in pair(act):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = mlp(inputs)
        out.float().sin().sum().backward()
        results.append([out, inputs.grad, *(parameter.grad for parameter in mlp.parameters())])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_gradients_by_finite_differences():
    mlp, _ = pair(nn.GELU, torch.float64)
    parameters = [parameter.detach().requires_grad_() for parameter in mlp.parameters()]

    def run(x, *values):
        return torch.func.functional_call(mlp, dict(zip(dict(mlp.named_parameters()), values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True), *parameters))


def test_keeps_the_hidden_layer_once():
    kept = []
    for mlp in pair(nn.GELU):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.setdefault(t.data_ptr(), t.shape) and t, lambda t: t
        ):
            mlp(torch.randn(2, 5, 6))
        kept.append(sum(shape == (2, 5, 24) or shape == (10, 24) for shape in sizes.values()))
    assert kept == [1, 2]


def test_keeps_no_copy_of_its_weights_under_autocast():
    kept = []
    for mlp in pair(nn.GELU):
        seen = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.append(t) or t, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            mlp(torch.randn(2, 5, 6, requires_grad=True)).sum().backward()
        kept.append(sum(t.dtype == torch.bfloat16 and sorted(t.shape) == [6, 24] for t in seen))
    assert kept == [0, 2]


@pytest.mark.parametrize("frozen", [("fc1.weight",), ("fc1.weight", "fc1.bias"), ("fc2.weight", "fc2.bias"), ("x",)])
def test_what_needs_no_gradient_gets_none_and_the_others_theirs(frozen):
    results = []
    for mlp in pair(nn.GELU):
        inputs = torch.linspace(-2, 2, 60).view(2, 5, 6).requires_grad_("x" not in frozen)
        for name, parameter in mlp.named_parameters():
            parameter.requires_grad_(name not in frozen)
        mlp(inputs).sin().sum().backward()
        results.append([inputs.grad, *(parameter.grad for parameter in mlp.parameters())])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


def test_without_gradients_is_the_plain_one():
    ours, theirs = pair(nn.GELU)
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def hooked(mlp, seen):
    mlp.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    mlp.fc2.register_full_backward_hook(lambda *_: seen.append("fc2"))
    mlp.act.register_forward_pre_hook(lambda *_: seen.append("act"))


def test_hooks_fire_while_gradients_are_on():
    mlp, theirs = pair(nn.GELU)
    seen, expected = [], []
    hooked(mlp, seen)
    hooked(theirs, expected)
    for one in (mlp, theirs):
        one(torch.randn(2, 5, 6)).sum().backward()
    assert seen == expected == ["fc1", "act", "fc2"]


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_what_stands_in_for_a_matrix_is_called(name):
    mlp, theirs = pair(nn.GELU)
    for one in (mlp, theirs):  # a parametrisation: its weight is computed from another
        torch.nn.utils.parametrizations.weight_norm(getattr(one, name))
    x = torch.randn(2, 5, 6)
    assert torch.equal(mlp(x), theirs(x))
    layer = getattr(mlp, name)
    layer.forward = lambda given: nn.functional.linear(given, 0 * layer.weight, layer.bias)  # as accelerate does
    assert not torch.equal(mlp(x), theirs(x))


def test_a_hook_of_all_modules_fires():
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        mlp, _ = pair(nn.GELU)
        mlp(torch.randn(2, 5, 6))
    finally:
        hook.remove()
    assert mlp.fc1 in seen

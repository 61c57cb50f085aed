"""The one-pass RMSNorm of heads against its formula, number by number, and against torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffclip.models.attention import native as native_attention
from diffclip.models.attention.head_norm import _head_norm, head_norm

pytestmark = pytest.mark.usefixtures("two_threads")

WIDTH, EPS = 12, 1e-5


@pytest.fixture(params=["kernel", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native_attention, "available", lambda dtype: False)
    return request.param


def by_the_formula(x, weight):
    """y and, for gradients of y that are `coefficients`, dx and dw, one row at a time in Python's floats."""
    y, dx, dw = [], [], [0.0] * WIDTH
    for row, g in zip(x.tolist(), coefficients(x).tolist(), strict=True):
        square = sum(value * value for value in row) / WIDTH + EPS
        r = 1 / math.sqrt(square)
        y.append([value * r * w for value, w in zip(row, weight, strict=True)])
        inner = sum(a * w * value for a, w, value in zip(g, weight, row, strict=True))
        # dr/dx_j = −x_j r³ / width
        dx.append([a * w * r - inner * value * r**3 / WIDTH for a, w, value in zip(g, weight, row, strict=True)])
        for j in range(WIDTH):
            dw[j] += g[j] * row[j] * r
    return torch.tensor(y), torch.tensor(dx), torch.tensor(dw)


def coefficients(x):
    return torch.linspace(-1, 2, x.numel()).view_as(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_equals_the_formula(way, dtype, tolerance, rows, size):
    torch.manual_seed(0)
    x = (size * torch.randn(rows, WIDTH)).to(dtype).requires_grad_()
    weight = torch.rand(WIDTH).requires_grad_()
    y = head_norm(x, weight, EPS)
    assert y.dtype is dtype
    dx, dw = torch.autograd.grad(y, (x, weight), coefficients(x).to(dtype))
    expected = by_the_formula(x.detach().float(), weight.tolist())
    for found, exact in zip((y, dx, dw), expected, strict=True):
        assert (found.float() - exact).abs().max() <= tolerance * exact.abs().max()


def test_takes_views_and_other_dtypes(way):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, WIDTH).transpose(1, 2)
    weight = torch.rand(WIDTH)
    for dtype in (torch.float32, torch.float64, torch.float16):
        expected = F.rms_norm(x.to(dtype), (WIDTH,), weight.to(dtype), EPS)
        torch.testing.assert_close(head_norm(x.to(dtype), weight, EPS), expected)


def test_is_one_operator_to_the_compiler():
    if not native_attention.available(torch.float32):
        pytest.skip("no compiled kernel here")
    torch.library.opcheck(_head_norm, (torch.randn(5, WIDTH, requires_grad=True), torch.rand(WIDTH), EPS))

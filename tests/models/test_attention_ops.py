"""The operation against the paper's formula, written out with loops in float64."""

import math

import pytest
import torch

import diffclip
from diffclip.models.attention import fused as fused_attention
from diffclip.models.attention import native as native_attention
from diffclip.models.attention import ops as attention_ops
from diffclip.models.attention.choice import fastest
from diffclip.models.attention.forms import BACKENDS
from diffclip.models.attention.ops import differential_attention

pytestmark = pytest.mark.usefixtures("two_threads")

B, H, N, D = 2, 4, 5, 3


@pytest.fixture(params=["eager", "sdpa", "fused", "fused without its compiled kernel"])
def backend(request, monkeypatch):
    """Every backend that has gradients here. In float64 both fused ones are the same."""
    if request.param.endswith("kernel"):
        monkeypatch.setattr(native_attention, "available", lambda dtype: False)
    return request.param.split()[0]


def by_the_paper(q, k, v, lam, is_causal=False, allowed=None):
    """(softmax(q1 k1ᵀ/√D) − λ softmax(q2 k2ᵀ/√D)) v, one number at a time. allowed: (N, N) booleans."""
    batch, heads, length, width = q.shape
    output = torch.zeros_like(v)
    for b in range(batch):
        for pair in range(heads // 2):
            for i in range(length):
                keys = [j for j in range(length) if (j <= i or not is_causal) and (allowed is None or allowed[i][j])]
                for group, sign in ((0, 1.0), (1, -lam)):
                    head = 2 * pair + group
                    logits = [sum(q[b, head, i, c] * k[b, head, j, c] for c in range(width)) for j in keys]
                    exps = [(logit / math.sqrt(width)).exp() for logit in logits]
                    for j, e in zip(keys, exps, strict=True):
                        output[b, pair, i] = output[b, pair, i] + sign * (e / sum(exps)) * v[b, pair, j]
    return output


def inputs(dtype=torch.float64, b=B, h=H, n=N, d=D, lam=0.7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(b, h, n, d, generator=draw, dtype=torch.float64) for _ in range(2))
    v = torch.randn(b, h // 2, n, 2 * d, generator=draw, dtype=torch.float64)
    tensors = [t.to(dtype).requires_grad_() for t in (q, k, v)]
    lam_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    return [*tensors, torch.tensor(lam, dtype=lam_dtype, requires_grad=True)]


def with_gradients(function, arguments, **options):
    output = function(*arguments, **options)
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    return [output, *torch.autograd.grad((output.double() * weights).sum(), arguments)]


def relative_error(found, expected):
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0, 1.5])
def test_equals_the_paper(backend, is_causal, lam):
    arguments = inputs(lam=lam)
    expected = with_gradients(by_the_paper, arguments, is_causal=is_causal)
    found = with_gradients(differential_attention, arguments, is_causal=is_causal, backend=backend)
    for name, f, e in zip(("output", "q", "k", "v", "lam"), found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_precision(backend, dtype, tolerance, is_causal):
    rounded = inputs(dtype, b=4, h=6, n=65, d=32)
    exact = [t.detach().double().requires_grad_() for t in rounded]
    expected = with_gradients(differential_attention, exact, is_causal=is_causal, backend="eager")
    found = with_gradients(differential_attention, rounded, is_causal=is_causal, backend=backend)
    assert found[0].dtype == dtype
    for name, f, e in zip(("output", "q", "k", "v", "lam"), found, expected, strict=True):
        assert relative_error(f, e) < tolerance, name


def masks():
    allowed = torch.ones(N, N, dtype=torch.bool)
    allowed[0, 3:] = allowed[3, :2] = allowed[4, 1] = False
    added = torch.zeros(N, N, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    return {"bool": allowed, "float": added, "bool by head": allowed.expand(B, H // 2, N, N)}


@pytest.mark.parametrize("kind", masks())
def test_masks(backend, kind):
    arguments = inputs()
    expected = with_gradients(by_the_paper, arguments, allowed=masks()["bool"])
    found = with_gradients(differential_attention, arguments, attn_mask=masks()[kind], backend=backend)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-12)


def test_a_float_mask_is_added_to_the_logits(backend):
    q, k, v, lam = inputs()
    mask = torch.randn(N, N, dtype=torch.float64)
    a1, a2 = (((q[:, g::2] @ k[:, g::2].mT) / math.sqrt(D) + mask).softmax(-1) for g in (0, 1))
    found = differential_attention(q, k, v, lam, attn_mask=mask, backend=backend)
    torch.testing.assert_close(found, a1 @ v - lam * (a2 @ v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_that_sees_nothing_gets_zeros(backend, dtype, kind):
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[2] = False
    if kind == "float":
        mask = torch.zeros(N, N, dtype=dtype).masked_fill(~mask, float("-inf"))
    found = with_gradients(differential_attention, inputs(dtype), attn_mask=mask, backend=backend)
    assert all(t.isfinite().all() for t in found)
    assert (found[0][:, :, 2] == 0).all()
    assert (found[0][:, :, 3] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lam", [0.0, 1.0, 1.5])
def test_never_nan(backend, dtype, lam):
    for is_causal in (False, True):
        one_token = with_gradients(
            differential_attention, inputs(dtype, n=1, lam=lam), is_causal=is_causal, backend=backend
        )
        q, k, v, lam_tensor = inputs(dtype, lam=lam)
        equal_logits = [torch.zeros_like(q).requires_grad_(), k, v, lam_tensor]
        huge = [(q * 1e4).detach().requires_grad_(), (k * 1e4).detach().requires_grad_(), v, lam_tensor]
        for arguments in (equal_logits, huge):
            found = with_gradients(differential_attention, arguments, is_causal=is_causal, backend=backend)
            assert all(t.isfinite().all() for t in found)
        assert all(t.isfinite().all() for t in one_token)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_by_finite_differences(backend, is_causal):
    assert torch.autograd.gradcheck(
        lambda *a: differential_attention(*a, is_causal=is_causal, backend=backend), inputs(b=1, h=4, n=3, d=2)
    )


def test_lambda_is_not_rounded_to_the_inputs_precision(backend):
    """bfloat16 has 27 values in [0.75, 0.85]; λ moves between them, which a mean over many outputs shows."""
    q, k, v, _ = inputs(torch.bfloat16, b=8, h=8, n=65, d=32)
    lams = torch.tensor([0.8001, 0.8009])
    assert lams.bfloat16().unique().numel() == 1
    with torch.no_grad():
        low, high = (
            differential_attention(q, k, torch.ones_like(v), lam, backend=backend).double().mean() for lam in lams
        )
    assert (low - high).item() == pytest.approx(0.0008, rel=0.25)


def test_dropout_is_on_both_maps_and_keeps_the_mean(backend):
    q, k, v, lam = inputs(torch.float64, n=8)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [differential_attention(q, k, v, lam, dropout_p=0.3, backend=backend) for _ in range(200)]
        expected = differential_attention(q, k, v, lam)
    assert not torch.equal(drawn[0], drawn[1])
    assert relative_error(torch.stack(drawn).mean(0), expected) < 0.15
    assert torch.equal(differential_attention(q, k, v, lam * 0, dropout_p=1.0, backend=backend), v * 0)


def test_a_backend_that_cannot_says_so_once(caplog):
    attention_ops._say_once.cache_clear()
    arguments = inputs()
    for _ in range(2):
        differential_attention(*arguments, dropout_p=0.1, backend="fused")
        differential_attention(*arguments, attn_mask=masks()["bool"], backend="fused")
    assert [record.getMessage() for record in caplog.records] == [
        "backend fused has no dropout: eager is taken instead",
        "backend fused has no attn_mask: eager is taken instead",
    ]
    caplog.clear()
    differential_attention(*arguments, dropout_p=0.1)
    assert not caplog.records


def views(arguments):
    """The same numbers as a fused projection gives them: tokens first, parts of one tensor."""
    q, k, v = (t.detach() for t in arguments[:3])
    joined = torch.cat([t.transpose(1, 2).flatten(2) for t in (q, k, v)], -1)  # (B, N, 3C)
    parts = joined.chunk(3, -1)
    return [part.unflatten(-1, (t.shape[1], -1)).transpose(1, 2) for part, t in zip(parts, (q, k, v), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 4])
def test_accepts_views_and_plain_numbers(backend, dtype, width):
    arguments = inputs(dtype, d=width)
    expected = by_the_paper(*(t.double() for t in arguments[:3]), 0.7)
    found = diffclip.differential_attention(*views(arguments), 0.7, backend=backend)
    assert relative_error(found, expected) < {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 47, 48, 49, 97, 131])
def test_blocks_of_any_size(backend, dtype, is_causal, n, monkeypatch):
    """Several steps of queries, the last one odd, in few bytes of cache."""
    monkeypatch.setattr(native_attention, "MAP_BYTES", 0)
    monkeypatch.setattr(fused_attention, "MAP_BYTES", 2000)
    rounded = inputs(dtype, n=n, d=16)
    exact = [t.detach().double().requires_grad_() for t in rounded]
    expected = with_gradients(differential_attention, exact, is_causal=is_causal, backend="eager")
    found = with_gradients(differential_attention, rounded, is_causal=is_causal, backend=backend)
    for name, f, e in zip(("output", "q", "k", "v", "lam"), found, expected, strict=True):
        limit = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        assert (f.double() - e).abs().max() <= limit * max(e.abs().max(), 1e-3), name


def test_fewer_pairs_than_threads_and_a_gradient_that_is_one_number():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        arguments = inputs(torch.float32, b=1, h=2, n=200, d=8)
        exact = [t.detach().double().requires_grad_() for t in arguments]
        found, expected = (
            torch.autograd.grad(differential_attention(*a, backend=name).sum(), a)  # a gradient of stride 0
            for a, name in ((arguments, "fused"), (exact, "eager"))
        )
    finally:
        torch.set_num_threads(threads)
    for f, e in zip(found, expected, strict=True):
        assert (f.double() - e).abs().max() <= 1e-5 * max(1e-1, e.abs().max())


def test_the_sum_of_a_backward_pass_is_the_same_each_time():
    arguments = inputs(torch.bfloat16, b=8, h=8, n=65, d=32)
    once, again = (with_gradients(differential_attention, arguments, backend="fused") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("kind", ["none", "causal", *masks()])
def test_flex_has_the_same_output(kind):
    """Its code as it is, uncompiled: on a CPU it has no backward pass."""
    arguments = inputs()
    options = {"none": {}, "causal": {"is_causal": True}}.get(kind) or {"attn_mask": masks().get(kind)}
    with torch.no_grad():
        expected = differential_attention(*arguments, **options, backend="eager")
        found = differential_attention(*arguments, **options, backend="flex")
    torch.testing.assert_close(found, expected)
    with pytest.raises(diffclip.UserError, match="no backward pass on a CPU"):
        differential_attention(*arguments, backend="flex")


@pytest.mark.parametrize("kernel", [True, False])
def test_is_one_operator_to_the_compiler(kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(native_attention, "available", lambda dtype: False)
    arguments = inputs(torch.float32)
    torch.library.opcheck(fused_attention.fused_attention, (*arguments, True))
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(differential_attention, backend=keep, fullgraph=True)
    expected = differential_attention(*arguments, backend="fused")
    torch.testing.assert_close(compiled(*arguments, backend="fused"), expected)
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("fused_attention" in name for name in called) == 1
    assert not any("softmax" in name for name in called)


def test_autocast_lowers_q_k_v_but_neither_lambda_nor_the_subtraction(backend):
    q, k, v, lam = inputs(torch.float32, n=33, d=8)
    with torch.autocast("cpu", torch.bfloat16):
        found = differential_attention(q, k, v, lam, backend=backend)
    expected = differential_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), lam, backend=backend)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, expected)


def test_compiling_asks_nothing_that_older_torches_cannot_trace(monkeypatch):
    """torch 2.11 breaks the graph at torch.amp.is_autocast_available, and compiles anew until it gives up."""
    monkeypatch.setattr(torch.amp, "is_autocast_available", torch._dynamo.disable(lambda device: True))
    compiled = torch.compile(differential_attention, backend="eager", fullgraph=True)
    q, k, v, lam = inputs(torch.float32, n=33, d=8)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (call(q, k, v, lam, backend="sdpa") for call in (compiled, differential_attention))
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", [1, 5, 65, 197, 577, 5000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_table_has_a_backend_for_everything(tokens, dtype):
    assert fastest("differential", "cpu", dtype, tokens) in BACKENDS
    assert fastest("differential", "cuda", dtype, tokens) == "sdpa"
    assert fastest("standard", "cpu", dtype, tokens) in ("eager", "sdpa")


def test_float16_runs_everywhere(backend):
    rounded = inputs(torch.float16, n=33, d=8)
    expected = differential_attention(*(t.detach().double() for t in rounded[:3]), 0.7)
    assert relative_error(differential_attention(*rounded[:3], 0.7, backend=backend), expected) < 5e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :3], k[:, :3], v), "even, not 3"),
        (lambda q, k, v: (q, k[:, :, :4], v), r"\(2, 4, 4, 3\)"),
        (lambda q, k, v: (q, k, v[..., :3]), r"v \(2, 2, 5, 6\), not \(2, 2, 5, 3\)"),
        (lambda q, k, v: (q[0], k[0], v[0]), r"not \(4, 5, 3\)"),
    ],
)
def test_refuses_shapes_with_their_numbers(change, message):
    q, k, v, lam = inputs()
    with pytest.raises(diffclip.UserError, match=message):
        differential_attention(*change(q, k, v), lam)


def test_refuses_two_masks_and_unknown_backends():
    arguments = inputs()
    with pytest.raises(diffclip.UserError, match="both given"):
        differential_attention(*arguments, is_causal=True, attn_mask=torch.ones(N, N, dtype=torch.bool))
    with pytest.raises(diffclip.UserError, match="auto, eager, fused, sdpa, flex"):
        differential_attention(*arguments, backend="flash")

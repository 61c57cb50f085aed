"""(A1 − λA2)V and its gradients on a GPU, in Triton: no map in memory, no atomics, so the same bits every time.

Letters as in fused.py; BM queries and BN keys are taken at a time. Every program has one block of one pair of heads.
Softmaxes are base 2: scale2 = log₂e / √D. Forward: both maps' running maxima and sums (Milakov & Gimelshein 2018), two
accumulators, 12 N²D multiply-adds a pair. Backward: with Y = dO·Vᵀ and δi = rowsum(Y ∘ Ai), `backward_q` finds δ1, δ2,
dλ = −Σ δ2 and dQ in two passes over the keys (20 N²D), `backward_kv` the rest (16 N²D). rowsum(dO ∘ O), which a single
map would give δ by, is only δ1 − λδ2 here.
"""

import triton
import triton.language as tl


@triton.jit
def _load(base, rows, columns, stride, inside):
    """(rows, columns) of a matrix; zeros for rows that are not there."""
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _load_transposed(base, rows, columns, stride, inside):
    """The same as (columns, rows)."""
    return tl.load(base + rows[None, :] * stride + columns[:, None], mask=inside[None, :], other=0.0)


@triton.jit
def forward(
    Q, K, V, LAM, OUT, LSE,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, sob, soh, son,
    P, N, BLOCKS, scale2,
    CAUSAL: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BM rows of the result, and the base-2 logarithms of both softmaxes' sums, (B, H, N)."""
    start = tl.program_id(0) % BLOCKS * BM
    pair = tl.program_id(0) // BLOCKS
    rows = start + tl.arange(0, BM)
    b, p = (pair // P).to(tl.int64), pair % P
    d, dv = tl.arange(0, D), tl.arange(0, 2 * D)
    row_ok = rows < N
    lam = tl.load(LAM).to(tl.float32)
    q_base, k_base, v_base = Q + b * sqb + 2 * p * sqh, K + b * skb + 2 * p * skh, V + b * svb + p * svh
    q1, q2 = _load(q_base, rows, d, sqn, row_ok), _load(q_base + sqh, rows, d, sqn, row_ok)
    max1, max2 = tl.full([BM], float("-inf"), tl.float32), tl.full([BM], float("-inf"), tl.float32)
    sum1, sum2 = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    out1, out2 = tl.zeros([BM, 2 * D], tl.float32), tl.zeros([BM, 2 * D], tl.float32)
    end = N
    if CAUSAL:
        end = tl.minimum(N, start + BM)
    for first in range(0, end, BN):
        columns = first + tl.arange(0, BN)
        column_ok = columns < N
        seen = column_ok[None, :]
        if CAUSAL:
            seen = seen & (columns[None, :] <= rows[:, None])
        v = _load(v_base, columns, dv, svn, column_ok)
        k = _load_transposed(k_base, columns, d, skn, column_ok)
        s = tl.where(seen, tl.dot(q1, k, input_precision=PRECISION) * scale2, float("-inf"))
        new = tl.maximum(max1, tl.max(s, 1))
        e, kept = tl.exp2(s - new[:, None]), tl.exp2(max1 - new)
        sum1, max1 = sum1 * kept + tl.sum(e, 1), new
        out1 = out1 * kept[:, None] + tl.dot(e.to(v.dtype), v, input_precision=PRECISION)
        k = _load_transposed(k_base + skh, columns, d, skn, column_ok)
        s = tl.where(seen, tl.dot(q2, k, input_precision=PRECISION) * scale2, float("-inf"))
        new = tl.maximum(max2, tl.max(s, 1))
        e, kept = tl.exp2(s - new[:, None]), tl.exp2(max2 - new)
        sum2, max2 = sum2 * kept + tl.sum(e, 1), new
        out2 = out2 * kept[:, None] + tl.dot(e.to(v.dtype), v, input_precision=PRECISION)
    lse = LSE + (b * 2 * P + 2 * p) * N + rows
    tl.store(lse, max1 + tl.log2(sum1), mask=row_ok)
    tl.store(lse + N, max2 + tl.log2(sum2), mask=row_ok)
    out = out1 * (1.0 / sum1)[:, None] - out2 * (lam / sum2)[:, None]
    at = OUT + b * sob + p * soh + rows[:, None] * son + dv[None, :]
    tl.store(at, out.to(OUT.dtype.element_ty), mask=row_ok[:, None])


@triton.jit
def backward_q(
    Q, K, V, LAM, DOUT, LSE, DELTA, DQ, DLAM,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, sob, soh, son, sdb, sdh, sdn,
    P, N, BLOCKS, scale2, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BM rows of dQ1 and dQ2, their δ (B, H, N), and this block's part of dλ, (B · P, BLOCKS)."""
    start = tl.program_id(0) % BLOCKS * BM
    pair = tl.program_id(0) // BLOCKS
    rows = start + tl.arange(0, BM)
    b, p = (pair // P).to(tl.int64), pair % P
    d, dv = tl.arange(0, D), tl.arange(0, 2 * D)
    row_ok = rows < N
    lam = tl.load(LAM).to(tl.float32)
    q_base, k_base, v_base = Q + b * sqb + 2 * p * sqh, K + b * skb + 2 * p * skh, V + b * svb + p * svh
    place = (b * 2 * P + 2 * p) * N + rows
    lse1 = tl.load(LSE + place, mask=row_ok, other=0.0)
    lse2 = tl.load(LSE + place + N, mask=row_ok, other=0.0)
    dout = _load(DOUT + b * sob + p * soh, rows, dv, son, row_ok)
    q1, q2 = _load(q_base, rows, d, sqn, row_ok), _load(q_base + sqh, rows, d, sqn, row_ok)
    end = N
    if CAUSAL:
        end = tl.minimum(N, start + BM)
    delta1, delta2 = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for first in range(0, end, BN):
        columns = first + tl.arange(0, BN)
        column_ok = columns < N
        seen = column_ok[None, :]
        if CAUSAL:
            seen = seen & (columns[None, :] <= rows[:, None])
        v = _load_transposed(v_base, columns, dv, svn, column_ok)
        y = tl.where(seen, tl.dot(dout, v, input_precision=PRECISION), 0.0)
        k = _load_transposed(k_base, columns, d, skn, column_ok)
        s = tl.dot(q1, k, input_precision=PRECISION) * scale2
        delta1 += tl.sum(tl.where(seen, tl.exp2(s - lse1[:, None]), 0.0) * y, 1)
        k = _load_transposed(k_base + skh, columns, d, skn, column_ok)
        s = tl.dot(q2, k, input_precision=PRECISION) * scale2
        delta2 += tl.sum(tl.where(seen, tl.exp2(s - lse2[:, None]), 0.0) * y, 1)
    dq1, dq2 = tl.zeros([BM, D], tl.float32), tl.zeros([BM, D], tl.float32)
    for first in range(0, end, BN):
        columns = first + tl.arange(0, BN)
        column_ok = columns < N
        seen = column_ok[None, :]
        if CAUSAL:
            seen = seen & (columns[None, :] <= rows[:, None])
        y = tl.dot(dout, _load_transposed(v_base, columns, dv, svn, column_ok), input_precision=PRECISION)
        k = _load(k_base, columns, d, skn, column_ok)
        s = tl.dot(q1, tl.trans(k), input_precision=PRECISION) * scale2
        a = tl.where(seen, tl.exp2(s - lse1[:, None]), 0.0)
        dq1 += tl.dot((a * (y - delta1[:, None])).to(k.dtype), k, input_precision=PRECISION)
        k = _load(k_base + skh, columns, d, skn, column_ok)
        s = tl.dot(q2, tl.trans(k), input_precision=PRECISION) * scale2
        a = tl.where(seen, tl.exp2(s - lse2[:, None]), 0.0)
        dq2 += tl.dot((a * (y - delta2[:, None])).to(k.dtype), k, input_precision=PRECISION)
    tl.store(DELTA + place, delta1, mask=row_ok)
    tl.store(DELTA + place + N, delta2, mask=row_ok)
    tl.store(DLAM + tl.program_id(0), -tl.sum(tl.where(row_ok, delta2, 0.0), 0))
    at = DQ + b * sdb + 2 * p * sdh + rows[:, None] * sdn + d[None, :]
    tl.store(at, (dq1 * scale).to(DQ.dtype.element_ty), mask=row_ok[:, None])
    tl.store(at + sdh, (dq2 * (-lam * scale)).to(DQ.dtype.element_ty), mask=row_ok[:, None])


@triton.jit
def backward_kv(
    Q, K, V, LAM, DOUT, LSE, DELTA, DK, DV,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, sob, soh, son, sdb, sdh, sdn, swb, swh, swn,
    P, N, BLOCKS, scale2, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BN rows of dK1, dK2 and dV."""
    first = tl.program_id(0) % BLOCKS * BN
    pair = tl.program_id(0) // BLOCKS
    columns = first + tl.arange(0, BN)
    b, p = (pair // P).to(tl.int64), pair % P
    d, dv = tl.arange(0, D), tl.arange(0, 2 * D)
    column_ok = columns < N
    lam = tl.load(LAM).to(tl.float32)
    q_base, k_base, out_base = Q + b * sqb + 2 * p * sqh, K + b * skb + 2 * p * skh, DOUT + b * sob + p * soh
    k1, k2 = _load(k_base, columns, d, skn, column_ok), _load(k_base + skh, columns, d, skn, column_ok)
    v = _load(V + b * svb + p * svh, columns, dv, svn, column_ok)
    dk1, dk2 = tl.zeros([BN, D], tl.float32), tl.zeros([BN, D], tl.float32)
    dvalues = tl.zeros([BN, 2 * D], tl.float32)
    begin = 0
    if CAUSAL:
        begin = first // BM * BM
    for start in range(begin, N, BM):
        rows = start + tl.arange(0, BM)
        row_ok = rows < N
        place = (b * 2 * P + 2 * p) * N + rows
        lse1 = tl.load(LSE + place, mask=row_ok, other=float("inf"))  # a row that is not there adds nothing
        lse2 = tl.load(LSE + place + N, mask=row_ok, other=float("inf"))
        delta1 = tl.load(DELTA + place, mask=row_ok, other=0.0)
        delta2 = tl.load(DELTA + place + N, mask=row_ok, other=0.0)
        dout = _load(out_base, rows, dv, son, row_ok)
        q1, q2 = _load(q_base, rows, d, sqn, row_ok), _load(q_base + sqh, rows, d, sqn, row_ok)
        y = tl.dot(v, tl.trans(dout), input_precision=PRECISION)  # (BN, BM)
        a1 = tl.exp2(tl.dot(k1, tl.trans(q1), input_precision=PRECISION) * scale2 - lse1[None, :])
        a2 = tl.exp2(tl.dot(k2, tl.trans(q2), input_precision=PRECISION) * scale2 - lse2[None, :])
        if CAUSAL:
            a1 = tl.where(columns[:, None] <= rows[None, :], a1, 0.0)
            a2 = tl.where(columns[:, None] <= rows[None, :], a2, 0.0)
        dvalues += tl.dot((a1 - lam * a2).to(dout.dtype), dout, input_precision=PRECISION)
        dk1 += tl.dot((a1 * (y - delta1[None, :])).to(q1.dtype), q1, input_precision=PRECISION)
        dk2 += tl.dot((a2 * (y - delta2[None, :])).to(q2.dtype), q2, input_precision=PRECISION)
    at = DK + b * sdb + 2 * p * sdh + columns[:, None] * sdn + d[None, :]
    tl.store(at, (dk1 * scale).to(DK.dtype.element_ty), mask=column_ok[:, None])
    tl.store(at + sdh, (dk2 * (-lam * scale)).to(DK.dtype.element_ty), mask=column_ok[:, None])
    at = DV + b * swb + p * swh + columns[:, None] * swn + dv[None, :]
    tl.store(at, dvalues.to(DV.dtype.element_ty), mask=column_ok[:, None])

"""Which form `auto` takes: by what the processor can do, from a table of measurements."""

import platform

import pytest
import torch

from diffclip.models.attention import calibration, choice, native
from diffclip.models.attention.choice import fastest

CAN = {
    "AMX": {"avx2", "avx512_f", "avx512_bf16", "amx_bf16"},
    "AVX-512 BF16": {"avx2", "avx512_f", "avx512_bf16"},
    "AVX-512": {"avx2", "avx512_f"},
    "AVX2": {"avx2"},
}


@pytest.fixture
def on(monkeypatch):
    """A function that makes this processor one of another kind, with the compiled kernel or without."""

    def become(name, kernel=True):
        able = {key: key in CAN.get(name, ()) for keys in CAN.values() for key in keys}
        level = "AVX512" if able["avx512_f"] else "AVX2" if able["avx2"] else "DEFAULT"
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
        monkeypatch.setattr(platform, "machine", lambda: {"NEON": "aarch64"}.get(name, "x86_64"))
        monkeypatch.setattr(native, "available", lambda dtype: kernel)
        choice._measured.cache_clear()

    yield become
    choice._measured.cache_clear()


@pytest.mark.parametrize("name", [*CAN, "NEON", "x86_64"])
def test_a_processor_is_named_by_what_it_can_do(on, name):
    on(name)
    assert choice.processor() == name


def test_pytorch_held_to_avx2_is_a_processor_with_avx2(on, monkeypatch):
    on("AVX-512 BF16")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choice.processor() == "AVX2"


def test_processors_have_rows_of_their_own(on):
    """At 197 tokens in bfloat16 the kernel is the best form on Zen 4, and twice as slow as eager with AMX."""
    on("AVX-512 BF16")
    assert fastest("differential", "cpu", torch.bfloat16, 197) == "fused"
    assert fastest("standard", "cpu", torch.float32, 32) == "eager"
    on("AMX")
    assert fastest("differential", "cpu", torch.bfloat16, 197) == "eager"
    assert fastest("differential", "cpu", torch.bfloat16, 2305) == "fused"
    assert fastest("differential", "cpu", torch.float32, 197) == "fused"
    assert fastest("standard", "cpu", torch.float32, 32) == "sdpa"
    on("AMX", kernel=False)
    assert fastest("differential", "cpu", torch.float32, 197) == "eager"
    on("AVX2")
    assert fastest("differential", "cpu", torch.float32, 197) == "fused"
    on("AVX2", kernel=False)  # in bfloat16 there is none: products of eager run without vectors there
    assert fastest("differential", "cpu", torch.bfloat16, 197) == "sdpa"


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """An empty cache folder, and the list of what is timed: then the form whose name is first in the alphabet wins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def times(kind, dtype, tokens, images):
        calls.append((kind, dtype, tokens))
        return {"eager": 1.0, "sdpa": 2.0} if tokens < 500 else {"eager": 2.0, "sdpa": 1.0}

    monkeypatch.setattr(calibration, "_times", times)
    calibration.row.cache_clear()
    yield calls
    calibration.row.cache_clear()


@pytest.mark.parametrize("name", ["AVX-512", "NEON", "riscv64"])
def test_what_was_not_measured_is_timed_once_a_machine(on, name, timed, caplog, tmp_path):
    on(name)
    for _ in range(3):
        assert fastest("differential", "cpu", torch.float32, 197) == "eager"
        assert fastest("differential", "cpu", torch.float32, 577) == "sdpa"
    assert timed == [("differential", torch.float32, tokens) for tokens in (32, 65, 197, 577)]
    assert caplog.text.count(f"not known of a processor with {choice.processor()}: it was timed in") == 1
    (kept,) = (tmp_path / "diffclip" / "attention").iterdir()
    caplog.clear()
    calibration.row.cache_clear()  # another process
    assert fastest("differential", "cpu", torch.float32, 197) == "eager"
    assert len(timed) == 4
    assert not caplog.text
    for content in ('{"32": "eager"}', "[1]", "", '{"32": "x", "65": "x", "197": "x", "577": "x"}'):
        kept.write_text(content)  # what is damaged is timed again
        calibration.row.cache_clear()
        timed.clear()
        assert fastest("differential", "cpu", torch.float32, 197) == "eager"
        assert len(timed) == 4
    on(name, kernel=False)
    assert fastest("differential", "cpu", torch.float32, 197) == "eager"
    assert len(timed) == 8


def test_bfloat16_that_no_processor_multiplies_is_not_timed(on, timed):
    on("NEON", kernel=False)
    assert fastest("differential", "cpu", torch.bfloat16, 197) == "sdpa"
    assert not timed


def test_what_cannot_be_kept_is_timed_all_the_same(on, timed, caplog, monkeypatch, tmp_path):
    (tmp_path / "diffclip").write_text("in the way")
    on("NEON")
    assert fastest("standard", "cpu", torch.float32, 197) == "eager"
    assert "it cannot be kept in" in caplog.text


def test_timing_leaves_the_users_state_alone(monkeypatch):
    monkeypatch.setattr(calibration, "SHAPES", {32: 1, 65: 1})
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu"):
        for kind, forms in (("differential", {"eager", "fused", "sdpa"}), ("standard", {"eager", "sdpa"})):
            times = calibration._times(kind, torch.float32, 65, 1)
            assert times.keys() == forms
            assert min(times.values()) > 0
    assert torch.equal(before, torch.get_rng_state())


def test_fused_is_taken_where_it_costs_little():
    assert calibration.choose({"eager": 1.0, "sdpa": 2.0, "fused": 1.04}) == "fused"
    assert calibration.choose({"eager": 1.0, "sdpa": 2.0, "fused": 1.06}) == "eager"


def test_what_a_run_began_with_is_taken_inside():
    usual = fastest("differential", "cpu", torch.float32, 197)
    with choice.taking("cpu", {"differential": {"float32": {"65": "sdpa", "577": "eager"}}}):
        assert fastest("differential", "cpu", torch.float32, 32) == "sdpa"
        assert fastest("differential", "cpu", torch.float32, 577) == "eager"
        assert fastest("standard", "cpu", torch.float32, 32) in ("eager", "sdpa")
    assert fastest("differential", "cpu", torch.float32, 197) == usual

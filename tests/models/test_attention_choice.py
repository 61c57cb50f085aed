"""Which form `auto` takes: by what the processor can do, from a table of measurements."""

import logging
import platform

import pytest
import torch

from diffclip.models.attention import choice, native
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


@pytest.mark.parametrize("name", ["AVX-512", "NEON", "riscv64"])
def test_what_was_not_measured_is_said_once(on, name, caplog):
    on(name)
    for tokens in (32, 197, 2305):
        found = fastest("differential", "cpu", torch.bfloat16, tokens)
        with caplog.at_level(logging.CRITICAL):
            on("AVX-512 BF16")
            assert found == fastest("differential", "cpu", torch.bfloat16, tokens)
            on(name)
    caplog.clear()
    for _ in range(3):
        fastest("standard", "cpu", torch.float32, 197)
    assert caplog.text.count("benchmarks/attention.py --write-table") == 1
    assert f"not measured on a processor with {choice.processor()}" in caplog.text


def test_what_a_run_began_with_is_taken_inside():
    usual = fastest("differential", "cpu", torch.float32, 197)
    with choice.taking("cpu", {"differential": {"float32": {"65": "sdpa", "577": "eager"}}}):
        assert fastest("differential", "cpu", torch.float32, 32) == "sdpa"
        assert fastest("differential", "cpu", torch.float32, 577) == "eager"
        assert fastest("standard", "cpu", torch.float32, 32) in ("eager", "sdpa")
    assert fastest("differential", "cpu", torch.float32, 197) == usual

"""Broken and malicious files end in one line or a counted skip: nothing is run, written elsewhere, or waited for."""

import tarfile
from pathlib import Path

import pytest
import run
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from make import cases

from diffclip.config import load_recipe
from diffclip.data.sources import open_source
from diffclip.errors import UserError


def test_the_corpus_is_large():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    refused = [case for case in cases() if case.expect.startswith(("error", "skipped"))]
    assert len(names) >= 1000
    assert len(refused) >= 700


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="limits and peaks of memory as Linux has them")
def test_every_file_ends_in_one_line_or_a_counted_skip(capsys, monkeypatch):
    """Each in a process that is forked from this one, which has read all modules already."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    status = run.main([])
    told = capsys.readouterr().out
    assert status == 0, told[-8000:]
    assert told.startswith(f"{len(cases())} cases, 0 not as expected")


BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["seed", "model", "preset", "overrides", "data", "train", "path", "scale", "loss", "optimizer", "lr", "betas",
     "training", "epochs", "batch_size", "precision", "evaluation", "name", "tasks"]
)  # fmt: skip
tables = st.dictionaries(
    keys, values | st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=4), max_size=5
)


def without_null(value):
    """TOML has none."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value if item is not None] if isinstance(value, list) else value


def ends_in_one_line(read):
    try:
        read()
    except UserError as error:
        return str(error).isprintable() and len(str(error)) < 2100
    return True


@BOUNDED
@given(tables)
def test_any_table_is_a_recipe_or_one_line(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(tomli_w.dumps(without_null(table)), encoding="utf-8", errors="replace")
    assert ends_in_one_line(lambda: load_recipe(path))


@BOUNDED
@given(st.binary(max_size=200))
def test_any_bytes_are_a_recipe_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(content)
    assert ends_in_one_line(lambda: load_recipe(path))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The bytes of a good shard of two examples, one with a long name."""
    folder = tmp_path_factory.mktemp("shard")
    for name in ("a.jpg", "a.txt", "b" * 120 + ".jpg", "b" * 120 + ".txt"):
        (folder / name).write_bytes(name.encode())
    path = folder / "good.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.glob("?*.[jt]*")):
            archive.add(file, file.name)
    return path.read_bytes()[:8192]


@settings(BOUNDED, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 8191), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6), st.booleans()
)
def test_any_change_of_a_shard_is_read_or_one_line(tmp_path_factory, shard, changes, mend):
    data = bytearray(shard)
    for at, noise in changes:
        data[at : at + len(noise)] = noise
    if mend:  # checksums that are right again let the other fields lie
        for at in range(0, len(data) - 511, 512):
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(data)

    def read():
        source = open_source(str(path))
        for index in range(len(source)):
            assert len(source[index].image) <= len(data)

    assert ends_in_one_line(read)

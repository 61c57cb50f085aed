"""`diffclip embed`: features in order, in three forms, gone on with after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import diffclip
from diffclip import cli
from diffclip.data.scenes import SceneSource
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import image_features, text_features
from diffclip.use import embed
from diffclip.use.encoder import open_encoder
from diffclip.use.pictures import Pictures, open_pictures
from use_pictures import encoded, picture


@pytest.fixture
def album(tmp_path):
    (tmp_path / "album").mkdir()
    for number in range(7):
        (tmp_path / "album" / f"{number}.png").write_bytes(encoded(picture(number)))
    (tmp_path / "album" / "3b.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path / "album"


def test_every_form_has_the_same_features_in_the_order_of_the_files(model, album, tmp_path, capsys):
    for name in ("a.npz", "a.parquet", "a.safetensors"):
        with pytest.raises(SystemExit, match=r"3b\.jpg: not an image"):
            cli.main(["embed", model, str(album), "--out", str(tmp_path / name)])
    assert capsys.readouterr().out.count("7 features written") == 3
    with np.load(tmp_path / "a.npz") as file:
        ids, features, about = file["ids"].tolist(), file["features"], json.loads(str(file["about"]))
    assert ids == [str(album / f"{number}.png") for number in range(7)]
    net = diffclip.load(model)[0]
    assert about["fingerprint"] == diffclip.models.weights.store.fingerprint(net)
    expected = image_features(net, open_pictures([str(album)])).features
    np.testing.assert_allclose(features, expected, atol=1e-6)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(np.stack(table["feature"].to_numpy()), features)
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert json.loads(file.get_tensor("ids").tobytes()) == ids
        np.testing.assert_array_equal(file.get_tensor("features"), features)
    assert not list(tmp_path.glob(".*"))


def test_texts_and_float16(model, tmp_path):
    (tmp_path / "texts.txt").write_text("a dog\n\na cat\n")
    out = tmp_path / "texts.npz"
    cli.main(["embed", model, "--texts", "a dog", "--texts-file", f"{tmp_path}/texts.txt", "--half", "--out", str(out)])
    with np.load(out) as file:
        assert file["ids"].tolist() == ["a dog", "a dog", "a cat"]
        assert file["features"].dtype == np.float16
        net, _, tokenizer = diffclip.load(model)
        np.testing.assert_allclose(
            file["features"], text_features(net, tokenizer, ["a dog", "a dog", "a cat"]), atol=1e-3
        )


def test_a_stopped_run_goes_on_and_gives_the_same_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 8)
    pictures, encoder = Pictures([SceneSource("test", 16, 40)]), open_encoder(model)
    embed.embed_pictures(encoder, pictures, tmp_path / "whole.npz")

    def stop(done):
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed.embed_pictures(encoder, pictures, tmp_path / "a.npz", on_progress=stop)
    parts = tmp_path / ".a.npz.parts"
    assert len(list(parts.glob("*.safetensors"))) == 2
    (parts / f"{0:012d}.safetensors").write_bytes(b"damaged")
    encoded_again = []
    pixels = type(encoder).pixels
    monkeypatch.setattr(type(encoder), "pixels", lambda self, image: (encoded_again.append(1), pixels(self, image))[1])
    embed.embed_pictures(encoder, pictures, tmp_path / "a.npz")
    assert len(encoded_again) == 8 + 24
    assert not parts.exists()
    with np.load(tmp_path / "a.npz") as ours, np.load(tmp_path / "whole.npz") as whole:
        np.testing.assert_array_equal(ours["features"], whole["features"])
        np.testing.assert_array_equal(ours["ids"], whole["ids"])


def test_parts_of_another_model_are_not_taken(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(embed, "PART", 8)
    pictures, encoder = Pictures([SceneSource("test", 16, 16)]), open_encoder(model)

    def stop(done):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed.embed_pictures(encoder, pictures, tmp_path / "a.npz", on_progress=stop)
    encoder.fingerprint = "another"
    embed.embed_pictures(encoder, pictures, tmp_path / "a.npz")
    assert "encoded anew" in caplog.text


def test_a_killed_command_goes_on(model, tmp_path):
    out = tmp_path / "a.npz"
    program = (
        "import diffclip.use.embed as e; e.PART = 64; from diffclip.cli import main; import sys; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "embed", model, "scenes:test?size=64&length=4000", "--out", str(out)]
    parts, process = tmp_path / ".a.npz.parts", subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(list(parts.glob("*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    assert kept
    assert not out.exists()
    encoder, source = open_encoder(model), open_pictures(["scenes:test?size=64&length=4000"])
    before = embed.PART
    embed.PART = 64

    def look(done):
        if done >= 64 * len(kept):
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            embed.embed_pictures(encoder, source, out, on_progress=look)
    finally:
        embed.PART = before
    assert all((parts / name).stat().st_mtime_ns == changed for name, changed in kept.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.npz"], "give pictures or --texts"),
        (["scenes:test", "--texts", "a", "--out", "a.npz"], "and not both"),
        (["--texts", "a", "--out", "a.csv"], "must end in one of .npz"),
        (["--texts", "a", "--dtype", "int8", "--out", "a.npz"], "of the image tower"),
        (["--texts", "a", "--out", "/proc/none/a.npz"], "cannot write"),
        (["README.md", "--out", "a.npz"], "no picture could be read"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(model, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("text")
    with pytest.raises(SystemExit) as end:
        cli.main(["embed", model, *arguments])
    assert message in str(end.value.code)


def test_two_processes_do_not_write_one_file(model, album, tmp_path):
    program = (
        "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); sys.stdin.read()"
    )
    (tmp_path / ".a.npz.parts").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / ".a.npz.parts" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="by another process"):
        embed.embed_pictures(open_encoder(model), open_pictures([str(album)]), tmp_path / "a.npz")
    holder.communicate()

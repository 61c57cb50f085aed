"""Finding files of weights and reading them without running what is in them."""

import argparse
import collections
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import diffclip
from diffclip.models.weights.files import locate, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)}


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return shutil.copyfile, (__file__, str(self.path))


class Harmless:
    pass


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_training_arguments(tmp_path, legacy):
    arguments = argparse.Namespace(lr=1e-3, betas=(0.9, 0.98), inner=argparse.Namespace(name="x"), none=None)
    checkpoint = {"state_dict": {f"module.{n}": t for n, t in TENSORS.items()}, "args": arguments, "epoch": 3}
    torch.save(checkpoint, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    tensors, config = read_tensors(tmp_path / "c.pt")
    assert equal(tensors, TENSORS)
    assert config is None
    torch.save(collections.OrderedDict(TENSORS), tmp_path / "plain.pt")
    assert equal(read_tensors(tmp_path / "plain.pt")[0], TENSORS)


@pytest.mark.parametrize("place", ["beside", "in arguments", "as state_dict", "whole file"])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_but_tensors_is_built(tmp_path, place, legacy):
    evil = Evil(tmp_path / "created")
    content = {
        "beside": {"state_dict": TENSORS, "extra": evil},
        "in arguments": {"state_dict": TENSORS, "args": argparse.Namespace(inner=[evil])},
        "as state_dict": {"state_dict": evil},
        "whole file": evil,
    }[place]
    path = tmp_path / "evil.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(diffclip.UserError, match=r"evil.pt asks for shutil.copyfile; .*safetensors") as caught:
        diffclip.load(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "created").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "created").exists()  # the file does what it says, to those who let it


@pytest.mark.parametrize(
    ("extra", "name"),
    [(np.float64(1), "scalar"), (np.zeros(2), "_reconstruct"), (Harmless(), "Harmless"), (print, "print")],
)
def test_what_a_file_asks_for_is_named(tmp_path, extra, name):
    path = tmp_path / "c.pt"
    torch.save({"state_dict": TENSORS, "extra": extra}, path)
    with pytest.raises(diffclip.UserError, match=rf"c.pt asks for \S*{name}; only tensors"):
        read_tensors(path)


def test_namespace_is_allowed_only_while_reading(tmp_path):
    torch.save({"state_dict": TENSORS, "args": argparse.Namespace()}, tmp_path / "c.pt")
    read_tensors(tmp_path / "c.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "c.pt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pt", b""),
        ("text.pt", b"not weights at all"),
        ("zip.pt", b"PK\x03\x04 half a zip"),
        ("pickle.bin", pickle.dumps({"a": 1}, 2)),
        ("plain.pth", pickle.dumps([1, 2], 2)),
        ("half.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
        ("empty.safetensors", b""),
    ],
)
def test_files_that_are_no_weights_are_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(diffclip.UserError, match=name) as caught:
        diffclip.load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": [1]}, torch.zeros(2)])
def test_contents_that_are_no_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(diffclip.UserError, match=r"c\.pt holds"):
        read_tensors(tmp_path / "c.pt")


def test_a_cut_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": TENSORS}, tmp_path / "c.pt")
    content = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(diffclip.UserError, match="cannot be read as PyTorch weights"):
        read_tensors(tmp_path / "c.pt")


def write(directory, *names):
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(b"")


def test_which_file_of_a_directory(tmp_path):
    write(tmp_path / "ours", "model.safetensors", "config.json", "optimizer.safetensors", "last.pt")
    assert locate(tmp_path / "ours").name == "model.safetensors"
    write(tmp_path / "laion", "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert locate(tmp_path / "laion").name == "open_clip_model.safetensors"
    write(tmp_path / "released", "checkpoint_best.pt", "README.md")
    assert locate(str(tmp_path / "released")).name == "checkpoint_best.pt"
    write(tmp_path / "two", "a.pt", "b.pth")
    with pytest.raises(diffclip.UserError, match=r"name one of a\.pt, b\.pth"):
        locate(tmp_path / "two")
    write(tmp_path / "none", "README.md", "metrics.jsonl")
    with pytest.raises(diffclip.UserError, match=r"holds no model.safetensors .* but README.md, metrics.jsonl"):
        locate(tmp_path / "none")
    with pytest.raises(diffclip.UserError, match="neither a file nor a directory, nor a hub id"):
        locate(tmp_path / "absent" / "model.safetensors")


class Hub:
    """Stands in for huggingface_hub.snapshot_download: `files` is what the repository holds."""

    def __init__(self, directory, files):
        self.directory, self.files, self.fetched = directory, files, []
        directory.mkdir()

    def __call__(self, name, allow_patterns):
        from fnmatch import fnmatch

        for file, write_file in self.files.items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns) and file not in self.fetched:
                write_file(self.directory / file)
                self.fetched.append(file)
        return str(self.directory)


def test_the_hub_gives_safetensors_before_pickles(tmp_path, monkeypatch):
    files = {
        "model.safetensors": lambda path: save_file(TENSORS, path),
        "checkpoint_best.pt": lambda path: torch.save(TENSORS, path),
        "README.md": lambda path: path.write_text("x"),
    }
    hub = Hub(tmp_path / "cache", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert locate("owner/name").name == "model.safetensors"
    assert hub.fetched == ["model.safetensors"]

    del files["model.safetensors"]
    hub = Hub(tmp_path / "cache2", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert equal(read_tensors(locate("owner/name"))[0], TENSORS)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(tmp_path / "cache3", {}))
    with pytest.raises(diffclip.UserError, match=r"owner/name on the Hugging Face hub holds no \.safetensors"):
        locate("owner/name")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (lambda: torch.ones(1).expand(1000, 1000), "larger than what is stored"),
        (lambda: torch.ones(1999).as_strided((1000, 1000), (1, 1)), "larger than what is stored"),
        (lambda: torch.ones(2, 2).to_sparse(), "sparse"),
        (lambda: torch.ones(2, 2).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(2, device="meta"), "without numbers"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_not_all_there_are_refused(tmp_path, tensor, kind):
    torch.save({"a": torch.ones(2), "b": tensor()}, tmp_path / "a.pt")
    with pytest.raises(diffclip.UserError, match=rf"a\.pt: the tensor b is {kind}"):
        read_tensors(tmp_path / "a.pt")


def test_one_storage_under_many_names_is_refused_and_tied_weights_are_not(tmp_path):
    whole = torch.ones(1000)
    torch.save({"a": whole, "b": whole.view(10, 100), "c": torch.ones(3)[1:]}, tmp_path / "a.pt")
    assert len(read_tensors(tmp_path / "a.pt")[0]) == 3
    torch.save({str(i): whole for i in range(9)}, tmp_path / "a.pt")
    with pytest.raises(diffclip.UserError, match="its tensors have 36,000 bytes, of which 4,000 are stored"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("hf:owner/name", ("owner/name", None)),
        ("hf:runs/clp@refs/pr/1", ("runs/clp", "refs/pr/1")),
        *((source, None) for source in ("runs/clp", "runs/clip@main", "gone/clp", "./clp", "../clp", "~/c", "clp")),
        *(
            (source, None)
            for source in ("runs/x/clp", "hf:name", "hf:a/b/c", "hf:../b", "hf:-a/b", "a/b@-c", "hf:a/b@")
        ),
    ],
)
def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path, monkeypatch, caplog, source, asked):
    """Whoever has that name there would supply the model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "clip").mkdir(parents=True)
    (tmp_path / "gone").symlink_to("nowhere")  # a disk that is not mounted
    seen = []

    def download(name, allow_patterns, revision=None):
        seen.append((name, revision))
        save_file(TENSORS, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if asked:
        assert locate(source) == tmp_path / "model.safetensors"
        assert seen == [asked]
        assert ("the Hugging Face hub is asked" in caplog.text) == (not source.startswith("hf:"))
        return
    with pytest.raises(diffclip.UserError, match="is neither a file nor a directory") as caught:
        locate(source)
    assert seen == []
    said = "runs is, and it has clip; if you mean the Hugging Face hub, write hf:runs/clp"
    assert source != "runs/clp" or said in str(caught.value)


def test_without_the_hub_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def offline(*args, **options):
        raise ConnectionError("Cannot reach https://huggingface.co: offline mode is enabled.\nTo disable it, …")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(diffclip.UserError, match=r"^runs/gone is no file .*: Cannot reach .* enabled\.$"):
        diffclip.load("runs/gone")


def test_weights_by_open_clips_name(tmp_path, monkeypatch):
    """open_clip's own table says where they lie."""
    import open_clip

    monkeypatch.chdir(tmp_path)
    seen = []

    def download(name, allow_patterns, **_):
        seen.append(name)
        for file in ("open_clip_model.safetensors", "pytorch_model.bin"):
            save_file(TENSORS, tmp_path / file)
        assert "pytorch_model.bin" in allow_patterns or "ViTamin" not in name
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("ViT-B-32/laion2b_s34b_b79k").name == "open_clip_model.safetensors"
    assert locate("ViTamin-S/datacomp1b").name == "pytorch_model.bin"  # the table names the file
    assert seen == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "jienengchen/ViTamin-S"]
    assert all(open_clip.get_pretrained_cfg(*of)["hf_hub"].count("/") == 2 for of in open_clip.list_pretrained())
    with pytest.raises(
        diffclip.UserError, match=r"no weights 'laion2b' of ViT-B-32; did you mean .*hf:ViT-B-32/laion2b"
    ):
        locate("ViT-B-32/laion2b")
    locate("hf:ViT-B-32/laion2b")
    (tmp_path / "ViT-B-32").mkdir()
    with pytest.raises(diffclip.UserError, match="neither a file nor a directory"):
        locate("ViT-B-32/laion2b_s34b_b79k")  # a folder of that name is here
    assert seen[2:] == ["ViT-B-32/laion2b"]

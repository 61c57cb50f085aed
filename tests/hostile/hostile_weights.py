"""Files of weights: pickles that run something, archives that inflate, safetensors with false headers."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hostile_case import Case, file, written
from safetensors.torch import save as to_safetensors

from diffclip.models.clip import create_model

SMALL = {
    "embed_dim": 4,
    "image_size": 8,
    "patch_size": 4,
    "vision_width": 8,
    "vision_depth": 1,
    "vision_heads": 2,
    "text_width": 8,
    "text_depth": 1,
    "text_heads": 2,
    "context_length": 4,
    "vocab_size": 16,
    "vision_stem": "patches",
}


@cache
def good() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the configuration of a small model."""
    model = create_model("diffclip_vit_quickstart", **SMALL)
    return dict(model.state_dict()), dict(vars(model.config))


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def pickled(content: Callable[[Path], Any], legacy: bool = False) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        torch.save(content(folder), folder / "c.pt", _use_new_zipfile_serialization=not legacy)
        return folder / "c.pt"

    return build


def opcodes(data: bytes) -> Callable[[Path], Path]:
    """torch's archive with this pickle inside."""

    def build(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "c.pt", "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
        return folder / "c.pt"

    return build


def archive_of(names: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "c.pt", "w", compression) as archive:
            for name, content in names.items():
                archive.writestr(name, content)
        return folder / "c.pt"

    return build


def lying_storage(folder: Path) -> Path:
    """A tensor of 10¹² numbers over a storage of six."""
    saved = io.BytesIO()
    torch.save({"state_dict": {"visual.cls_token": torch.arange(6.0)}}, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(folder / "c.pt", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"K\x06\x85", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85")
            other.writestr(name, content)
    return folder / "c.pt"


def altered(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], Path]:
    """A good run directory whose tensors were changed."""

    def build(folder: Path) -> Path:
        tensors, config = good()
        tensors = dict(tensors)
        change(tensors)
        written(folder, "config.json", json.dumps({"model": config}))
        written(folder, "model.safetensors", to_safetensors(tensors))
        return folder

    return build


def configured(**changes: Any) -> Callable[[Path], Path]:
    """A good model's weights beside a configuration that says something else."""

    def build(folder: Path) -> Path:
        tensors, config = good()
        written(folder, "config.json", json.dumps({"model": config | changes}))
        written(folder, "model.safetensors", to_safetensors(tensors))
        return folder

    return build


def with_config(content: bytes | str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        written(folder, "config.json", content)
        written(folder, "model.safetensors", to_safetensors(good()[0]))
        return folder

    return build


def with_metadata(config: str) -> Callable[[Path], Path]:
    return lambda folder: written(folder, "m.safetensors", to_safetensors(good()[0], {"config": config}))


def headed(head: bytes | dict[str, Any], body: bytes = bytes(64), length: int | None = None) -> Callable[[Path], Path]:
    """A safetensors file with this header, which says that it is `length` bytes long."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return file("m.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + body)


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def foreign(changes: dict[str, Any]) -> Callable[[Path], Path]:
    """Names and shapes as the released DiffCLIP's, with changes; None takes a tensor away."""

    def build(folder: Path) -> Path:
        w = 128
        names = {
            "visual.cls_token": (1, 1, w),
            "visual.pos_embed": (1, 5, w),
            "visual.patch_embed.proj.weight": (w, 3, 4, 4),
            "visual.blocks.0.mlp.fc1.weight": (2 * w, w),
            "image_projection": (w, 8),
            "text_projection": (w, 8),
            "positional_embedding": (4, w),
            "token_embedding.weight": (16, w),
            "transformer.resblocks.0.mlp.c_fc.weight": (2 * w, w),
            "logit_scale": (),
        }
        tensors = {name: torch.zeros(shape) for name, shape in (names | changes).items() if shape is not None}
        return written(folder, "m.safetensors", to_safetensors(tensors))

    return build


def beside_open_clip(content: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        written(folder, "open_clip_config.json", content)
        return foreign({})(folder)

    return build


def changed(make: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Good tensors, one of which is another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse and quantised tensors are announced
        return good()[0] | {"visual.cls_token": make()}


def shared() -> dict[str, torch.Tensor]:
    tensor = torch.ones(100_000)
    return good()[0] | {f"layer.{i}": tensor for i in range(1000)}


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "c.pt")
    return folder / "c.pt"


def touch(folder: Path) -> str:
    return f"touch {folder.parent / 'outside'}"


NOT_TENSORS = r"error: .*(asks for|is no pickle of tensors|cannot be read as PyTorch weights|holds )"
NOT_READABLE = r"error: .*is no readable safetensors file"
NOT_FITTING = (
    r"error: .*(does not fit its configuration|input should be |give |choose |there is no model setting|heads|"
    r"is not a multiple|number)"
)
BIG = "[" * 200_000
PROTO = b"\x80\x02"

# Tensors that a few bytes stand for, or that hold no numbers of their own.
NOT_THERE: dict[str, Callable[[], torch.Tensor]] = {
    "strides of 0": lambda: torch.ones(1).expand(8000, 8000),
    "strides of 0 in one dimension": lambda: torch.ones(1, 8).expand(10**6, 8),
    "rows that overlap": lambda: torch.ones(16_000).as_strided((8000, 8000), (1, 1)),
    "a sparse layout": lambda: torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.long), [], (10**9, 10**9)),
    "a compressed layout": lambda: torch.ones(4, 4).to_sparse_csr(),
    "numbers in the imaginary": lambda: torch.ones(4, 4, dtype=torch.complex64),
    "no numbers": lambda: torch.ones(10**6, 10**6, device="meta"),
    "quantised numbers": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
    "quantised channels": lambda: torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8
    ),
}

CASES = [
    Case(f"weights/{name}", "model", expect, build)
    for name, expect, build in [
        *(
            (
                f"tensor of {what}{' (old form)' * legacy}",
                r"error: ",
                pickled(lambda _, make=make: changed(make), legacy),
            )
            for what, make in NOT_THERE.items()
            for legacy in (False, True)
        ),
        ("one storage under a thousand names", r"error: .*of which .* are stored", pickled(lambda _: shared())),
        *(
            (f"pickle that calls {name}{' (old form)' * legacy}", r"error: .*asks for", pickled(make, legacy))
            for legacy in (False, True)
            for name, make in (
                ("os.system", lambda f: {"state_dict": Call(os.system, touch(f))}),
                ("eval", lambda f: Call(eval, f"__import__('os').system({touch(f)!r})")),
                ("exec", lambda f: {"state_dict": {}, "args": [Call(exec, "raise SystemExit")]}),
                ("open", lambda f: {"x": Call(open, str(f.parent / "outside"), "w")}),
                ("getattr", lambda f: Call(getattr, {}, "pop")),
            )
        ),
        ("pickle that loads a pickle", r"error: .*asks for", pickled(lambda f: Call(pickle.loads, pickle.dumps(1)))),
        ("pickle that imports", r"error: .*asks for", pickled(lambda f: Call(__import__, "antigravity"))),
        ("bare pickle", NOT_TENSORS, file("c.pt", pickle.dumps(Call(os.system, "true")))),
        ("pickle cut short", NOT_TENSORS, file("c.pt", pickle.dumps(list(range(500)))[:100])),
        ("pickle of a list", r"error: .*holds a list", pickled(lambda f: [1, 2])),
        ("pickle of numbers", r"error: .*no dictionary of tensors", pickled(lambda f: {"state_dict": {"a": 1}})),
        ("pickle of one tensor", r"error: .*holds a Tensor", pickled(lambda f: torch.zeros(1))),
        ("pickle nested deep", NOT_TENSORS, opcodes(PROTO + b"(" * 100_000 + b".")),
        ("pickle of lists in lists", NOT_TENSORS, opcodes(PROTO + b"]" * 50_000 + b"a" * 49_999 + b".")),
        ("pickle of nothing", NOT_TENSORS, opcodes(b"")),
        ("pickle that only stops", NOT_TENSORS, opcodes(b".")),
        ("pickle of noise", NOT_TENSORS, opcodes(bytes(range(256)))),
        ("pickle text of 4 GB", NOT_TENSORS, opcodes(PROTO + b"X" + struct.pack("<I", 2**32 - 1) + b"a.")),
        ("pickle bytes of 2⁶³", NOT_TENSORS, opcodes(b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"a.")),
        ("pickle number of 2³¹ bytes", NOT_TENSORS, opcodes(PROTO + b"\x8b" + struct.pack("<I", 2**31 - 1) + b"1.")),
        ("pickle with extensions", NOT_TENSORS, opcodes(PROTO + b"\x82\x01.")),
        ("pickle of protocol 255", NOT_TENSORS, opcodes(b"\x80\xff.")),
        ("pickle memo of 2³²", NOT_TENSORS, opcodes(PROTO + b"Nr" + struct.pack("<I", 2**32 - 1) + b"j\0\0\0\1.")),
        ("pickle with a persistent id", NOT_TENSORS, opcodes(PROTO + b"X\1\0\0\0aQ.")),
        (
            "pickle that doubles itself",
            NOT_TENSORS,
            opcodes(PROTO + b"](" + b"h\0" * 9 + b"e" + b"q\0h\0h\0\x86" * 60 + b"."),
        ),
        ("tensor larger than its storage", NOT_TENSORS, lying_storage),
        ("archive that inflates to 3 GB", NOT_TENSORS, lambda folder: inflating(folder)),
        ("archive with ..", NOT_TENSORS, archive_of({"../../outside": b"x", "archive/data.pkl": b"."})),
        ("archive of nothing", NOT_TENSORS, archive_of({})),
        ("archive of something else", NOT_TENSORS, archive_of({"a.txt": b"x"})),
        (
            "TorchScript archive",
            NOT_TENSORS,
            archive_of(
                {
                    "archive/constants.pkl": b"\x80\x02).",
                    "archive/data.pkl": b"\x80\x02).",
                    "archive/code/__torch__.py": b"import os",
                }
            ),
        ),
        ("archive cut short", NOT_TENSORS, file("c.pt", b"PK\x03\x04" + bytes(100))),
        ("tar archive", NOT_TENSORS, file("c.pt", b"sys_info" + bytes(600))),
        ("HTML", NOT_TENSORS, file("c.pt", "<html>login</html>")),
        ("empty", NOT_TENSORS, file("c.pt", b"")),
        ("zeros", NOT_TENSORS, file("c.pt", bytes(4096))),
        ("pipe", r"error: ", fifo),
        (
            "names that are numbers",
            r"error: ",
            pickled(lambda f: {"state_dict": {7: torch.zeros(1), None: torch.zeros(1)}}),
        ),
        (
            "sparse tensor out of range",
            r"error: ",
            pickled(lambda f: {"state_dict": {"visual.cls_token": torch.zeros(2, 2).to_sparse()}}),
        ),
        ("safetensors: empty", NOT_READABLE, file("m.safetensors", b"")),
        ("safetensors: seven bytes", NOT_READABLE, file("m.safetensors", bytes(7))),
        ("safetensors: zeros", NOT_READABLE, file("m.safetensors", bytes(64))),
        ("safetensors: a pickle", NOT_READABLE, file("m.safetensors", pickle.dumps(Call(os.system, "true")))),
        *(
            (f"safetensors: header {what}", NOT_READABLE, build)
            for what, build in (
                ("of 2⁶⁴ bytes", headed(b"{}", length=2**64 - 1)),
                ("of 2⁶³ bytes", headed(b"{}", length=2**63)),
                ("longer than the file", headed(b"{}", length=5000)),
                ("of 0 bytes", headed(b"")),
                ("that is no JSON", headed(b"{nothing")),
                ("that is a list", headed(b"[]")),
                ("nested deep", headed(BIG.encode())),
                ("that is no UTF-8", headed(b'{"\xff": 1}')),
                ("of null bytes", headed(bytes(40))),
                ("with offsets beyond the end", headed(tensor([16], [0, 6400]))),
                ("with negative offsets", headed(tensor([16], [-64, 0]))),
                ("with offsets backwards", headed(tensor([16], [64, 0]))),
                ("with a shape that does not fit", headed(tensor([17], [0, 64]))),
                ("with a shape that overflows", headed(tensor([2**40, 2**40], [0, 64]))),
                ("with a negative shape", headed(tensor([-16], [0, 64]))),
                ("with a shape of text", headed(tensor(["16"], [0, 64]))),  # type: ignore[list-item]
                ("with an unknown dtype", headed(tensor([16], [0, 64], "F7"))),
                (
                    "with overlapping tensors",
                    headed({"a": tensor([16], [0, 64])["t"], "b": tensor([8], [32, 64])["t"]}),
                ),
                ("with a hole", headed(tensor([8], [32, 64]))),
                ("with metadata of numbers", headed({"__metadata__": {"config": 7}, **tensor([16], [0, 64])})),
            )
        ),
        ("safetensors: no tensors", r"error: .*neither", headed(b"{}", body=b"")),
        (
            "safetensors: ten thousand empty tensors",
            r"error: .*neither",
            headed({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)}, b""),
        ),
        ("tensor missing", NOT_FITTING, altered(lambda t: t.pop("image_projection"))),
        ("tensor unknown", NOT_FITTING, altered(lambda t: t.update({"\x1b[2J": torch.zeros(1)}))),
        ("tensor of another shape", NOT_FITTING, altered(lambda t: t.update(image_projection=torch.zeros(1)))),
        (
            "five thousand unknown tensors",
            NOT_FITTING,
            altered(lambda t: t.update({f"x{i}": torch.zeros(1) for i in range(5000)})),
        ),
        *(
            (f"config {what}", r"error: ", with_config(content))
            for what, content in (
                ("of noise", bytes(range(128, 256))),
                ("nested deep", BIG),
                ("a list", "[]"),
                ("cut short", '{"model": {'),
                ("of 5000 digits", '{"model": ' + "9" * 5000 + "}"),
                ("empty", ""),
                ("without a model", "{}"),
                ("whose model is a list", '{"model": [1]}'),
            )
        ),
        *(
            (f"inner config {what}", r"error: ", with_metadata(content))
            for what, content in (
                ("no JSON", "{nothing"),
                ("a list", "[1]"),
                ("a number", "7"),
                ("nested deep", BIG),
                ("null", "null"),
                ("of unknown keys", '{"__class__": 1}'),
                ("empty", ""),
            )
        ),
        *(
            (
                f"config with {' '.join(changes)} = {str([*changes.values()])[1:-1]:.20}",
                NOT_FITTING,
                configured(**changes),
            )
            for changes in (
                {"vision_width": -8},
                {"vision_width": 0},
                {"vision_width": "8"},
                {"vision_width": None},
                {"vision_width": 8.0},
                {"vision_width": True},
                {"vision_width": [8]},
                {"vision_width": 10**30},
                {"vision_depth": 10**9},
                {"text_depth": 10**9},
                {"vocab_size": 10**18},
                {"context_length": 10**15},
                {"image_size": 4 * 10**9},
                {"patch_size": 0},
                {"vision_heads": 3},
                {"vision_heads": 10**9},
                {"mlp_ratio": float("nan")},
                {"mlp_ratio": float("inf")},
                {"mlp_ratio": 1e300},
                {"mlp_ratio": "4"},
                {"lambda_init": float("nan")},
                {"lambda_init": "0.8"},
                {"lambda_init": None},
                {"patch_dropout": [0]},
                {"patch_dropout": float("nan")},
                {"image_mean": "abc"},
                {"image_mean": 7},
                {"image_mean": [None] * 3},
                {"image_std": [0, 0, 0]},
                {"image_std": [float("nan")] * 3},
                {"resize": "\x1b[2J"},
                {"resize": ["squash"]},
                {"init": {"a": 1}},
                {"vision_attention": None},
                {"vision_norm_eps": "x"},
                {"lambda_depth_rate": "x", "lambda_schedule": "depth"},
                {"vision_pre_norm": "no"},
                {"unheard_of": 1},
            )
        ),
        *(
            (f"released names: {what}", r"error: ", foreign(changes))
            for what, changes in (
                ("block number of a billion", {"visual.blocks.1000000000.norm1.weight": (1,)}),
                ("block number of 5000 digits", {f"visual.blocks.{'9' * 5000}.norm1.weight": (1,)}),
                ("no positions", {"visual.pos_embed": (1, 0, 128)}),
                ("patches of 0", {"visual.patch_embed.proj.weight": (128, 3, 0, 0)}),
                ("width 0", {"visual.pos_embed": (1, 5, 0)}),
                ("λ of no width", {"visual.blocks.0.attn.lambda_q1": (0,)}),
                ("λ of two dimensions", {"visual.blocks.0.attn.lambda_q1": (2, 2)}),
                ("λ without any", {"visual.blocks.0.attn.lambda_q1": ()}),
                ("no text blocks", {"transformer.resblocks.0.mlp.c_fc.weight": None}),
                ("no projection", {"image_projection": None}),
                ("open_clip's token without the rest", {"visual.cls_token": None, "visual.class_embedding": (128,)}),
                (
                    "open_clip's positions of no dimension",
                    {"visual.class_embedding": (128,), "visual.pos_embed": None, "visual.positional_embedding": ()},
                ),
            )
        ),
        *(
            (f"open_clip's configuration {what}", r"error: ", beside_open_clip(content))
            for what, content in (
                ("of noise", "\x00\x01"),
                ("a list", "[]"),
                ("of lists", '{"model_cfg": [], "preprocess_cfg": []}'),
                ("with a mean of text", '{"preprocess_cfg": {"mean": "abc"}}'),
                ("nested deep", BIG),
            )
        ),
        ("directory of nothing", r"error: .*holds no", lambda folder: folder),
        (
            "directory of several",
            r"error: .*several",
            lambda folder: [written(folder, n, b"") for n in ("a.pt", "b.pt")] and folder,
        ),
        ("name with a null byte", r"error: ", lambda folder: f"{folder}/a\0b.pt"),
        ("name of 10,000 letters", r"error: ", lambda folder: f"{folder}/{'a' * 10_000}.pt"),
    ]
]


def inflating(folder: Path) -> Path:
    """A pickle of 3 GB of zeros, deflated to three megabytes."""
    with zipfile.ZipFile(folder / "c.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as inner:
            for _ in range(3 << 10 >> 4):
                inner.write(bytes(1 << 24))
        archive.writestr("archive/version", "3\n")
    return folder / "c.pt"

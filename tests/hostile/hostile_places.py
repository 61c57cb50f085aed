"""What is no file where one is read; tables that name files elsewhere; paths that would start a program; masks."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_images
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_case import Case, encoded, written
from hostile_recipes import MODEL, RESULT

JPEG = encoded()
ENDS = r"(error: |skipped: |warned: |read)"  # at once, whatever comes of it
UNUSABLE = r"(error: .*cannot read the mask|read|skipped)"
OUTSIDE = r"error: .*lies outside of .*--allow-outside"

KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
    "a socket": lambda path: bound(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a file without end": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name may not be long
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def verified(*path: str) -> Callable[[Path], list[Any]]:
    return lambda folder: ["data", "verify", folder.joinpath(*path), "--workers", "1"]


def reported(folder: Path) -> list[Any]:
    return ["report", folder / "run", "--out", "report"]


def trained(folder: Path) -> list[Any]:
    return ["train", written(folder, "r.toml", MODEL + f'[data.train]\npath = "{folder}/d"\n'), "--dry-run"]


def swept(folder: Path) -> list[Any]:
    return ["sweep", folder / "s.toml", "--dry-run"]


def asked(folder: Path) -> list[Any]:
    return ["pope", folder / "answers_random.jsonl", "--labels", folder, "--out", "scores"]


def attended(folder: Path) -> list[Any]:
    return ["attend", folder / "run", folder / "x.jpg", "--text", "a star", "--out", "a.png"]


CLASSES = {"d/cat/a.jpg": JPEG, "d/dog/b.jpg": JPEG}
TABLE = {"d/x.jpg": JPEG, "d/a.csv": "filepath,caption\nx.jpg,a\n"}
RUN = {"run/results.jsonl": json.dumps(RESULT) + "\n", "run/metrics.jsonl": '{"step": 1, "loss": 1.0}\n'}
SWEEP = """
seeds = [0]
variant = [{ name = "A" }]
group = [{ name = "g", task = "zero_shot", data = ["s"] }]
data = { s = "scenes" }
"""
QUESTION = '{"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}\n'
ANSWER = '{"question_id": 1, "text": "yes"}\n'
POPE = {f"coco_pope_{name}.json": QUESTION for name in ("random", "popular", "adversarial")}
# Which file is replaced, the others, and what reads them.
PLACES: dict[str, tuple[str, dict[str, bytes | str], Callable[[Path], list[Any]]]] = {
    "table": ("d/a.csv", TABLE, verified("d", "a.csv")),
    "second table": ("d/b.csv", TABLE, verified("d")),
    "image of a table": ("d/x.jpg", TABLE, verified("d", "a.csv")),
    "mask": ("d/m.png", TABLE | {"d/a.csv": "filepath,caption,mask\nx.jpg,a,m.png\n"}, verified("d", "a.csv")),
    "parquet": ("d/a.parquet", {}, verified("d", "a.parquet")),
    "shard": ("d/a.tar", {}, verified("d", "a.tar")),
    "image of a class": ("d/cat/x.jpg", CLASSES, verified("d")),
    "class": ("d/cow", CLASSES, trained),
    "captions.txt": ("d/captions.txt", {"d/x.jpg": JPEG}, verified("d")),
    "results.csv": ("d/results.csv", {"d/x.jpg": JPEG}, verified("d")),
    "COCO's captions": ("d/captions_val2017.json", {"d/x.jpg": JPEG}, verified("d")),
    "Karpathy's captions": ("d/dataset_d.json", {"d/x.jpg": JPEG}, verified("d")),
    "MMVP's questions": ("MMVP/Questions.csv", {"MMVP/MLLM_VLM Images/Color/1.jpg": JPEG}, verified("MMVP")),
    "SugarCrepe's rows": ("s/add_att.json", {"s/val2017/x.jpg": JPEG}, verified("s")),
    "results of a run": ("run/results.jsonl", RUN, reported),
    "log of a run": ("run/metrics.jsonl", RUN, reported),
    "recipe of a run": ("run/recipe.toml", RUN, reported),
    "configuration of a run": ("run/config.json", RUN, reported),
    "weights of a run": ("run/model.safetensors", RUN, attended),
    "image to look at": ("x.jpg", RUN, attended),
    "a sweep's base": ("b.toml", {"s.toml": 'base = "b.toml"\n' + SWEEP}, swept),
    "a sweep's parent": ("p.toml", {"s.toml": 'extends = "p.toml"\n' + SWEEP}, swept),
    "answers": ("answers_random.jsonl", POPE, asked),
    "questions": (
        "coco_pope_random.json",
        POPE | {"answers_random.jsonl": '{"question_id": 1, "text": "yes"}\n'},
        asked,
    ),
}


def replaced(place: str, kind: str) -> Callable[[Path], list[Any]]:
    name, others, use = PLACES[place]

    def build(folder: Path) -> list[Any]:
        for other, content in others.items():
            if other != name:
                written(folder, other, content)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        KINDS[kind](folder / name)
        return use(folder)

    return build


def listed(form: str, name: str) -> Callable[[Path], str]:
    """A table of a form that names one good image and another."""

    def build(folder: Path) -> str:
        name_here = name.replace("DIR", str(folder))
        written(folder, "x.jpg", JPEG)
        written(folder.parent, "case-other.jpg", JPEG) if "other" in name else None
        if form == "parquet":
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            images = pa.array([{"bytes": None, "path": n} for n in ("x.jpg", name_here)], kind)
            pq.write_table(pa.table({"image": images, "caption": ["a", "b"]}), folder / "a.parquet")
            return str(folder / "a.parquet")
        rows = {
            "csv": f'filepath,caption\nx.jpg,a\n"{name_here}",b\n',
            "tsv": f"filepath\tcaption\nx.jpg\ta\n{name_here}\tb\n",
            "mask": f'filepath,caption,mask\nx.jpg,a,"{name_here}"\n',
        }[form]
        return str(written(folder, "a.tsv" if form == "tsv" else "a.csv", rows))

    return build


def masked(content: bytes | Callable[[], bytes]) -> Callable[[Path], str]:
    def build(folder: Path) -> str:
        written(folder, "x.jpg", JPEG)
        written(folder, "m.png", content() if callable(content) else content)
        return str(written(folder, "a.csv", "filepath,caption,mask\nx.jpg,a caption,m.png\n"))

    return build


def streamed(path: str) -> Callable[[Path], list[Any]]:
    """A recipe whose path would start a program."""
    text = MODEL + f"[data]\nexamples = 10\n[data.train]\npath = {json.dumps(path)}\n"
    return lambda folder: ["train", written(folder, "r.toml", text), "--out", "run"]


def images() -> Iterator[tuple[str, Any]]:
    """What the other images of the corpus are, but the two that take long."""
    for name, _, content in hostile_images.IMAGES:
        if "million" not in name:
            yield name, content


ELSEWHERE = (
    *("/etc/passwd", "//etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "..", "../x.jpg"),
    *("../../etc/passwd", "a/../../x.jpg", "./../x.jpg", "DIR/../x.jpg", "DIR-other.jpg", "x.jpg/../../x.jpg"),
    "../" * 40 + "etc/passwd",
)  # fmt: skip
SIGNS = {
    "quotes": "'; touch RUN; '",
    "double quotes": '"; touch RUN; "',
    "a backtick": "`touch RUN`",
    "a space": " -o RUN",
    "a line": "\nRUN",
    "a null byte": "\0",
    "an escape": "\x1b[2J",
    "a C1 control": "\x9b",
    "a mark of direction": "\u202e",
    "a glob": "[1-9999999]",
    "a backslash": "\\",
    "a bar": "|touch RUN",
    "a redirection": ">RUN",
}
UNKNOWN = ("ais", "ftp", "ftps", "file", "sftp", "scp", "hf", "htgs", "PIPE", "HTTP", "Pipe", "ssh", "gopher", "dict")
STREAMS = {
    **{f"{scheme} with {what}": f"{scheme}://h/a{SIGNS[what]}b" for scheme in ("https", "s3") for what in SIGNS},
    **{f"{scheme} with quotes": f"{scheme}://h/a'; touch RUN; '" for scheme in ("http", "gs")},
    **{f"{scheme} of an option": f"{scheme}://-oProxyCommand=touch/RUN" for scheme in ("http", "https", "s3", "gs")},
    **{f"scheme {scheme}": f"{scheme}://host/a.tar" for scheme in UNKNOWN},
    "a command": "pipe:touch RUN",
    "a command of many": "pipe:touch RUN{0..9}",
    "a command in braces": "{pipe:touch RUN,x}",
    "a command after a space": " pipe:touch RUN",
}

CASES = [
    *(
        Case(f"no file/{place} {kind}", "command", ENDS, replaced(place, kind))
        for place in PLACES
        for kind in KINDS
        if (place, kind) != ("class", "a folder")
    ),
    *(
        Case(f"elsewhere/{form} {name[:40]}", "data", OUTSIDE, listed(form, name))
        for form in ("csv", "tsv", "mask", "parquet")
        for name in ELSEWHERE
    ),
    *(
        Case(f"mask/{name}", "data", r"(error: .*cannot read the mask|read|skipped)", masked(image))
        for name, image in images()
    ),
    *(Case(f"stream/{name}", "command", r"error: ", streamed(path)) for name, path in STREAMS.items()),
]

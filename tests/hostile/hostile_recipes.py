"""Recipes, sweeps, results, answers and run directories with wrong types, unknown keys, NaN and negative sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w
from hostile_case import Case, file, written

from diffclip.config import Recipe

RESULT = {
    "dataset": "d",
    "model": "m",
    "pretrained": "p",
    "task": "zero_shot",
    "metrics": {"acc1": 0.5},
    "language": "en",
}
BIG = "[" * 100_000
SIZES = ("epochs", "batch_size", "lr", "eps", "log_every", "checkpoint_every", "keep_checkpoints", "monitor_every")


def leaves(table: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(where, default) of every setting of a recipe."""
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*place, field.name))
        else:
            yield (*place, field.name), value


def nested(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(place):
        value = {key: value}
    return dict(value)


def recipe(text: bytes | str | dict[str, Any]) -> Callable[[Path], Path]:
    return file("r.toml", tomli_w.dumps(text) if isinstance(text, dict) else text)


def trained(text: str) -> Callable[[Path], list[Any]]:
    """The command that would train by it, without training."""
    return lambda folder: ["train", written(folder, "r.toml", text), "--dry-run"]


def sweep(text: str) -> Callable[[Path], Path]:
    return file("s.toml", text)


def reported(name: str, content: bytes | str) -> Callable[[Path], list[Any]]:
    return lambda folder: ["report", written(folder, name, content), "--out", "report"]


def run_directory(**files: bytes | str) -> Callable[[Path], list[Any]]:
    def build(folder: Path) -> list[Any]:
        for name, content in files.items():
            written(folder, f"run/{name.replace('__', '.')}", content)
        return ["report", folder / "run", "--out", "report"]

    return build


def answered(answers: bytes | str, labels: bytes | str | None = None) -> Callable[[Path], list[Any]]:
    good = '{"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}\n'

    def build(folder: Path) -> list[Any]:
        where = written(folder, "coco_pope_random.json", good if labels is None else labels)
        return ["pope", written(folder, "answers.jsonl", answers), "--labels", where, "--out", "scores"]

    return build


def result(**changes: Any) -> str:
    return json.dumps(RESULT | changes) + "\n"


NOT_TOML = r"error: .*(not valid TOML|not a UTF-8 text file|cannot read)"
WRONG = r"error: .*"
PLAIN = [(place, value) for place, value in leaves(Recipe()) if place != ("evaluation",)]
NUMBERS = [place for place, value in PLAIN if isinstance(value, (int, float)) and not isinstance(value, bool)]
MODEL = '[model]\npreset = "clip_vit_quickstart"\n'

CASES = [
    *(
        Case(f"recipe/{name}", "recipe", expect, recipe(content))
        for name, expect, content in [
            *((f"{'.'.join(place)} a table", WRONG, nested(place, {"x": {"y": 1}})) for place, _ in PLAIN),
            *((f"{'.'.join(place)} NaN", WRONG, nested(place, float("nan"))) for place in NUMBERS),
            *((f"{'.'.join(place)} negative", WRONG, nested(place, -1)) for place in NUMBERS),
            *((f"{'.'.join(place)} infinite", WRONG, nested(place, float("inf"))) for place in NUMBERS[:6]),
            *((f"{key} 0", WRONG, nested(place, 0)) for place in NUMBERS for key in [place[-1]] if key in SIZES),
            *(
                (
                    f"unknown key in {part or 'the recipe'}",
                    r"error: .*no such key",
                    nested((*filter(None, [part]), "unheard_of"), 1),
                )
                for part in ("", "model", "data", "loss", "optimizer", "training")
            ),
            ("batch_size of 400 digits", "read", "[training]\nbatch_size = " + "9" * 400),
            ("batch_size of 5000 digits", WRONG, "[training]\nbatch_size = " + "9" * 5000),
            ("batch_size a fraction", WRONG, "[training]\nbatch_size = 1.5"),
            ("batch_size a date", WRONG, "[training]\nbatch_size = 1979-05-27"),
            ("batch_size text", WRONG, '[training]\nbatch_size = "\\u001b[2J"'),
            ("betas of three", WRONG, "[optimizer]\nbetas = [0.9, 0.9, 0.9]"),
            ("betas above 1", WRONG, "[optimizer]\nbetas = [2, 0.9]"),
            ("scale of one", WRONG, "[data]\nscale = [0.5]"),
            ("ratio 0", WRONG, "[data]\nratio = [0, 1]"),
            ("precision unknown", WRONG, '[training]\nprecision = "int1"'),
            ("preset unknown", WRONG, '[model]\npreset = "../../etc/passwd"'),
            *(
                (f"override {key} = {value:.20}", WRONG, f"[model.overrides]\n{key} = {value}")
                for key, value in (
                    ("vision_width", "-768"),
                    ("vision_width", "nan"),
                    ("vision_width", '"768"'),
                    ("vision_width", "true"),
                    ("vision_depth", "1_000_000_000"),
                    ("image_size", "0"),
                    ("mlp_ratio", "inf"),
                    ("mlp_ratio", "-4"),
                    ("lambda_init", "nan"),
                    ("lambda_init", "1.0"),
                    ("image_mean", "[1]"),
                    ("__class__", "1"),
                    ("unheard_of", "1"),
                )
            ),
            ("evaluation a number", WRONG, "evaluation = 7"),
            ("evaluation without a name", WRONG, "[[evaluation]]\ntasks = []"),
            ("model a list", WRONG, "model = [1, 2]"),
            ("not TOML", NOT_TOML, "lr = = 3"),
            ("JSON", NOT_TOML, '{"seed": 1}'),
            ("YAML with an object", NOT_TOML, "a: !!python/object/apply:os.system ['true']"),
            ("a key twice", NOT_TOML, "seed = 1\nseed = 2"),
            ("a table twice", NOT_TOML, "[data]\n[data]"),
            ("a key that is a table too", NOT_TOML, "[a]\nb = 1\n[a.b]"),
            ("null bytes", NOT_TOML, b"seed = 1\0"),
            ("no UTF-8", NOT_TOML, b"seed = \xff"),
            ("UTF-16", NOT_TOML, "seed = 1".encode("utf-16")),
            ("noise", NOT_TOML, bytes(range(256))),
            ("lists nested deep", NOT_TOML, "a = " + "[" * 5000),
            ("tables nested deep", WRONG, "a = " + "{a=" * 5000),
            ("dotted key of 20,000 parts", WRONG, ".".join(["a"] * 20_000) + " = 1"),
            ("text that never ends", NOT_TOML, 'a = "' + "x" * 1_000_000),
            ("a value of a megabyte", WRONG, '[training]\nprecision = "' + "x" * 1_000_000 + '"'),
            ("a list of 100,000", WRONG, "[model]\npreset = [" + "1," * 100_000 + "]"),
            ("ten thousand unknown keys", WRONG, "\n".join(f"k{i} = 1" for i in range(10_000))),
        ]
    ),
    Case("recipe/a folder", "recipe", NOT_TOML, lambda folder: folder),
    Case("recipe/a name with a null byte", "recipe", NOT_TOML, lambda folder: f"{folder}/a\0b.toml"),
    Case("recipe/a name of 10,000 letters", "recipe", NOT_TOML, lambda folder: f"{folder}/{'a' * 10_000}.toml"),
    *(
        Case(f"command/train: {name}", "command", expect, trained(text))
        for name, expect, text in [
            ("not TOML", NOT_TOML, "= ="),
            ("no data", r"error: .*no training data", MODEL),
            (
                "evaluation of unknown tasks",
                r"error: .*evaluation.0.tasks.0: input should be 'zero_shot' or 'retrieval', found 'rm'",
                MODEL + '[[evaluation]]\nname = "x"\ntasks = ["rm"]',
            ),
            ("data that are not there", r"error: ", MODEL + '[data.train]\npath = "/nonexistent/{00..09}.tar"'),
            ("data path with a null byte", r"error: ", MODEL + '[data.train]\npath = "a\\u0000b"'),
            ("data path of 10,000 letters", r"error: ", MODEL + f'[data.train]\npath = "{"a" * 10_000}"'),
            (
                "pattern of a billion files",
                r"error: ",
                MODEL + '[data.train]\npath = "/nonexistent/{0..999999999}.tar"',
            ),
            ("pattern of braces in braces", r"error: ", MODEL + '[data.train]\npath = "' + "{a,b}" * 40 + '"'),
            ("data from a device", r"error: ", MODEL + '[data.train]\npath = "/dev/zero"\nformat = "tar"'),
            (
                "scenes of 10³⁰ pixels",
                r"error: .*whole numbers below",
                MODEL + f'[data.train]\npath = "scenes:train?size={10**30}"',
            ),
            ("scenes of 0 pixels", r"error: ", MODEL + '[data.train]\npath = "scenes:train?size=0"'),
            ("scenes of 10³⁰ examples", r"error: ", MODEL + f'[data.train]\npath = "scenes:train?length={10**30}"'),
            ("scenes of an unknown split", r"error: ", MODEL + '[data.train]\npath = "scenes:../../etc"'),
            ("fewer examples than a batch", r"error: .*fewer than one batch", MODEL + "[data]\nexamples = 3"),
            ("10³⁰ examples", r"(error: |read)", MODEL + f"[data]\nexamples = {10**30}"),
            ("10³⁰⁰ epochs", r"(error: |read)", MODEL + "[data]\nexamples = 9000\n[training]\nepochs = 1e300"),
        ]
    ),
    *(
        Case(f"sweep/{name}", "sweep", WRONG, sweep(text))
        for name, text in [
            ("empty", ""),
            ("not TOML", "= ="),
            ("extends itself", 'extends = "s.toml"'),
            ("extends a number", "extends = 7"),
            ("extends what is not there", 'extends = "no.toml"'),
            ("extends a null byte", 'extends = "a\\u0000"'),
            ("base a number", "base = 7"),
            ("seeds negative", 'base = "r.toml"\nseeds = [-1]'),
            ("seeds NaN", 'base = "r.toml"\nseeds = [nan]'),
            ("variants of numbers", 'base = "r.toml"\nvariant = [1]'),
            (
                "variant twice",
                'base = "r"\n[[variant]]\nname = "a"\n[[variant]]\nname = "A"\n'
                '[[group]]\nname = "g"\ntask = "zero_shot"\ndata = ["d"]',
            ),
            (
                "group of an unknown task",
                'base = "r"\n[[variant]]\nname = "a"\n[[group]]\nname = "g"\ntask = "rm"\ndata = ["d"]',
            ),
            ("unknown key", 'base = "r.toml"\nunheard_of = 1'),
            ("nested deep", "a = " + "[" * 5000),
        ]
    ),
    *(
        Case(f"results/{name}", "command", WRONG, reported("results.jsonl", content))
        for name, content in [
            ("metrics a list", result(metrics=[1])),
            ("metrics text", result(metrics="high")),
            ("metrics null", result(metrics=None)),
            ("metric text", result(metrics={"acc1": "high"})),
            ("metric a list", result(metrics={"acc1": [1]})),
            ("metric NaN", result(metrics={"acc1": float("nan")})),
            ("metric infinite", result(metrics={"acc1": float("inf")})),
            ("dataset a list", result(dataset=["d"])),
            ("model a table", result(model={})),
            ("task null", result(task=None)),
            ("unknown key", result(unheard_of=1)),
            ("missing key", '{"dataset": "d"}\n'),
            ("a list", "[1]\n"),
            ("a number", "7\n"),
            ("a number of 5000 digits", "9" * 5000 + "\n"),
            ("nested deep", BIG + "\n"),
            ("noise", bytes(range(256)) * 9),
            ("empty", ""),
        ]
    ),
    *(
        Case(f"benchmark/{name}", "command", WRONG, reported(file_name, content))
        for name, file_name, content in [
            ("JSON cut short", "a.json", '{"dataset": '),
            ("JSON nested deep", "a.json", BIG),
            ("JSON a list", "a.json", "[]"),
            ("JSON metrics a list", "a.json", result(metrics=[1])),
            ("JSON of noise", "a.json", bytes(range(256))),
            ("CSV of null bytes", "a.csv", bytes(100)),
            ("CSV empty", "a.csv", ""),
            ("CSV field of a megabyte", "a.csv", '"' + "a" * 1_000_000),
            ("CSV without columns", "a.csv", "a,b\n1,2\n"),
            ("CSV of noise", "a.csv", bytes(range(256))),
            ("unknown ending", "a.pkl", b"\x80\x04."),
        ]
    ),
    *(
        Case(f"run/{name}", "command", r"(error|warned|read)", run_directory(**files))
        for name, files in [
            ("metrics of noise", {"metrics__jsonl": bytes(range(256))}),
            ("metrics a list", {"metrics__jsonl": "[1]\n"}),
            ("metrics nested deep", {"metrics__jsonl": BIG}),
            ("metrics of text", {"metrics__jsonl": '{"step": "x", "loss": "y"}\n'}),
            (
                "recipe nested deep",
                {"metrics__jsonl": "{}\n", "recipe__toml": "a = " + "[" * 5000, "results__jsonl": "7\n"},
            ),
            ("config nested deep", {"metrics__jsonl": "{}\n", "config__json": BIG, "results__jsonl": "7\n"}),
            ("config a list", {"metrics__jsonl": "{}\n", "config__json": "[]", "results__jsonl": "7\n"}),
            ("nothing", {"notes__txt": "x"}),
        ]
    ),
    *(
        Case(f"pope/{name}", "command", WRONG, answered(answers))
        for name, answers in [
            ("empty", ""),
            ("noise", bytes(range(256))),
            ("null bytes", bytes(100)),
            ("a number", "7\n"),
            ("nested deep", BIG),
            ("cut short", '{"question_id": 1, "text": "ye'),
            ("an answer that is a number", '{"question_id": 1, "text": 7}\n'),
            ("an answer that is a list", '{"question_id": 1, "text": ["yes"]}\n'),
            ("another question", '{"question_id": 2, "text": "yes"}\n'),
            ("too many answers", '{"question_id": 1, "text": "yes"}\n' * 2),
            ("a number of 5000 digits", '{"question_id": ' + "9" * 5000 + "}\n"),
            ("a list of numbers", "[1, 2]"),
            ("UTF-16", '{"question_id": 1}'.encode("utf-16")),
        ]
    ),
    *(
        Case(f"pope/labels {name}", "command", WRONG, answered('{"question_id": 1, "text": "yes"}\n', labels))
        for name, labels in [
            ("empty", ""),
            ("noise", bytes(range(256))),
            ("a label of maybe", '{"question_id": 1, "image": "a", "label": "maybe"}\n'),
            ("a label of 1", '{"question_id": 1, "image": "a", "label": 1}\n'),
            ("no image", '{"question_id": 1, "label": "yes"}\n'),
            ("nested deep", BIG),
        ]
    ),
]

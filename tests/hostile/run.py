"""Give every file of the corpus to the program, each in a process of its own that may not take 2 GB, nor write.

    python tests/hostile/run.py [PATTERN …] [--json FILE]

Prints what does not end as its case says: a traceback, several lines, a write outside the output folder, too much
memory, a hang. Exit status 1 if there is any.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hostile_case import Case
from make import cases

import diffclip
from diffclip import cli
from diffclip.config import load_recipe
from diffclip.data.loading.loader import Loader
from diffclip.data.sources import open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform
from diffclip.errors import UserError
from diffclip.evaluation import pope  # noqa: F401  imported once, not in every child
from diffclip.evaluation.run import hooks
from diffclip.reporting import report as command  # noqa: F401
from diffclip.sweep_config import load_sweep

MEMORY = 2 << 30  # bytes of addresses beyond those of the program itself
SECONDS = 60
LONGEST = 2100  # characters of a message
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")


def use(entry: str, given: Any) -> str:
    """What a user sees: "error: …", "skipped: REASON COUNT, …", "read"; "warned: …" where that comes with a warning."""
    try:
        if entry == "data":
            return load_data(**(given if isinstance(given, dict) else {"path": str(given)}))
        if entry == "command":
            cli.main([str(argument) for argument in given])
        else:
            {"model": diffclip.load, "recipe": load_checked_recipe, "sweep": load_sweep}[entry](given)
    except UserError as error:
        return f"error: {error}"
    except SystemExit as ended:
        return f"error: {str(ended.code).removeprefix('diffclip: ')}"
    return "read"


def load_checked_recipe(path: Any) -> None:
    hooks.check_evaluations(load_recipe(path), str(path))


tokenize = get_tokenizer(16)


def load_data(**arguments: Any) -> str:
    source = open_source(**arguments)
    transform = TrainTransform(16)
    loader = Loader(source, transform, tokenize, 1, seed=0, max_skipped=1.0)
    for batch in loader.epoch(0):
        assert batch.pixels.shape == (1, 3, 16, 16)
    masks = getattr(source, "masks", None)
    if masks:
        for index in range(len(source)):
            masks(index)
    skipped = ", ".join(f"{reason} {count}" for reason, count in loader.skipped.most_common())
    return f"skipped: {skipped}" if skipped else "read"


def child(chosen: list[Case], root: Path, answers: int) -> None:
    """Use one case after the other, and write a line of JSON for each to `answers`."""
    seen: list[str] = []
    watch(root, seen)
    for case in chosen:
        report = attempt(case, root / "case", seen)
        os.write(answers, json.dumps(report).encode() + b"\n")


def attempt(case: Case, folder: Path, seen: list[str]) -> dict[str, Any]:
    """Build the files of a case, then use them under limits."""
    os.chdir(folder.parent)  # not in what is removed: the hook below asks where it is
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    (folder / "input").mkdir()
    os.chdir(folder / "out")
    given = case.build(folder / "input")
    before = tree(folder / "input")
    seen.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of building
    start = peak()
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + MEMORY, resource.RLIM_INFINITY))
    signal.alarm(SECONDS)
    began, errors = time.process_time(), io.StringIO()
    logging.basicConfig(stream=errors, force=True)
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        try:
            outcome = use(case.entry, given)
        except BaseException as error:  # which a person would see as a traceback
            last = "".join(traceback.format_tb(error.__traceback__)[-1:])
            outcome = f"traceback: {error!r:.300} at {last}"
    signal.alarm(0)
    if outcome == "read" and "WARNING" in errors.getvalue():
        outcome = "warned: " + errors.getvalue().partition("WARNING")[2][:200].replace("\n", " ")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if "Traceback" in errors.getvalue():
        outcome = "traceback: " + errors.getvalue()[-300:]
    elif not all(character.isprintable() or character in "\n\u200c\u200d" for character in errors.getvalue()):
        outcome = f"prints what commands a terminal: {errors.getvalue()[:300]!r}"
    elif tree(folder / "input") != before:
        outcome = "changed its input"
    elif seen:
        outcome = "writes: " + "; ".join(dict.fromkeys(seen))
    elif not outcome.startswith("traceback") and not outcome.isprintable():
        outcome = f"several lines or control characters: {outcome!r}"
    elif len(outcome) > LONGEST:
        outcome = f"a message of {len(outcome)} characters: {outcome[:300]}"
    return {"outcome": outcome, "cpu_s": time.process_time() - began, "peak_mb": (peak() - start) / 1e6}


def watch(root: Path, seen: list[str]) -> None:
    """Note every change of a file outside the case's `out`, every process and connection that Python code starts."""
    allowed = (str(root / "case" / "out"), "/dev/null", "/proc/self/clear_refs")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        paths: list[Any] = []
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            paths = [arguments[0]]
        elif event in CHANGES:
            paths = [a for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))]
        elif event in STARTS:
            seen.append(f"{event} {str(arguments)[:80]}")
        for path in paths:
            if not isinstance(path, int) and not os.path.abspath(os.fsdecode(path)).startswith(allowed):
                seen.append(f"{event} {path}")

    sys.addaudithook(hook)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → size and time of every file; what a loader may leave beside its data, an index, is not counted."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (status.st_size, status.st_mode)
    return found


def peak() -> int:
    """The most bytes that this process held in memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def run(chosen: list[Case], root: Path) -> Iterator[dict[str, Any]]:
    """What came of each case. They share a process, until one of them ends it."""
    while chosen:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            status = 1
            try:
                child(chosen, root, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            done = [json.loads(line) for line in stream]
        _, status = os.waitpid(process, 0)
        yield from done
        chosen = chosen[len(done) :]
        if chosen:
            ended = signal.Signals(status & 127).name if status & 127 else f"status {status >> 8}"
            yield {"outcome": "hang" if ended == "SIGALRM" else f"ended by {ended}"}
            chosen = chosen[1:]


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True  # or a late import would count as a write
    tokenize(["a caption"])
    output = arguments[arguments.index("--json") + 1] if "--json" in arguments else None
    patterns = [a for a in arguments if a not in ("--json", output)] or ["*"]
    chosen = [case for case in cases() if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    reports, wrong = {}, 0
    with tempfile.TemporaryDirectory() as root:
        for case, report in zip(chosen, run(chosen, Path(root).resolve()), strict=True):
            reports[case.name] = report
            report["expected"] = bool(re.match(case.expect, report["outcome"]))
            if not report["expected"]:
                wrong += 1
                print(f"{case.name}\n    expected {case.expect}\n    {report['outcome'][:400]}", flush=True)
    slow = sorted(reports.items(), key=lambda item: -item[1].get("cpu_s", 0))[:3]
    large = sorted(reports.items(), key=lambda item: -item[1].get("peak_mb", 0))[:3]
    print(f"{len(chosen)} cases, {wrong} not as expected")
    print("slowest: " + ", ".join(f"{name} {report.get('cpu_s', 0):.1f} s" for name, report in slow))
    print("largest: " + ", ".join(f"{name} {report.get('peak_mb', 0):.0f} MB" for name, report in large))
    if output:
        Path(output).write_text(json.dumps(reports, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

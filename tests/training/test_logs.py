"""metrics.jsonl on resuming, and what a person sees without a terminal."""

import io
import json
import re
import resource

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from diffclip.analysis.curves import read_curves, read_warnings
from diffclip.errors import UserError
from diffclip.training.logs import Display, RunLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resuming_drops_lines_of_work_that_is_done_again(tmp_path):
    log = RunLog(tmp_path)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0, "lambda_visual": [0.8, 0.9], "seconds": 1.0 * step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # a crash in the middle of a line
    log = RunLog(tmp_path, step=20)
    log.write({"step": 30, "loss": 2.0, "seconds": 30.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (10, 1),
        (20, 1),
        (30, 2),
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_any_text_in_a_record_and_a_damaged_line_in_the_middle(tmp_path, caplog):
    nasty = "a\u2028b\x85c\0\n\r\ud800"
    log = RunLog(tmp_path)
    for step in (1, 2):
        log.write({"step": step, "loss": float("nan"), "warning": nasty, nasty: 10**40, "seconds": 1.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    first, second, _ = path.read_bytes().split(b"\n")
    damaged = [b'{"step": Infinity}', b"[" * 10**5, b"42", b'{"step": 1}']
    path.write_bytes(b"\n".join([first, *damaged, second, second[:20]]))
    log = RunLog(tmp_path, step=5)
    log.close()
    assert [(r["step"], r["warning"], r[nasty]) for r in log.kept()] == [(1, nasty, 10**40), (2, nasty, 10**40)]
    told = [message.partition(" line ")[2].split()[0] for message in caplog.messages]
    assert told == ["2", "3", "4", "5", "7"]
    assert path.read_bytes() == first + b"\n" + second + b"\n"
    assert read_curves(tmp_path)["loss"].steps.tolist() == [1, 2]
    assert read_warnings(tmp_path) == [nasty]


def test_without_a_terminal_records_are_plain_lines():
    out = io.StringIO()
    record = {
        "step": 5,
        "loss": 1.25,
        "images_per_s": 320.4,
        "logit_scale": 14.3,
        "lambda_visual": [0.7, 0.9],
    }
    with Display("run", 10, Console(file=out, width=200)) as display:
        display.start(0)
        display.advance(5)
        display.record(record)
        display.note("a note")
    first, second = out.getvalue().splitlines()
    assert first.startswith("run step 5/10  loss 1.250  320 img/s  τ⁻¹ 14.3  λ visual 0.80")
    assert first.endswith("left")
    assert second == "a note"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_is_that_of_the_last_minute_of_steps(monkeypatch, terminal):
    clock, out = [0.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Display("run", 1000, Console(file=out, width=200, force_terminal=terminal)) as display:
        display.start(100)  # a run that goes on
        for step in range(101, 201):  # 100 s
            clock[0] += 1.0
            display.advance(step)
        clock[0] += 500.0  # an evaluation
        display.start(200)
        for step in range(201, 301):  # 200 s: the machine is busy
            clock[0] += 2.0
            display.advance(step)
        display.record({"step": 300, "loss": 1.25, "images_per_s": 320.4})
    assert "23:20" in out.getvalue()  # 700 steps of 2 s


def test_on_a_terminal_there_is_a_bar():
    out = io.StringIO()
    with Display("run", 10, Console(file=out, width=120, force_terminal=True)) as display:
        display.advance(3)
        display.record({"step": 3, "loss": 1.25, "images_per_s": 320.4, "logit_scale": 14.3})
    assert "3/10" in out.getvalue()
    assert "loss 1.250" in out.getvalue()


@pytest.mark.parametrize(("name", "total"), [("clip", 703), ("diffclip_vit_b16_cc12m_dynamic_seed3", 120_000)])
def test_the_time_left_fits_80_columns(name, total):
    """Whatever the name, the count of steps and λ: name, count, time left, loss and speed stand in one line."""
    out = io.StringIO()
    record = {"step": 30, "loss": 11.25, "images_per_s": 12320.4, "logit_scale": 14.3, "lambda_visual": [0.7]}
    with Display(name, total, Console(file=out, width=80, force_terminal=True)) as display:
        for step in range(1, 31):
            display.advance(step)
        display.record(record | {"lambda_text": [0.8]})
        display._progress.refresh()
        (line,) = display.console.render_lines(display._progress.get_renderable(), pad=False)
    text = "".join(segment.text for segment in line)
    assert re.search(r"\d+:\d\d", text)
    assert "loss 11.250" in text
    assert len(text.rstrip()) <= 80
    assert "…" not in text[20:]


def test_a_line_that_cannot_be_written_is_said_and_cut_off_on_resuming(tmp_path):
    """A limit on the size of files stands for a full disk."""
    log = RunLog(tmp_path)
    log.write({"step": 10, "seconds": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the metrics of .*: File too large; make room"):
            log.write({"step": 20, "seconds": 2.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size + 10
    log = RunLog(tmp_path, step=20)
    log.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [10]


def test_tensorboard_has_the_lines_once(tmp_path):
    """Also after a resume that drops some; dated by the training time."""
    for first, last in ((1, 4), (3, 5)):
        log = RunLog(tmp_path, step=first - 1, seconds=first - 1.0)
        for step in range(first, last + 1):
            log.write({"step": step, "lambda_text": [0.5, step / 8], "warning": "text", "seconds": 1.0 * step})
        log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    assert [event.step for event in events] == [1, 2, 3, 4, 5]
    assert [[value.tag for value in event.summary.value] for event in events] == [
        ["lambda_text/01", "lambda_text/02", "seconds"]
    ] * 5
    assert [event.summary.value[1].tensor.float_val[0] for event in events] == [0.125, 0.25, 0.375, 0.5, 0.625]
    times = [event.wall_time for event in events]
    assert times[1] - times[0] == pytest.approx(1, abs=1e-3)

"""metrics.jsonl on resuming, and what a person sees without a terminal."""

import io
import json

from rich.console import Console

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
        display.advance(0)
        display.record(record)
        display.note("a note")
    first, second = out.getvalue().splitlines()
    assert first.startswith("run step 5/10  loss 1.250  320 img/s  τ⁻¹ 14.3  λ visual 0.80")
    assert first.endswith("left")
    assert second == "a note"


def test_on_a_terminal_there_is_a_bar():
    out = io.StringIO()
    with Display("run", 10, Console(file=out, width=120, force_terminal=True)) as display:
        display.advance(3)
        display.record({"step": 3, "loss": 1.25, "images_per_s": 320.4, "logit_scale": 14.3})
    assert "3/10" in out.getvalue()
    assert "loss 1.250" in out.getvalue()

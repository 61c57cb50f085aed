import pytest

from diffclip.analysis import lambda_curves as lambda_
from diffclip.analysis.curves import read_curves
from diffclip.errors import UserError


def write(run, *lines):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("\n".join(lines))
    return run


def test_curves_by_name_the_later_line_of_a_step_wins(tmp_path):
    run = write(
        tmp_path / "run",
        '{"step": 10, "loss": 3.0, "lambda_visual": [0.8, 0.7], "lambda_text": []}',
        '{"step": 30, "loss": 9.0, "lambda_visual": [0.1, 0.1], "lambda_text": []}',
        '{"step": 20, "loss": 2.0, "test/acc1": 0.5, "note": "resumed"}',
        '{"step": 30, "loss": 1.0, "lambda_visual": [0.6, 0.5], "lambda_text": []}',
        '{"step": 40, "lo',
    )
    curves = read_curves(run)
    assert set(curves) == {"loss", "lambda_visual", "lambda_text", "test/acc1"}
    assert curves["loss"].steps.tolist() == [10, 20, 30]
    assert curves["loss"].values.tolist() == [3, 2, 1]
    assert curves["test/acc1"].steps.tolist() == [20]
    lambdas = lambda_.by_layer(run)
    assert set(lambdas) == {"visual"}
    assert lambdas["visual"].steps.tolist() == [10, 30]
    assert lambdas["visual"].values.tolist() == [[0.8, 0.7], [0.6, 0.5]]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*metrics.jsonl.*directory of a training run"):
        read_curves(tmp_path)
    with pytest.raises(UserError, match="has no records"):
        read_curves(write(tmp_path / "a", ""))
    with pytest.raises(UserError, match="line 1: not a record with a step"):
        read_curves(write(tmp_path / "b", '{"loss": 1}', '{"step": 1}'))

"""The failures that are warned of, one warning each, on runs driven into them; and none on a healthy run."""

import dataclasses
import json
import math

import pytest
import torch
from test_trainer import lines, recipe

from diffclip.errors import UserError
from diffclip.training import checkpoint, setup, step
from diffclip.training.monitor import Monitor
from diffclip.training.setup import train


def watched(*records, batch_size=2048, warmup_steps=0):
    monitor = Monitor(batch_size=batch_size, warmup_steps=warmup_steps)
    return [monitor.watch({"step": 10 * n, "loss": 1.0} | record) for n, record in enumerate(records, start=1)]


def test_lambda_that_training_moved_out_of_its_range_is_warned_of_once_a_tower():
    first, second, third = watched(
        {"lambda_visual": [0.8, 1.25, 0.04], "lambda_text": [0.2]},  # where they began
        {"lambda_visual": [1.21, 1.3, 0.01], "lambda_text": [0.04]},
        {"lambda_visual": [1.3, 1.5, 0.0], "lambda_text": [-0.2]},
    )
    assert first == third == []
    assert [w.partition(":")[0] for w in second] == ["step 20", "step 20"]
    assert "λ has grown above 1.2 in visual layer 1 (1.21):" in second[0]
    assert "λ has fallen below 0.05 in text layer 1 (0.04):" in second[1]


def test_collapsed_attention_is_warned_of():
    quiet, loud, after = watched(*({"entropy_text": [0.9, value]} for value in (0.06, 0.04, 0.03)))
    assert quiet == after == []
    assert loud == [
        "step 20: attention has collapsed in text layer 2 (4.0%) of the largest entropy: a query sees one token; "
        "lower optimizer.lr"
    ]


def test_cancellation_is_warned_of_when_it_lasts_after_the_warm_up():
    values = [[0.2, 0.01], [0.2, 0.01], [0.01, 0.2], [0.2, 0.01], [0.2, 0.02], [0.2, 0.01]]
    found = watched(*({"left_visual": value} for value in values), warmup_steps=10)
    assert [len(warnings) for warnings in found] == [0, 0, 0, 0, 1, 0]
    assert "leaves next to nothing in visual layer 2 (2.0%) of A1" in found[4][0]


@pytest.mark.parametrize(("batch_size", "asked"), [(128, True), (4096, False)])
def test_a_gradient_far_beyond_the_usual_is_warned_of(batch_size, asked):
    found = watched(*({"grad_norm": n} for n in (50.0, 2.0, 2.0, 2.0, 2.0, 19.0, 21.0, 90.0)), batch_size=batch_size)
    assert [len(warnings) for warnings in found] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert "the gradient is 10 times what it was" in found[6][0]
    assert ("raise training.batch_size, 128: differential attention asks for 1024" in found[6][0]) is asked


def test_a_loss_that_returns_to_guessing_is_warned_of():
    losses = [5.0] * 3 + [4.0] * 5 + [5.0] * 3 + [5.2] * 4  # log 128 = 4.85; of five lines
    found = watched(*({"loss": loss} for loss in losses), batch_size=128)
    assert [bool(warnings) for warnings in found] == [False] * 12 + [True] + [False] * 2
    assert "the loss is 5.08, that of guessing, after 4.00" in found[12][0]


def test_a_loss_that_stays_at_guessing_is_warned_of():
    losses = [9.0] * 2 + [4.84, 4.86] * 11
    found = watched(*({"loss": loss} for loss in losses), batch_size=128, warmup_steps=10)
    assert [bool(warnings) for warnings in found] == [False] * 21 + [True] + [False] * 2
    assert "the loss stays at 4.85, that of guessing" in found[21][0]


def run(tmp_path, epochs=2, **changes):
    """8 steps an epoch, of batches of 8."""
    one = recipe(epochs=epochs, log_every=1, monitor_every=4, checkpoint_every=12)
    parts = {name: dataclasses.replace(getattr(one, name), **values) for name, values in changes.items()}
    train(dataclasses.replace(one, **parts), tmp_path / "run")
    return lines(tmp_path / "run")


def warnings(records):
    return [record["warning"] for record in records if "warning" in record]


def changed_at_the_start(monkeypatch, change):
    made = setup.new_model

    def changed(*arguments, **options):
        model = made(*arguments, **options)
        with torch.no_grad():
            change(model)
        return model

    monkeypatch.setattr(setup, "new_model", changed)


def test_a_healthy_run_shows_none(tmp_path, caplog):
    records = run(tmp_path, epochs=4)
    assert warnings(records) == []
    assert caplog.messages == []
    assert all(record["grad_norm"] > 0 for record in records)
    measured = {"entropy", "left", "negative", "rms", "cosine", "grad_norm"}
    names = {f"{name}_{tower}" for name in measured for tower in ("visual", "text")}
    assert all((names <= record.keys()) is (record["step"] % 4 == 0) for record in records)
    assert all(len(records[3][name]) == 2 for name in names)


def test_signature_1_lambda_leaves_its_range(tmp_path, monkeypatch, caplog):
    """λ's vectors start so long that a step at this rate moves λ by tenths."""
    changed_at_the_start(
        monkeypatch, lambda m: [p.mul_(4) for name, p in m.named_parameters() if ".attn.lambda_" in name]
    )
    found = warnings(run(tmp_path, optimizer={"lr": 0.03}))
    assert any("λ has" in warning for warning in found)
    assert len(caplog.messages) == sum(warning.count("step ") for warning in found)


def test_signature_2_gradients_that_are_not_finite_end_the_run_before_they_are_saved(tmp_path, monkeypatch):
    """Step 24 would be saved."""
    real = step.TrainState.step

    def poisoned(self, number, batch):
        found = real(self, number, batch)
        if number + 1 == 24:
            self.model.visual.blocks[1].attn.norm.weight.grad[0] = math.inf
        return found

    monkeypatch.setattr(step.TrainState, "step", poisoned)
    with pytest.raises(
        UserError, match=r"gradient is not finite at step 24 \(first in visual.blocks.1.attn.norm.weight of 1 param"
    ):
        run(tmp_path, epochs=3)
    assert [path.name for path in checkpoint.found(tmp_path / "run")] == ["step_00000012"]
    assert [record["step"] for record in lines(tmp_path / "run")] == list(range(1, 24))
    kept = json.loads((tmp_path / "run" / "not_finite_step_00000024.json").read_text())
    assert kept["in"] == ["visual.blocks.1.attn.norm.weight"]


def test_signature_3_the_subtraction_removes_everything(tmp_path, monkeypatch):
    """Both groups of a layer's heads alike, and λ = 1."""

    def cancel(model):
        layer = model.visual.blocks[0].attn
        queries_and_keys = layer.qkv.weight[: 2 * 32].view(2, 2, 2, 8, 32)  # (q or k, head, group, D, C)
        queries_and_keys[:, :, 1] = queries_and_keys[:, :, 0]
        layer.lambda_q1.fill_(math.sqrt(math.log(1.2) / 8))
        layer.lambda_k1.copy_(layer.lambda_q1)
        layer.lambda_q2.zero_()

    changed_at_the_start(monkeypatch, cancel)
    (found,) = warnings(run(tmp_path, optimizer={"lr": 1e-5}))
    assert "the subtraction leaves next to nothing in visual layer 1" in found


def test_signature_4_a_small_batch_at_a_high_rate_is_unstable(tmp_path):
    found = warnings(run(tmp_path, epochs=6, optimizer={"lr": 0.03, "warmup_epochs": 1.0}))
    (unstable,) = [text for text in " | ".join(found).split(" | ") if "training is unstable" in text]
    assert "raise training.batch_size, 8" in unstable


def test_a_resumed_run_warns_as_it_would_have(tmp_path):
    """What the monitor knows is in the lines."""
    records = [{"step": n, "loss": 1.0, "grad_norm": 2.0 + n % 3, "lambda_visual": [0.8 - 0.1 * n]} for n in range(12)]
    records[9]["grad_norm"] = 100.0
    whole = Monitor(batch_size=8, warmup_steps=0)
    expected = [whole.watch(record) for record in records]
    resumed = Monitor(batch_size=8, warmup_steps=0)
    for record in json.loads(json.dumps(records[:7])):
        resumed.watch(record)
    assert [resumed.watch(record) for record in records[7:]] == expected[7:]
    assert sum(map(len, expected)) == 2

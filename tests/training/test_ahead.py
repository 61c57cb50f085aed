"""Batches one ahead: what is copied when, on which stream, what the loader had skipped. No GPU: streams are fakes."""

import dataclasses
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from test_trainer import lines, recipe

from diffclip.data.loading.loader import Batch
from diffclip.errors import UserError
from diffclip.training import setup, step
from diffclip.training.ahead import Ahead

DEVICE = torch.device("cpu")


class Stream:
    """Notes what waits for it."""

    def __init__(self, name, told):
        self.name, self._told = name, told

    def wait_stream(self, other):
        self._told.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def told(monkeypatch):
    """What happens, in order, under torch.cuda's streams."""
    told, streams = [], [Stream("step", [])]
    streams[0]._told = told

    @contextmanager
    def inside(stream):
        streams.append(stream)
        yield
        streams.pop()

    def copied(pixels, device, non_blocking):
        told.append(f"copy {int(pixels[0, 0, 0, 0])} on {streams[-1].name}, waiting: {not non_blocking}")
        return pixels.clone()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", told))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.Tensor, "to", copied)
    kept = lambda pixels, stream: told.append(f"{stream.name} keeps {int(pixels[0, 0, 0, 0])}")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", kept)
    return told


class Loader:
    """Batches that say their number in every pixel; one image is skipped before each."""

    def __init__(self, count, breaks=None):
        self.skipped, self._count, self._breaks = Counter(), count, breaks

    def epoch(self, epoch, start=0, skipped=None):
        self.skipped = Counter(skipped or {})
        for number in range(start, self._count):
            if number == self._breaks:
                raise UserError("the disk is gone")
            self.skipped["bad"] += 1
            numbers = torch.tensor([number])
            yield Batch(torch.full((1, 3, 2, 2), number, dtype=torch.uint8), numbers[None], numbers, numbers)


def test_each_batch_is_copied_while_the_step_before_it_runs(told):
    for batch in Ahead(Loader(3), DEVICE).epoch(0):
        told.append(f"step {int(batch.indices)}")
    assert told == [
        *("copy 0 on side, waiting: False", "step waits for side", "step keeps 0"),
        *("copy 1 on side, waiting: False", "step 0", "step waits for side", "step keeps 1"),
        *("copy 2 on side, waiting: False", "step 1", "step waits for side", "step keeps 2", "step 2"),
    ]


def test_what_was_skipped_is_that_of_the_batches_given(told):
    ahead = Ahead(Loader(5), DEVICE)
    counts = [(int(batch.indices), ahead.skipped["bad"]) for batch in ahead.epoch(0, 2, {"bad": 7})]
    assert counts == [(2, 8), (3, 9), (4, 10)]
    batches = ahead.epoch(1)  # a loop takes as many as it needs, and never asks for the end
    next(batches), next(batches)
    assert ahead.skipped == {"bad": 2}


def test_an_error_comes_after_the_batches_before_it(told):
    seen = []
    with pytest.raises(UserError, match="the disk is gone"):
        seen.extend(int(batch.indices) for batch in Ahead(Loader(5, breaks=2), DEVICE).epoch(0))
    assert seen == [0, 1]
    assert list(Ahead(Loader(0), DEVICE).epoch(0)) == []


def test_a_run_on_a_gpu_takes_its_batches_ahead_and_computes_the_same(tmp_path, monkeypatch):
    """The GPU is this processor, as far as the loop is told."""

    class Near(Ahead):
        def __init__(self, loader, device):
            monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
            super().__init__(loader, device)

        def _sent(self, batch):
            sent.append(batch.indices)
            return dataclasses.replace(batch, pixels=batch.pixels.clone())

        def _received(self, batch):
            return batch

    sent, plain = [], setup.train(recipe(epochs=1), tmp_path / "plain")
    monkeypatch.setattr(setup, "Ahead", Near)
    monkeypatch.setattr(setup, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(step, "default_device", lambda: torch.device("cpu"))
    ahead = setup.train(recipe(epochs=1), tmp_path / "ahead")
    assert len(sent) == 8
    for one, other in zip(lines(plain), lines(ahead), strict=True):
        assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])

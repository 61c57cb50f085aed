"""Processes together compute what one computes alone: losses, gradients, batches."""

import itertools
from functools import partialmethod

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gradients import expected, trainer

from diffclip.data.loading.loader import Batch, Loader
from diffclip.data.scenes import SceneSource
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform
from diffclip.distributed import World, default_device, get_world
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.training.parallel import full_tensor
from processes import together

SIZE, END = 12, 49407
GROUPS = torch.tensor([0, 1, 2, 0, 3, 3, 3, 3, 2, 1, 0, 4])
# Processes, layout, shared captions, micro-batch, loss.
CASES = [
    *itertools.product([2], ["ddp", "fsdp"], [False, True], [0, 2], ["contrastive"]),
    (2, "fsdp", True, 2, "sigmoid"),
    (2, "compiled fsdp", False, 2, "contrastive"),
    (4, "ddp", False, 0, "contrastive"),
    (4, "ddp", True, 2, "contrastive"),
    (4, "fsdp", True, 2, "contrastive"),
    (4, "ddp", True, 0, "sigmoid"),
]


def batch(shared):
    """A global batch, in which processes share captions with others and micro-batches have none of their own."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (SIZE, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, END, (SIZE, 7), generator=generator)
    tokens[:, -1] = END
    tokens[3] = torch.tensor([4, END, 0, 0, 0, 0, 0])
    groups = GROUPS if shared else -1 - torch.arange(SIZE)
    return Batch(pixels, tokens[GROUPS] if shared else tokens, groups, torch.arange(SIZE))


def own(made):
    rows = slice(get_world().rank * SIZE // get_world().size, (get_world().rank + 1) * SIZE // get_world().size)
    return Batch(made.pixels[rows], made.tokens[rows], made.groups[rows], made.indices[rows])


def gradients(folder):
    CLIP.compile = partialmethod(CLIP.compile, backend="aot_eager")
    for _, layout, shared, micro_batch, kind in (case for case in CASES if case[0] == get_world().size):
        compiled = {"compile": True} if "compiled" in layout else {}
        one = trainer(
            shared=shared, loss=kind, batch_size=SIZE, layout=layout.split()[-1], micro_batch=micro_batch, **compiled
        )
        loss, _ = one.step(3, own(batch(shared)))
        found = {name: full_tensor(parameter.grad) for name, parameter in one.model.named_parameters()}
        lambdas = {f"lambda_{tower}": full_tensor(values) for tower, values in one.model.lambdas().items()}
        if get_world().is_main:
            name = f"{get_world().size}_{layout}_{shared}_{micro_batch}_{kind}.safetensors"
            save_file(found | lambdas | {"loss": torch.tensor(loss)}, folder / name)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    for size in (2, 4):
        together(size, gradients, folder)
    return folder


@pytest.mark.parametrize(("size", "layout", "shared", "micro_batch", "kind"), CASES)
def test_the_gradients_are_those_of_one_process(computed, size, layout, shared, micro_batch, kind):
    """With patch dropout, captions that several processes have, and micro-batches."""
    found = load_file(computed / f"{size}_{layout}_{shared}_{micro_batch}_{kind}.safetensors")
    alone = trainer(shared=shared, loss=kind, batch_size=SIZE)
    loss, single = expected(alone, batch(shared), step=3)
    assert found.pop("loss").item() == pytest.approx(loss, rel=1e-6)
    for tower, values in alone.model.lambdas().items():
        torch.testing.assert_close(found.pop(f"lambda_{tower}"), values)
    assert found.keys() == single.keys()
    for name, gradient in single.items():
        scale = gradient.abs().max().item()
        # λ's is a sum over whole maps that nearly cancels: one process alone is 4e-8 from float64 there.
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale + 1e-7, msg=name)


def test_processes_load_the_parts_of_one_batch():
    source = SceneSource("train", size=16, length=20)
    arguments = source, TrainTransform(16, (0.5, 1.0), (0.75, 4 / 3), 0.5), get_tokenizer(77), 6
    for number, made in enumerate(Loader(*arguments, seed=3).epoch(1, start=1), start=1):
        parts = [next(Loader(*arguments, seed=3, part=(rank, 3)).epoch(1, start=number)) for rank in range(3)]
        assert torch.equal(torch.cat([part.pixels for part in parts]), made.pixels)
        assert np.array_equal(torch.cat([part.indices for part in parts]), made.indices)
        assert torch.equal(torch.cat([part.groups for part in parts]), made.groups)


def test_a_batch_that_cannot_be_shared_is_one_line():
    assert World(1, 4).rows_per_rank(12) == 3
    with pytest.raises(UserError, match=r"batch_size = 10 .* 4 of them cannot share it equally: give a multiple of 4"):
        World(0, 4).rows_per_rank(10)


def test_more_processes_than_gpus_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert default_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        UserError, match=r"process 2 of this machine has no GPU, there are 2: torchrun --nproc-per-node 2"
    ):
        default_device()


def test_alone_nothing_is_sent():
    alone, rows = World(), torch.ones(3, 2)
    assert alone.is_main
    assert alone.all_gather(rows) is rows is alone.reduce_scatter(rows)
    assert alone.all_gather_objects("a") == ["a"]

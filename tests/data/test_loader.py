"""Batch k of epoch e is the same however it is made; bad examples are counted and replaced."""

import functools
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from diffclip.data.images import BadImage
from diffclip.data.loading import loader as loading
from diffclip.data.loading import workers as module
from diffclip.data.loading.loader import Loader
from diffclip.data.sources import Example
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform
from diffclip.errors import UserError


class Pictures:
    """`length` captioned pictures that show their own index; those in `bad` are damaged in some way."""

    name, classnames, templates = "pictures", None, None

    def __init__(self, length=50, bad=()):
        self.length, self.bad = length, dict(bad)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        match self.bad.get(index):
            case "missing":
                raise BadImage("missing")
            case "fatal":
                raise UserError("the disk is gone")
            case "no_caption":
                return Example(self.png(index))
            case "empty":
                return Example(b"")
        return Example(self.png(index), (f"picture {index}", f"the {index}th picture " + "of many " * (index % 7)))

    @staticmethod
    def png(index):
        file = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


class Labelled:
    """Examples with labels 0, 1, 2, 0, 1, 2, …"""

    name, classnames, templates = "labelled", ("cat", "dog", "cow"), ("a {c}", "the {c}")

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return Example(np.full((8, 8, 3), index, np.uint8), label=index % 3)


def loader(source=None, batch_size=8, seed=3, **options):
    return Loader(source or Pictures(), TrainTransform(16, flip=0.5), get_tokenizer(), batch_size, seed=seed, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def all_same(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(map(same, a, b))


def test_a_batch():
    batches = list(loader().epoch(0))
    assert len(batches) == len(loader()) == 6
    for batch in batches:
        assert (batch.pixels.shape, batch.pixels.dtype) == ((8, 3, 16, 16), torch.uint8)
        assert batch.tokens.dtype == batch.groups.dtype == batch.indices.dtype == torch.int64
        assert batch.groups.shape == batch.indices.shape == (8,)
        assert ((batch.tokens == 49407).sum(dim=1) == 1).all()
        assert batch.tokens[:, -1].any()
        for index, tokens in zip(batch.indices.tolist(), batch.tokens, strict=True):
            captions = get_tokenizer()(Pictures()[index].captions, batch.tokens.shape[1])
            assert any(torch.equal(tokens, caption) for caption in captions)


def test_an_epoch_covers_everything_once_in_an_order_of_its_own():
    source = Pictures(48)
    orders = [
        torch.cat([b.indices for b in loader(source, seed=s).epoch(e)]).tolist() for s, e in ((3, 0), (3, 1), (4, 0))
    ]
    for order in orders:
        assert sorted(order) == list(range(48))
        assert order != sorted(order)
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert len(list(loader(Pictures(50), 16).epoch(0))) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_resuming_make_no_difference():
    bad = {3: "missing", 17: "empty", 30: "no_caption"}
    reference = {epoch: list(loader(Pictures(bad=bad)).epoch(epoch)) for epoch in (0, 1)}
    for workers in (0, 1, 3):
        other = loader(Pictures(bad=bad), num_workers=workers)
        assert all_same(other.epoch(1, start=4), reference[1][4:])
        assert all_same(other.epoch(0), reference[0])
        unfinished = other.epoch(0)
        next(unfinished)
        assert all_same(other.epoch(1), reference[1])
        assert not list(other.epoch(1, start=6))
        assert other.skipped == Counter()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_pieces_make_no_difference(monkeypatch, size):
    """Texts of other lengths, bad examples and their counts, a resume: as of batches that came whole."""
    bad = {3: "missing", 17: "empty", 30: "no_caption"}
    whole = loader(Pictures(bad=bad))
    reference = list(whole.epoch(0))
    assert len({batch.tokens.shape for batch in reference}) > 1
    monkeypatch.setattr(loading, "PIECE", size)
    pieces = loader(Pictures(bad=bad), num_workers=2)
    assert all_same(pieces.epoch(0), reference)
    assert pieces.skipped == whole.skipped
    assert whole.skipped.total() == 3
    assert all_same(pieces.epoch(0, start=4), reference[4:])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_piece_that_fails_is_told_like_a_batch(monkeypatch):
    monkeypatch.setattr(loading, "PIECE", 3)
    with pytest.raises(UserError, match="examples could not be used, more than 10%: missing"):
        list(loader(Pictures(bad=dict.fromkeys(range(40), "missing")), num_workers=2).epoch(0))


def test_joined_pieces_are_pinned_where_there_is_a_gpu(monkeypatch):
    batches = list(loader().epoch(0))[:3]
    plain = loading.joined(batches)
    pinned, empty = [], torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: pinned.append(pin_memory) or empty(*a, **k))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(True) or tensor.clone())
    assert same(loading.joined(batches), plain)
    assert same(loading.joined(batches[:1]), batches[0])
    assert pinned == [True] * 5


def test_spawned_workers_make_no_difference(monkeypatch):
    spawning = functools.partial(module.DataLoader, multiprocessing_context="spawn")
    reference = list(loader().epoch(2))
    monkeypatch.setattr(module, "DataLoader", spawning)
    assert all_same(loader(num_workers=1).epoch(2), reference)


def test_an_example_is_augmented_the_same_in_any_batch_and_anew_in_every_epoch():
    def pixels(batch_size, epoch):
        batches = loader(Pictures(48), batch_size).epoch(epoch)
        return {i: p for b in batches for i, p in zip(b.indices.tolist(), b.pixels, strict=True)}

    small, large, later = pixels(8, 0), pixels(24, 0), pixels(8, 1)
    assert all(torch.equal(small[i], large[i]) for i in range(48))
    assert sum(torch.equal(small[i], later[i]) for i in range(48)) < 5


def test_the_global_generators_are_left_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(loader(num_workers=1).epoch(0))
    list(loader().epoch(0))
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_groups_are_labels_or_else_equal_for_equal_captions():
    seen = set()
    for batch in loader(Labelled(), 20).epoch(0):
        assert torch.equal(batch.groups, batch.indices % 3)
        seen |= {(g, get_tokenizer().decode(t)) for g, t in zip(batch.groups.tolist(), batch.tokens, strict=True)}
    assert seen == {(n, f"{word} {c}") for n, c in enumerate(Labelled.classnames) for word in ("a", "the")}

    class Twins(Pictures):
        """Captions that say the same in other letters, and labels that are not what they say."""

        classnames = ("x", "y")

        def __getitem__(self, index):
            caption = ("A  Cat", "a cat", "a dog", "a longer caption of a cat")[index % 4]
            return Example(self.png(index), (caption,), label=index % 2)

    groups = {}
    for batch in loader(Twins(), 5).epoch(0):
        for index, group in zip(batch.indices.tolist(), batch.groups.tolist(), strict=True):
            groups.setdefault(index % 4, set()).add(group)
            assert group < 0
    assert groups[0] == groups[1]
    assert all(len(values) == 1 for values in groups.values())
    assert len(groups[0] | groups[2] | groups[3]) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_examples_are_replaced_and_counted(workers):
    bad = {3: "missing", 17: "empty", 30: "no_caption", 31: "empty"}
    ours = loader(Pictures(bad=bad), 10, num_workers=workers)
    batches = list(ours.epoch(0))
    assert len(batches) == 5
    indices = torch.cat([batch.indices for batch in batches])
    assert len(indices) == 50
    assert not set(indices.tolist()) & set(bad)
    assert ours.skipped["missing"] >= 1
    assert ours.skipped["empty"] >= 2
    assert ours.skipped["no_caption"] >= 1
    assert 4 <= ours.skipped.total() <= 5
    first = dict(ours.skipped)
    list(ours.epoch(0))
    assert dict(ours.skipped) == first


def test_too_many_bad_examples_stop_the_epoch():
    bad = {i: "empty" if i % 20 else "missing" for i in range(0, 1000, 5)}
    batches = loader(Pictures(1000, bad), 50).epoch(0)
    next(batches)  # 50 examples are too few to judge by, 100 are not
    with pytest.raises(
        UserError, match=r"^pictures: \d+ of 1[12]\d examples could not be used, more than 10%: empty \d+, mi"
    ):
        next(batches)
    tolerant = loader(Pictures(1000, bad), 50, max_skipped=0.3)
    assert sum(len(batch.indices) for batch in tolerant.epoch(0)) == 1000
    assert abs(tolerant.skipped.total() - 250) < 40
    assert abs(tolerant.skipped["missing"] / tolerant.skipped.total() - 0.25) < 0.1


def spoilt(shares, batch_size=50):
    """Pictures of which these shares of each batch of epoch 0 are bad."""
    order = [batch.indices for batch in islice(loader(Pictures(1000), batch_size).epoch(0), len(shares))]
    chosen = [indices[: round(share * batch_size)] for indices, share in zip(order, shares, strict=True)]
    return Pictures(1000, dict.fromkeys(torch.cat(chosen).tolist(), "empty"))


def stopped(batches):
    """How many batches came, and what the epoch was ended by."""
    came = []
    with pytest.raises(UserError) as caught:
        came.extend(batch.indices for batch in batches)
    return len(came), str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_gone_on_with_is_judged_as_a_whole_one(workers):
    source = spoilt([0.08, 0.04, 0.16, 0.3])
    came, message = stopped(loader(source, 50).epoch(0))
    assert came == 3
    for start in (1, 2, 3):
        begun = loader(source, 50, num_workers=workers)
        batches = begun.epoch(0)
        for _ in range(start):
            next(batches)
        skipped = dict(begun.skipped)  # whatever the workers have made ahead
        assert stopped(loader(source, 50).epoch(0, start, skipped)) == (came - start, message)
    assert stopped(loader(source, 50).epoch(0, 3))[1] != message  # judged by what came since
    assert len(list(islice(loader(source, 50).epoch(0, 4), 3))) == 3


def test_parts_are_judged_together():
    """Bad examples that all lie in the rows of one part, enough to stop it by itself, or not enough for both."""
    source, meeting, said = spoilt([0.08, 0.04, 0.16, 0.3]), threading.Barrier(2, timeout=60), {}
    counts = [0, 0]

    def run(which):
        def total(own):
            counts[which] = own
            meeting.wait()
            both = sum(counts)
            meeting.wait()
            return both

        said[which] = stopped(loader(source, 50, part=(which, 2), total=total).epoch(0))

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    came, message = stopped(loader(source, 50).epoch(0))
    assert said[0][0] == said[1][0] == came
    assert said[0][1].rpartition(":")[0] == said[1][1].rpartition(":")[0] == message.rpartition(":")[0]
    assert said[0][1].endswith(" in this process")


def test_a_small_set_is_judged_at_the_end_of_the_epoch():
    ours = loader(Pictures(30, dict.fromkeys(range(6), "empty")), 10)
    with pytest.raises(UserError, match=r"pictures: (\d+) of \d+ .*: empty \1$"):
        list(ours.epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_one_line(workers):
    for bad, message in (
        (dict.fromkeys(range(50), "empty"), "pictures: 100 examples in a row could not be used: empty 100"),
        (dict.fromkeys(range(50), "fatal"), "the disk is gone"),
    ):
        with pytest.raises(UserError) as caught:
            list(loader(Pictures(bad=bad), num_workers=workers).epoch(0))
        assert str(caught.value) == message


def test_batch_sizes_that_cannot_be():
    for size in (0, -1, 51):
        with pytest.raises(UserError, match=f"pictures has 50 examples: .*, not {size}"):
            loader(batch_size=size)


def _interrupted(errors, answers, number):
    os.setsid()
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count, seen = 0, []
    for _ in loader(batch_size=1, num_workers=1).epoch(0):
        if count == 0:
            signal.signal(number, lambda *_: seen.append(1))
            subprocess.run(["kill", "-s", number.name[3:], "--", f"-{os.getpgrp()}"], check=False)  # not by this one
        count += 1
    answers.put((count, len(seen)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_leaves_the_workers_to_the_main_process(tmp_path, number):
    """Ctrl-C goes to all processes of a terminal; one that handles it must still get its batches."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_interrupted, args=(tmp_path / "errors", answers, number))
    process.start()
    process.join(60)
    assert process.exitcode == 0, (tmp_path / "errors").read_text()
    assert answers.get() == (50, 1)
    assert "Traceback" not in (tmp_path / "errors").read_text()


def _ended():
    batches = loader(batch_size=1, num_workers=1).epoch(0)
    next(batches)
    sys.modules["kept"] = batches


def test_a_process_that_ends_in_the_middle_of_an_epoch_ends_its_workers():
    process = multiprocessing.get_context("fork").Process(target=_ended)
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


def _full(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def _none(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "instead"), [("default_collate", _full), ("_can_share", lambda: False), ("multiprocessing.Lock", _none)]
)
def test_batches_are_the_same_without_shared_memory(monkeypatch, name, instead):
    reference = list(loader(num_workers=1).epoch(1))
    monkeypatch.setattr(f"diffclip.data.loading.workers.{name}", instead)
    found = list(loader(num_workers=1).epoch(1))
    assert all_same(found, reference)
    assert not any(batch.pixels.is_shared() for batch in found)


def _with_few_descriptors(answers):
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    batches = list(loader(batch_size=1, num_workers=2).epoch(0))  # kept: each has memory of its own
    answers.put(len(batches))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux shows them")
def test_batches_take_no_descriptors_where_few_are_allowed():
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_with_few_descriptors, args=(answers,))
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0
    assert answers.get() == 50


class Deadly(Pictures):
    def __getitem__(self, index):
        os._exit(9)


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match=r"a worker process died, .*shm-size"):
        list(loader(Deadly(), num_workers=1).epoch(0))


def test_what_is_pinned_keeps_its_counts(monkeypatch):
    """torch pins a Counter by adding it to itself, and leaves a dataclass without `pin_memory` as it is."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor.clone())
    batch = next(Loader(Pictures(), TrainTransform(16), get_tokenizer(), 4, seed=0).epoch(0))
    item = loading._Good(batch, Counter(bad=3))
    found = pin_memory(item)
    assert found.skipped == {"bad": 3}
    assert len(pinned) == 4
    assert found.batch.pixels is not batch.pixels
    assert torch.equal(found.batch.tokens, batch.tokens)


@pytest.mark.parametrize(
    ("device", "processes", "megabytes", "expected"),
    [
        ("cpu", 1, 1, 2),
        ("cuda", 1, 1, 16),  # of 24 cores
        ("cuda", 2, 1, 12),
        ("cuda", 8, 1, 3),
        ("cuda", 24, 1, 2),
        ("cuda", 1, 100, 10),  # 4,000 MB, of which half may hold two batches of each
        ("cuda", 2, 100, 5),
        ("cuda", 1, 2000, 2),
    ],
)
def test_workers_that_no_recipe_states_are_those_of_the_cores_and_of_shared_memory(
    device, processes, megabytes, expected, monkeypatch
):
    monkeypatch.setattr(module, "processors", lambda: 24)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4000 * 10**6))
    assert module.worker_count(torch.device(device), processes, megabytes * 10**6) == expected
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.stat("/there is none"))
    assert module.worker_count(torch.device(device), processes, 1) == 2

"""The processes that work together: rank, world size, collectives, and the device of each.

`torchrun` starts them; each has one device. Alone, a process is a world of one, and nothing is sent.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from diffclip.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that work together, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def rows_per_rank(self, batch_size: int) -> int:
        """Rows of a batch that each process has. Raises UserError where they cannot be shared out equally."""
        if batch_size % self.size:
            raise UserError(
                f"training.batch_size = {batch_size} is that of all processes together, and {self.size} of them cannot "
                f"share it equally: give a multiple of {self.size}, or start another number of processes"
            )
        return batch_size // self.size

    def all_gather(self, rows: Tensor) -> Tensor:
        """(b, …) of each process → (size·b, …), in their order, on all."""
        if self.size == 1:
            return rows
        everything = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        dist.all_gather(list(everything.chunk(self.size)), rows.contiguous())
        return everything

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """(size·b, …) on each → the sum over processes of this one's rows, (b, …): the gradient of `gather`."""
        if self.size == 1:
            return rows
        own = rows.new_empty(len(rows) // self.size, *rows.shape[1:])
        dist.reduce_scatter(own, [part.contiguous() for part in rows.chunk(self.size)])
        return own

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, in place; not finite where any is not."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def sum_where(self, chosen: Tensor, values: Tensor) -> Tensor:
        """The values, summed over processes where they are chosen; the others are the same on all. `chosen` is too."""
        if self.size == 1 or not chosen.any():
            return values
        return torch.where(chosen.to(values.device), self.size * self.mean(values.clone()), values)

    def total(self, count: int, device: torch.device) -> int:
        """The sum of a whole number over processes."""
        if self.size == 1:
            return count
        value = torch.tensor(count, device=device)
        dist.all_reduce(value)
        return int(value)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return self.total(int(flag), device) > 0

    def all_gather_objects(self, item: T) -> list[T]:
        """The item of each process, in their order, on all."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def own_items(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items that are this process's turn."""
        return items[self.rank :: self.size]

    def gather_in_order(self, results: Sequence[T] | UserError, first: int = 0) -> list[T]:
        """What each process made at its `turns` → all results in their order, on all; an error of any is raised in all.

        first: the number of the first item, where others came before.
        """
        each: list[list[T]] = []
        for item in self.all_gather_objects(results):
            if isinstance(item, UserError):
                raise UserError(*item.args)
            each.append(list(item))
        ordered = [iter(items) for items in each]
        return [next(ordered[number % self.size]) for number in range(first, first + sum(map(len, each)))]

    def broadcast(self, item: T) -> T:
        """The item of rank 0, on all."""
        items = [item]
        if self.size > 1:
            dist.broadcast_object_list(items)
        return items[0]

    def scatter(self, tensor: Tensor | None, like: Any) -> Tensor:
        """A tensor of rank 0, None elsewhere → this process's part of it, laid out as `like`, of its size and dtype."""
        whole = (
            torch.empty(like.shape, dtype=like.dtype, device=like.device) if tensor is None else tensor.to(like.device)
        )
        if self.size > 1:
            dist.broadcast(whole, 0)
        if not hasattr(like, "placements"):
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def barrier(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def get_world() -> World:
    """The processes that this one has joined; a world of one where it has not."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


@contextmanager
def joined() -> Iterator[World]:
    """Inside the `with`, the processes that torchrun started are a world; without torchrun this one is alone.

    They talk by NCCL on GPUs and by gloo on CPUs. Raises UserError where there are fewer GPUs than processes.
    """
    if not dist.is_torchelastic_launched():
        yield World()
        return
    device = default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # torchrun's store outlives a restart, and with it the addresses of the processes that died.
    store, rank, size = next(rendezvous("env://"))
    store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    yield get_world()
    dist.destroy_process_group()  # not after an exception: the others may be waiting, and the process ends anyway


def processes_here() -> int:
    """How many of the processes that torchrun has started share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def default_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none.

    Raises UserError where torchrun has started more processes here than there are GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if place >= count:
        raise UserError(
            f"process {place} of this machine has no GPU, there are {count}: torchrun --nproc-per-node {count}"
        )
    return torch.device("cuda", place)

"""Several processes that train one model: who they are, what they tell each other, how the model lies on them.

`torchrun` starts them; each has one device and its own rows of every batch. Weights are either on all (DDP) or in
shards (FSDP2); what a process computes is the same in both. Alone, a process is a world of one, and nothing is sent.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from diffclip.errors import UserError
from diffclip.models.clip import CLIP

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that work together, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Rows of a batch that each process has. Raises UserError where they cannot be shared out equally."""
        if batch_size % self.size:
            raise UserError(
                f"training.batch_size = {batch_size} is that of all processes together, and {self.size} of them cannot "
                f"share it equally: give a multiple of {self.size}, or start another number of processes"
            )
        return batch_size // self.size

    def gather(self, rows: Tensor) -> Tensor:
        """(b, …) of each process → (size·b, …), in their order, on all."""
        if self.size == 1:
            return rows
        everything = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        dist.all_gather(list(everything.chunk(self.size)), rows.contiguous())
        return everything

    def sum_of_rows(self, rows: Tensor) -> Tensor:
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

    def gather_objects(self, item: T) -> list[T]:
        """The item of each process, in their order, on all."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def turns(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items that are this process's turn."""
        return items[self.rank :: self.size]

    def in_turn(self, results: Sequence[T] | UserError, first: int = 0) -> list[T]:
        """What each process made at its `turns` → all results in their order, on all; an error of any is raised in all.

        first: the number of the first item, where others came before.
        """
        each: list[list[T]] = []
        for item in self.gather_objects(results):
            if isinstance(item, UserError):
                raise UserError(*item.args)
            each.append(list(item))
        ordered = [iter(items) for items in each]
        return [next(ordered[number % self.size]) for number in range(first, first + sum(map(len, each)))]

    def from_main(self, item: T) -> T:
        """The item of rank 0, on all."""
        items = [item]
        if self.size > 1:
            dist.broadcast_object_list(items)
        return items[0]

    def sent(self, tensor: Tensor | None, like: Any) -> Tensor:
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

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def world() -> World:
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
    yield world()
    dist.destroy_process_group()  # not after an exception: the others may be waiting, and the process ends anyway


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


class Replicated:
    """A model on every process, whose gradients are averaged over them (DDP); alone, the model itself."""

    def __init__(self, model: CLIP, world: World, device: torch.device) -> None:
        self._model = model
        ids = [device.index] if device.type == "cuda" else None
        self._ddp = (
            DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True) if world.size > 1 else None
        )
        self.forward: nn.Module = self._ddp or model

    def accumulating(self) -> AbstractContextManager[None]:
        """Inside the `with`, gradients stay where they are, to be sent with those of a later backward pass."""
        return self._ddp.no_sync() if self._ddp else nullcontext()

    def finish(self) -> None:
        """After the backward passes of a step."""

    def plain(self) -> CLIP:
        """The model as one process by itself has it."""
        return self._model


class Sharded:
    """A model of which every process keeps one part: weights, gradients and the optimizer's moments (FSDP2).

    Each block's weights are gathered before it runs and dropped after it. Numbers without dimensions, such as the
    temperature, cannot be cut and stay on all. Each tower can be run by itself, by all processes together.
    """

    def __init__(self, model: CLIP, world: World, device: torch.device) -> None:
        from torch.distributed.fsdp import fully_shard  # takes a second to import

        # A tower's output is a view, its class token; nothing is done to it in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        self._world, self._model = world, model
        self._scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        for tower in (model.visual, model.text):
            for block in tower.blocks:
                fully_shard(block)
            fully_shard(tower)
        fully_shard(model, ignored_params=set(self._scalars))
        self.forward: nn.Module = model

    def accumulating(self) -> AbstractContextManager[None]:
        """Nothing waits: gradients that are not sent would have the size of the whole model."""
        return nullcontext()

    def finish(self) -> None:
        for scalar in self._scalars:
            if scalar.grad is not None:
                self._world.mean(scalar.grad)

    def plain(self) -> CLIP:
        """A copy of the model with all its weights, made by all processes together."""
        with torch.device("meta"):
            copy = CLIP(self._model.config)
        copy.to_empty(device=self._scalars[0].device)
        with torch.no_grad():
            for own, tensor in zip(copy.parameters(), self._model.parameters(), strict=True):
                own.copy_(whole(tensor))
        return copy


Layout = Literal["ddp", "fsdp"]


def laid_out(model: CLIP, layout: Layout, world: World, device: torch.device) -> Replicated | Sharded:
    """The model as the recipe wants it on the processes; one alone has nothing to share."""
    return Sharded(model, world, device) if layout == "fsdp" and world.size > 1 else Replicated(model, world, device)


def own_part(tensor: Tensor) -> Tensor:
    """The part that this process has of a tensor; the tensor itself where it is not in shards."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process may have a part only → all of it. All processes call it together."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full

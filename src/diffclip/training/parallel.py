"""How a model lies on several processes: replicated on all (DDP), or in shards (FSDP2).

Each process has its own rows of every batch. What it computes is the same in both.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffclip.distributed import World
from diffclip.models.clip import CLIP
from diffclip.models.library import Trainable


class Replicated:
    """A model on every process, whose gradients are averaged over them (DDP); alone, the model itself."""

    def __init__(self, model: Trainable, world: World, device: torch.device) -> None:
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

    def plain(self) -> Trainable:
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
                own.copy_(full_tensor(tensor))
        return copy


Layout = Literal["ddp", "fsdp"]


def parallelize(model: Trainable, layout: Layout, world: World, device: torch.device) -> Replicated | Sharded:
    """The model as the recipe wants it on the processes; one alone has nothing to share."""
    if layout == "fsdp" and world.size > 1:
        assert isinstance(model, CLIP)  # the recipe was checked
        return Sharded(model, world, device)
    return Replicated(model, world, device)


def local_tensor(tensor: Tensor) -> Tensor:
    """The part that this process has of a tensor; the tensor itself where it is not in shards."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor of which every process may have a part only → all of it. All processes call it together."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full

"""Batches whose pixels are on the GPU already: each is copied while the step before it runs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from diffclip.data.loading.loader import Batch
from diffclip.errors import UserError
from diffclip.training.loop import Batches


class Ahead:
    """The batches of a loader, one of them ahead, which takes the memory of one more batch of pixels on the GPU.

    Pixels alone are sent: the ends of texts, shared captions and indices are looked for on the CPU, without waiting for
    the GPU. `skipped` is what the loader had skipped when it gave the batch that was given last.
    """

    def __init__(self, loader: Batches, device: torch.device) -> None:
        self.skipped: Counter[str] = Counter()
        self._loader, self._device = loader, device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def epoch(self, epoch: int, start: int = 0, skipped: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, … of an epoch. An error of the loader comes after the batches before it."""
        batches: Iterator[Batch] = self._loader.epoch(epoch, start, skipped)
        sent: Batch | None = None
        failed: UserError | None = None
        self.skipped = Counter(skipped or {})
        while True:
            try:
                coming = next(batches, None)
            except UserError as error:
                coming, failed = None, UserError(*error.args)  # a new one, as in Loader.epoch
            counted = Counter(self._loader.skipped)
            # What is to be given now is waited for before the next copy is asked for, or it would be waited for too.
            given = None if sent is None else self._received(sent)
            sent = None if coming is None else self._sent(coming)
            if given is not None:
                yield given
            self.skipped = counted
            if failed is not None:
                raise failed
            if sent is None:
                return

    def _sent(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._side):
            return replace(batch, pixels=batch.pixels.to(self._device, non_blocking=True))

    def _received(self, batch: Batch) -> Batch:
        """The batch, for the stream in which the step computes."""
        step = torch.cuda.current_stream(self._device)
        step.wait_stream(self._side)
        batch.pixels.record_stream(step)  # or its memory could be given away while the step still reads it
        return batch

"""What a step of a stage changes: which parts are trained, at which rates, and what a checkpoint holds of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from diffclip import durable
from diffclip.data.transforms import normalise
from diffclip.distributed import default_device, get_world
from diffclip.errors import UserError
from diffclip.training import checkpoint
from diffclip.training.monitor import Monitor
from diffclip.training.step import Schedule, autocast_dtype
from diffclip.vlm import model as models
from diffclip.vlm.conversation import UNLEARNED
from diffclip.vlm.loading import Batch
from diffclip.vlm.recipe import Stage, VlmRecipe
from diffclip.vlm.words import Words, answers_have, word_losses, word_tokens

TRAINED = "trained.safetensors"
"""In the folder of a finished stage: what it trained."""
MEASURED = 8  # conversations of which the loss with another's image is measured
BETAS, EPS = (0.9, 0.999), 1e-8


class VlmState:
    """What a step of a stage changes: see `training.loop.State`, which drives it."""

    config = None

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        recipe: VlmRecipe,
        stage: Stage,
        schedule: Schedule,
        words: Words | None = None,
    ) -> None:
        """words: of a stage that learns words, see `vlm.words`."""
        self.world, self.device, self.schedule = get_world(), default_device(), schedule
        self.dtype = autocast_dtype(stage.precision, self.device)
        self.model, self._recipe, self._stage = model, recipe, stage
        self._words = None if words is None else words.to(self.device)
        if stage.lora_rank:
            models.lora_layers(model, stage.lora_rank, recipe.seed)
        models.set_trained(model, recipe, stage.train, encoder_blocks=stage.encoder_blocks)
        # What is trained is kept in float32; what is not, in the precision in which it came, where that is computed in.
        for parameter in model.parameters():
            if parameter.requires_grad or self.dtype is None:
                parameter.data = parameter.data.float()
        model.to(self.device).eval()  # nothing in it behaves otherwise while it is trained
        self._frozen = _digest(model)
        self.optimizer = torch.optim.AdamW(self._groups(), betas=BETAS, eps=EPS, fused=True)
        settings = models.image_settings(model)
        self._mean, self._std = settings.image_mean, settings.image_std
        self._yes, self._no = (_first_token(tokenizer, word) for word in ("Yes", "No"))

    def _groups(self) -> list[dict[str, Any]]:
        """A group for each rate, with and without decay; each knows its peak."""
        stage, groups = self._stage, dict[tuple[float, bool], list[nn.Parameter]]()
        for name, parameter in models.trainable(self.model):
            language = "language_model" in name or name.startswith("lm_head")
            rate = stage.language_lr if language else stage.encoder_lr if "vision_tower" in name else 0.0
            groups.setdefault((rate or stage.lr, parameter.ndim >= 2), []).append(parameter)
        return [
            {"params": params, "lr": rate, "peak": rate, "weight_decay": stage.weight_decay if matrices else 0.0}
            for (rate, matrices), params in groups.items()
        ]

    def step(self, number: int, batch: Batch) -> tuple[float, float]:
        """One step on this rank's conversations. The loss is the mean over the answer tokens of the whole batch.

        So neither micro-batches nor the number of processes change it.
        """
        factor = _factor(number, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        learned = self.world.total(batch.learned, self.device)
        total = 0.0
        for part in batch.split(self._stage.micro_batch or len(batch.ids)):
            losses, _ = self._losses(part)
            if losses.requires_grad:  # a connector alone learns nothing from text
                torch.autograd.backward(losses.sum() / learned * self.world.size)
            total += float(losses.sum().detach())
        loss = float(self.world.mean(torch.tensor(total / learned * self.world.size)))
        if math.isfinite(loss):
            parameters = [parameter for _, parameter in models.trainable(self.model)]
            for parameter in parameters if self.world.size > 1 else ():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                self.world.mean(parameter.grad)
            self._norm = float(nn.utils.clip_grad_norm_(parameters, self._stage.clip_norm))
            if math.isfinite(self._norm):
                self.optimizer.step()
        return loss, self._stage.lr * factor

    def _losses(self, batch: Batch, *, others: bool = False) -> tuple[Tensor, Tensor]:
        """Losses and logits of the learned tokens; others: every image is that of another conversation."""
        ids, mask, labels = (tensor.to(self.device) for tensor in (batch.ids, batch.mask, batch.labels))
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            features = self._features(batch)
            if others and features is not None:
                features = features.roll(1, 0)
            if self._words is not None:
                assert features is not None  # the reader leaves out what has no image
                have = answers_have(labels, self._words)
                table = self.model.get_input_embeddings().weight.detach()
                return torch.cat(word_losses(features, table, self._words, *have), 1), have[0]
            states = models.hidden_states(self.model, ids, mask, features)
            return models.answer_losses(self.model, states, labels)

    def _features(self, batch: Batch) -> Tensor | None:
        """(images, tokens, width), of pixels or of words in their place."""
        if batch.symbols is not None and batch.amounts is not None:
            table = self.model.get_input_embeddings().weight.detach()
            return word_tokens(table, batch.symbols.to(self.device), batch.amounts.to(self.device))
        if batch.pixels is None:
            return None
        return models.image_features(self.model, normalise(batch.pixels.to(self.device), self._mean, self._std))

    def figures(self) -> dict[str, Any]:
        return {"norm_before_clipping": self._norm}

    @torch.no_grad()
    def statistics(self, batch: Batch) -> dict[str, Any]:
        """Does it look? The loss of a few conversations with their own images and with each other's.

        And of answers by yes and no: how many it would answer by yes, and how many by neither, the words before being
        the right ones.
        """
        few = next(batch.split(MEASURED if self._words is None else len(batch.ids)))
        own, logits = self._losses(few)
        measured: dict[str, Any] = {"loss_own_image": float(own.mean())}
        if len(few.ids) > 1 and (few.symbols is not None or few.with_image.sum() > 1):
            measured["loss_other_image"] = float(self._losses(few, others=True)[0].mean())
        if self._words is not None:
            return measured
        labels = few.labels[:, 1:][few.labels[:, 1:] != UNLEARNED].to(self.device)
        asked = (labels == self._yes) | (labels == self._no)
        if asked.any():
            said = logits[asked].argmax(-1)
            measured["yes_ratio"] = float((said == self._yes).float().mean())
            measured["unparsed"] = float(((said != self._yes) & (said != self._no)).float().mean())
            measured["yes_no_accuracy"] = float((said == labels[asked]).float().mean())
        return measured

    def monitor(self, batch_size: int) -> Monitor:
        return Monitor(batch_size=None, warmup_steps=self.schedule.warmup_steps)

    @contextmanager
    def evaluated(self) -> Iterator[LlavaForConditionalGeneration]:
        yield self.model

    def tensors(self) -> checkpoint.Tensors:
        """What is trained, its moments, and the SHA-256 of all that is not."""
        trained = {name: parameter.detach() for name, parameter in models.trainable(self.model)}
        moments = {
            f"{key}.{name}": torch.as_tensor(value)
            for name, parameter in models.trainable(self.model)
            for key, value in self.optimizer.state[parameter].items()
        }
        return {"trained": trained, "optimizer": moments, "frozen": {"sha256": self._frozen}}

    def restore(self, run: Path) -> dict[str, Any] | None:
        """As `checkpoint.restore`. Raises UserError where what is not trained has changed since."""
        state, tensors = checkpoint.newest(run) if self.world.is_main else (None, None)
        state = self.world.broadcast(state)
        if state is None:
            return None
        files = self.world.broadcast(tensors)
        assert files is not None
        self._check_frozen(files["frozen"]["sha256"], run)
        self._load(files["trained"], run)
        for name, parameter in models.trainable(self.model):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = files["optimizer"][f"{key}.{name}"]
                self.optimizer.state[parameter][key] = value.to(self.device)
        return state

    def _check_frozen(self, digest: Tensor, run: Path) -> None:
        if not torch.equal(digest, self._frozen):
            raise UserError(
                f"the encoder or the language model has changed since {run} was written: put it back, or begin again "
                "with another --out"
            )

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor], run: Path) -> None:
        for name, parameter in models.trainable(self.model):
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise UserError(f"what {run} holds is of another model ({name}): resume with its recipe")
            parameter.copy_(tensors[name])

    def save(self, run: Path) -> None:
        """What the stage has trained, for the stages after it."""
        if self.world.is_main:
            trained = {name: parameter.detach().cpu() for name, parameter in models.trainable(self.model)}
            durable.write_tensors(run / TRAINED, trained | {"frozen.sha256": self._frozen})

    def load_finished(self, run: Path) -> None:
        """Take what the finished stage in `run` has trained."""
        tensors = load_file(run / TRAINED)
        self._check_frozen(tensors["frozen.sha256"], run)
        self._load(tensors, run)

    def end(self) -> None:
        """Leave the stage: adapters become part of the weights that they adapt."""
        if self._stage.lora_rank:
            models.merge_lora(self.model)


def _factor(number: int, schedule: Schedule) -> float:
    """Share of the peak rate at step `number`, from 0: a linear rise, then half a cosine to 0."""
    if number < schedule.warmup_steps:
        return (number + 1) / schedule.warmup_steps
    done = (number - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


def _digest(model: nn.Module) -> Tensor:
    """The SHA-256 of everything that is not trained, (32,) uint8."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _first_token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    return int(tokenizer(word, add_special_tokens=False)["input_ids"][0])

"""Answers to questions about images, greedy, one at a time or in batches, which give the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase, TextStreamer

from diffclip.data.images import decode, to_rgb
from diffclip.data.transforms import normalise
from diffclip.errors import UserError
from diffclip.vlm import model as models
from diffclip.vlm.conversation import prompt

Picture = bytes | NDArray[np.uint8] | Image.Image


@dataclass(frozen=True)
class VisionLanguageModel:
    """A trained model, in evaluation mode, with its tokenizer."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase

    def pixels(self, images: Sequence[Picture]) -> Tensor:
        """Images → (B, 3, S, S) float32, normalised. Raises `images.BadImage`."""
        settings = models.image_settings(self.model)
        transform = settings.transform
        arrays = (to_rgb(image) if isinstance(image, Image.Image) else decode(image) for image in images)
        stacked = torch.stack([transform(array) for array in arrays])
        return normalise(stacked.to(self.model.device), settings.image_mean, settings.image_std)

    def rows(self, questions: Sequence[str]) -> list[list[int]]:
        """Questions about an image each → their ids, the image's among them. Raises UserError where one is too long."""
        rows = [
            prompt(self.tokenizer, question, image_tokens=models.image_tokens(self.model)) for question in questions
        ]
        longest = max(map(len, rows))
        limit = getattr(self.model.config.text_config, "max_position_embeddings", longest)
        if longest > limit:
            raise UserError(f"a question has {longest} tokens with its image, but the language model reads {limit}")
        return rows

    def prompts(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Questions about an image each → ids and mask (B, L), padded at their left. Raises UserError for too long."""
        rows = self.rows(questions)
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)


def load(folder: str | Path, device: torch.device | str = "cpu") -> VisionLanguageModel:
    """The model that `diffclip vlm train` has written. Raises UserError where there is none."""
    model, tokenizer = models.load_folder(Path(folder))
    return VisionLanguageModel(model.to(device), tokenizer)


def answer(
    vlm: VisionLanguageModel,
    images: Sequence[Picture],
    prompts: Sequence[str],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    blind: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """The answer to each prompt about the image of its place, the likeliest token at each step (greedy).

    images: bytes of files, arrays (H, W, 3) uint8 or Pillow images. blind: the language model sees zeros in place of
    the features of images. on_text: is given the text as it comes, of one prompt at a time. Raises UserError where
    there are not as many prompts as images, `images.BadImage` for an image that cannot be decoded.
    """
    if len(images) != len(prompts):
        raise UserError(f"{len(images)} images, but {len(prompts)} prompts: give one to each")
    if on_text is not None and batch_size != 1:
        raise UserError("text is streamed of one prompt at a time: batch_size = 1")
    pairs, texts = iter(zip(images, prompts, strict=True)), list[str]()
    while few := list(islice(pairs, batch_size)):
        pixels = vlm.pixels([image for image, _ in few])
        ids, mask = vlm.prompts([question for _, question in few])
        with _blinded(vlm.model, blind):
            texts += _generated(vlm, ids, mask, max_new_tokens, on_text, pixel_values=pixels)
    return texts


def answer_about(
    vlm: VisionLanguageModel,
    image: Picture,
    prompts: Sequence[str],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    blind: bool = False,
) -> list[str]:
    """The answers that `answer` gives to each prompt about one image, which the language model reads once for all.

    What prompts begin with, the image among it, is computed once and kept; questions of equal length follow together.
    Raises as `answer` does.
    """
    if len(prompts) < 2:
        return answer(vlm, [image] * len(prompts), prompts, max_new_tokens=max_new_tokens, blind=blind)
    rows = vlm.rows(prompts)
    shared = min(len(row) for row in rows) - 1
    while any(row[:shared] != rows[0][:shared] for row in rows):
        shared -= 1
    with torch.no_grad(), _blinded(vlm.model, blind):
        begun = vlm.model(
            input_ids=torch.tensor([rows[0][:shared]], device=vlm.model.device),
            pixel_values=vlm.pixels([image]),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
    texts: dict[int, str] = {}
    for length in sorted({len(row) for row in rows}):
        places = (place for place, row in enumerate(rows) if len(row) == length)
        while few := list(islice(places, batch_size)):
            kept = copy.deepcopy(begun)
            kept.batch_repeat_interleave(len(few))
            ids = torch.tensor([rows[place] for place in few], device=vlm.model.device)
            made = _generated(vlm, ids, torch.ones_like(ids), max_new_tokens, None, cache=kept)
            texts.update(zip(few, made, strict=True))
    return [texts[place] for place in range(len(rows))]


@torch.no_grad()
def _generated(
    vlm: VisionLanguageModel,
    ids: Tensor,
    mask: Tensor,
    longest: int,
    on_text: Callable[[str], None] | None,
    **given: Any,
) -> list[str]:
    """What follows ids (B, L), as text; given: the pixels, or what is kept of the tokens before."""
    streamer = _Streamer(vlm.tokenizer, on_text) if on_text is not None else None
    made = vlm.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=vlm.tokenizer.eos_token_id,
        streamer=streamer,
        **given,
    )
    return [text.strip() for text in vlm.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)]


class _Streamer(TextStreamer):  # type: ignore[misc]
    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


@contextmanager
def _blinded(model: LlavaForConditionalGeneration, blind: bool) -> Iterator[None]:
    """Inside the `with`, the connector gives zeros where it is to be blind."""
    if not blind:
        yield
        return
    hook = model.model.multi_modal_projector.register_forward_hook(lambda _m, _i, features: torch.zeros_like(features))
    try:
        yield
    finally:
        hook.remove()


def first_token_map(vlm: VisionLanguageModel, image: Picture, question: str) -> tuple[NDArray[np.float64], str]:
    """Which patches the answer's first token is read from: (rows, columns), summing to 1, and the answer.

    The attention of the last position of the prompt to the image's tokens, averaged over layers and heads: where the
    language model looks when it begins to answer, not why it answers so.
    """
    text = answer(vlm, [image], [question], batch_size=1)[0]
    ids, mask = vlm.prompts([question])
    before = vlm.model.config.text_config._attn_implementation
    vlm.model.model.language_model.set_attn_implementation("eager")  # the only one that keeps its maps
    try:
        with torch.no_grad():
            out = vlm.model(
                input_ids=ids, attention_mask=mask, pixel_values=vlm.pixels([image]), output_attentions=True
            )
    finally:
        vlm.model.model.language_model.set_attn_implementation(before)
    rows = torch.stack([layer[0, :, -1].mean(0) for layer in out.attentions]).mean(0)  # (L,)
    own = rows[ids[0] == vlm.model.config.image_token_id]
    side = int(len(own) ** 0.5)
    return (own / own.sum()).reshape(side, side).double().cpu().numpy(), text

"""Folders of transformers: CLIP as a `CLIP` where it can be one, SigLIP, ALIGN, BLIP and the like as they are.

Nothing that a folder holds is run. Pixels are made as its preprocessor_config.json says, and compared once with what
its own processor makes; texts are read by its own tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffclip.data.transforms import normalise
from diffclip.errors import UserError
from diffclip.models.image_settings import Colours, ImageSettings
from diffclip.models.weights.files import CONFIG_NAME, read_json
from diffclip.models.weights.folder_tokenizer import FolderTokenizer
from diffclip.models.wrapped import Recorder, Wrapped

FAMILIES = ("clip", "siglip", "align", "altclip", "chinese_clip", "blip", "metaclip_2")
READ_AT_THE_CLASS_TOKEN = ("clip", "altclip", "chinese_clip", "blip", "metaclip_2")
"""SigLIP pools by attention, ALIGN has no attention in its image tower."""
RETRIEVAL = "BlipForImageTextRetrieval"


def is_one(path: Path) -> bool:
    """Whether transformers wrote a file of weights: config.json beside it has a model_type, and is not ours."""
    file = path.with_name(CONFIG_NAME)
    if path.name.startswith("open_clip") or not file.is_file():
        return False
    content = read_json(file)
    return isinstance(content.get("model_type"), str) and not isinstance(content.get("model"), dict)


class Folder:
    """A folder of transformers, read. Raises UserError for a family that is not known here, or a broken folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kind = folder, read_json(folder / CONFIG_NAME)["model_type"]
        if self.kind not in FAMILIES:
            raise UserError(f"{folder} is transformers' {self.kind}: of its models {', '.join(FAMILIES)} can be read")
        try:
            import transformers
        except ImportError:
            raise UserError(f"{folder} is a folder of transformers: pip install 'diffclip[vlm]'") from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._transformers = transformers
        self.config = self._read(transformers.AutoConfig)
        self.text, self.vision = self.config.text_config, self.config.vision_config
        self.settings = self._image_settings()
        self.tokenizer = self._tokenizer()

    def _read(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:  # of a dozen types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.folder}: {kind.__name__} cannot read it: {reason[:300]}") from None

    def _image_settings(self) -> ImageSettings:
        processor = self._read(self._transformers.AutoImageProcessor)
        size, cut = dict(processor.size or {}), dict(processor.crop_size or {}) if processor.do_center_crop else {}
        edges = {edge for edge in size.values() if edge}
        final = {edge for edge in cut.values() if edge} or edges
        wrong = f"{self.folder}: preprocessor_config.json asks for what is not obeyed here"
        if len(edges) != 1 or len(final) != 1:
            raise UserError(f"{wrong}: size {size}, crop_size {cut}; images must become square")
        resample = int(processor.resample)
        if resample not in (2, 3):
            raise UserError(f"{wrong}: resample = {resample}; 2 (bilinear) and 3 (bicubic) are known")
        (edge,), (image_size,) = edges, final
        settings = ImageSettings(
            image_size=image_size,
            image_mean=_colours(processor.image_mean),
            image_std=_colours(processor.image_std),
            resize="shortest" if "shortest_edge" in size else "squash",
            resize_to=edge if edge != image_size else None,
            interpolation="bicubic" if resample == 3 else "bilinear",
            crop="floor",
        )
        noise = np.random.default_rng(0)
        for shape in ((41, 67, 3), (2 * edge + 3, edge + 8, 3)):
            image = noise.integers(0, 256, shape, dtype=np.uint8)
            ours = normalise(settings.transform(image), settings.image_mean, settings.image_std)
            theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
            if theirs.shape != ours.shape or (theirs - ours).abs().max() > 1e-4:
                raise UserError(f"{wrong}: {type(processor).__name__} makes other pixels of an image than its settings")
        return settings

    def _tokenizer(self) -> FolderTokenizer:
        tokenizer = self._read(self._transformers.AutoTokenizer)
        if tokenizer.padding_side != "right":
            raise UserError(f"{self.folder}: its tokenizer fills texts up on the {tokenizer.padding_side}: not known")
        longest = self.text.max_position_embeddings
        if "roberta" in self.text.model_type or self.kind == "altclip":
            longest -= self.text.pad_token_id + 1  # its positions are counted from there
        longest = min(longest, tokenizer.model_max_length)
        return FolderTokenizer(tokenizer, longest, self.kind in ("clip", "siglip", "metaclip_2"))

    def why_not_ours(self) -> str:
        """What no `CLIP` has, in words; empty where it can be one."""
        if self.kind != "clip":
            return f"the layers of transformers' {self.kind}"
        text, vision, tokenizer = self.text, self.vision, self.tokenizer.tokenizer
        needed = {
            "num_channels": (vision.num_channels, (3,)),
            "vision hidden_act": (vision.hidden_act, ("gelu", "quick_gelu")),
            "text hidden_act": (text.hidden_act, ("gelu", "quick_gelu")),
            "eos_token_id": (text.eos_token_id, (2, text.vocab_size - 1)),
            "the tokenizer's end of a text": (tokenizer.eos_token_id, (text.vocab_size - 1,)),
            "the image size of preprocessor_config.json": (self.settings.image_size, (vision.image_size,)),
        }
        return ", ".join(f"{name} = {value}" for name, (value, known) in needed.items() if value not in known)

    def model_settings(self) -> dict[str, Any]:
        """The fields of ModelConfig, where `why_not_ours` is empty."""
        text, vision = self.text, self.vision
        return vars(self.settings) | {
            "embed_dim": self.config.projection_dim,
            "patch_size": vision.patch_size,
            "vision_width": vision.hidden_size,
            "vision_depth": vision.num_hidden_layers,
            "vision_heads": vision.num_attention_heads,
            "vision_activation": vision.hidden_act,
            "vision_pre_norm": True,
            "vision_norm_eps": vision.layer_norm_eps,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "text_width": text.hidden_size,
            "text_depth": text.num_hidden_layers,
            "text_heads": text.num_attention_heads,
            "text_activation": text.hidden_act,
            "text_norm_eps": text.layer_norm_eps,
            "text_mlp_ratio": text.intermediate_size / text.hidden_size,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
        }

    def wrap(self, why: str) -> Wrapped:
        """transformers' own model. Raises UserError where a weight is missing."""
        retrieval = RETRIEVAL in (self.config.architectures or ())
        kind = getattr(self._transformers, RETRIEVAL) if retrieval else self._transformers.AutoModel
        model, said = self._read(kind, output_loading_info=True, dtype=torch.float32)
        faults = [*said["missing_keys"], *said["mismatched_keys"], *said["unexpected_keys"]]
        if faults:
            raise UserError(f"{self.folder} does not fit its config.json: {', '.join(map(str, faults[:10]))}")
        scale = getattr(model, "logit_scale", None)
        if scale is None:
            value = -model.temperature.detach().log() if hasattr(model, "temperature") else torch.zeros(())
            scale = nn.Parameter(value, requires_grad=False)
        tokenizer = self.tokenizer

        def asked(tokens: Tensor) -> dict[str, Tensor]:
            mask = tokenizer.mask(tokens)
            return {"input_ids": tokens} | ({} if mask is None else {"attention_mask": mask})

        def text(model: Any, tokens: Tensor) -> Tensor:
            if retrieval:
                features: Tensor = model.text_proj(model.text_encoder(**asked(tokens)).last_hidden_state[:, 0])
            else:
                features = model.get_text_features(**asked(tokens)).pooler_output
            return features

        def image(model: Any, pixels: Tensor) -> Tensor:
            if retrieval:
                features: Tensor = model.vision_proj(model.vision_model(pixel_values=pixels).last_hidden_state[:, 0])
            else:
                features = model.get_image_features(pixel_values=pixels).pooler_output
            return features

        def image_maps(model: Any, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
            with _with_maps(model):
                said = model.get_image_features(pixel_values=pixels, output_attentions=True)
            return said.pooler_output, list(said.attentions)

        def text_maps(model: Any, tokens: Tensor) -> list[Tensor]:
            with _with_maps(model):
                return list(model.get_text_features(**asked(tokens), output_attentions=True).attentions)

        shown = self.kind in READ_AT_THE_CLASS_TOKEN and not retrieval
        facts = {
            "model": f"transformers' {type(model).__name__}",
            "why": f"no CLIP of ours has {why}",
            "tokenizer": f"{type(tokenizer.tokenizer).__name__}, at most {tokenizer.longest} tokens",
        }
        return Wrapped(
            model.eval(),
            self.settings,
            tokenizer,
            image=image,
            text=text,
            logit_scale=scale,
            logit_bias=getattr(model, "logit_bias", None),
            facts=facts,
            recorder=Recorder(image_maps, text_maps, self.vision.patch_size) if shown else None,
        )


@contextmanager
def _with_maps(model: Any) -> Iterator[None]:
    """Inside the `with`, transformers computes attention by its maps, which the other ways do not give."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _colours(values: Sequence[float]) -> Colours:
    red, green, blue = map(float, values)
    return red, green, blue

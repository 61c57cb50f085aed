"""Models built of transformers' own classes with fresh weights, which our loop trains: CLIP, SigLIP, BLIP, ALIGN.

Texts are read by CLIP's tokenizer. Temperature and bias are ours: the class's own are taken out.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.models.attention.replace import Form, replace_attention
from diffclip.models.clip import CLIP, MAX_LOGIT_SCALE
from diffclip.models.image_text import ImageTextModel, Tokenize, normalized
from diffclip.models.initialise import INITIAL_LOGIT_SCALE, INITIAL_SIGMOID_SCALE
from diffclip.models.library_config import VOCABULARY, LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.models.towers import find_ends

TOWERS = {"visual": "vision_model", "text": "text_model"}
_OWN_SCALARS = ("logit_scale", "logit_bias", "temperature")


class LibraryModel(ImageTextModel):
    """A model of transformers of images and texts, with the attention that its configuration says.

    Attributes: config; inner, transformers' model without its temperature; logit_scale; logit_bias, with
    config.logit_bias. Its maps are not recorded, so it is trained and evaluated, and not shown by its attention.
    """

    def __init__(self, config: LibraryConfig) -> None:
        """Raises UserError where transformers is not there, refuses the architecture, or has nothing to replace."""
        super().__init__()
        self.config: LibraryConfig = config
        self.tokenizer: Tokenize = get_tokenizer(config.context_length)
        self.inner = _inner(config)
        for name in _OWN_SCALARS:
            if hasattr(self.inner, name):
                delattr(self.inner, name)
        if config.family == "align":
            self.inner.text_model.pooler = None  # the class reads the first token past it
        bias = config.logit_bias
        start = INITIAL_LOGIT_SCALE if bias is None else INITIAL_SIGMOID_SCALE
        self.logit_scale: nn.Parameter = nn.Parameter(torch.tensor(start))
        if bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(bias)))
        put_attention(self.inner, config)
        with torch.no_grad():
            was = self.inner.training
            size = config.image_size
            self.tower_width = int(self.inner.eval().vision_model(torch.zeros(1, 3, size, size)).pooler_output.shape[1])
            self.inner.train(was)

    def tower(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) → (B, width), as the class pools them, before any projection."""
        self.check_pixels(pixels)
        if not len(pixels):
            return pixels.new_empty(0, self.tower_width)
        dtype = next(self.inner.parameters()).dtype
        features: Tensor = self.inner.vision_model(pixel_values=pixels.to(dtype)).pooler_output
        return features

    def project_image(self, features: Tensor, normalize: bool = False) -> Tensor:
        """(B, width) → (B, embed_dim): CLIP and BLIP have a projection, SigLIP and ALIGN none."""
        if self.config.family in ("clip", "blip"):
            features = self.inner.visual_projection(features)
        return normalized(features) if normalize else features

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Normalised pixels (B, 3, S, S) → (B, embed_dim). Raises UserError for another shape or integers."""
        return self.project_image(self.tower(pixels), normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Ids (B, L) of CLIP's tokenizer → (B, embed_dim), read where the class reads it.

        SigLIP sees its texts filled up to context_length, as it is published; the others are cut at the longest.
        Raises UserError, with the row, if a row has no end-of-text token.
        """
        ends = find_ends(tokens, VOCABULARY - 1)
        device = self.logit_scale.device
        if not len(tokens):
            return torch.empty(0, self.tower_width, device=device)
        family = self.config.family
        if family == "siglip":
            filled = nn.functional.pad(tokens, (0, self.config.context_length - tokens.shape[1]))
            asked = {"input_ids": filled.to(device)}
        else:
            tokens = tokens[:, : int(ends.max()) + 1]
            asked = {"input_ids": tokens.to(device)}
            if family != "clip":  # whose text sees no later token
                places = torch.arange(tokens.shape[1], device=ends.device)
                asked["attention_mask"] = (places <= ends.unsqueeze(1)).long().to(device)
        features: Tensor = self.inner.get_text_features(**asked).pooler_output
        return normalized(features) if normalize else features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing, as transformers does it. Raises UserError where the class has none."""
        if not enable:
            return
        try:
            self.inner.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"training.checkpoint_activations: {error}") from None

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the inverse temperature in [1, 100]; called after every optimizer step."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    @torch.no_grad()
    def lambdas(self) -> dict[str, Tensor]:
        """λ of each layer that has one, from the input on: {"visual": (layers,), "text": (layers,)}."""
        found = {}
        for name, tower in TOWERS.items():
            values = [module.lam() for module in getattr(self.inner, tower).modules() if hasattr(module, "lam")]
            if values:
                found[name] = torch.stack(values)
        return found

    def describe(self) -> dict[str, str]:
        """Of `diffclip info`: model, attention and λ."""
        config = self.config
        towers = "" if config.attention == "standard" else f", {config.attention_towers} of its towers"
        facts = {
            "model": f"transformers' {type(self.inner).__name__}",
            "why": f"it is built of the layers of transformers' {config.family}",
            "attention": f"{config.attention}{towers}",
        }
        lambdas = {tower: values.tolist() for tower, values in self.lambdas().items()}
        facts |= {f"λ, {tower}": " ".join(f"{value:.2f}" for value in values) for tower, values in lambdas.items()}
        return facts | {"tokenizer": f"{type(self.tokenizer).__name__}, at most {config.context_length} tokens"}


Trainable = CLIP | LibraryModel
"""What our loop trains."""


def build(config: ModelConfig | LibraryConfig) -> Trainable:
    """A model with fresh weights, drawn by torch's global generator. Raises UserError as the classes do."""
    return LibraryModel(config) if isinstance(config, LibraryConfig) else CLIP(config)


def put_attention(inner: nn.Module, config: LibraryConfig) -> None:
    """Replace the attention that a configuration names, in place. Raises UserError where there is none."""
    if config.attention == "standard":
        return
    towers = ("vision", "text") if config.attention_towers == "both" else (config.attention_towers,)
    form = cast(Form, config.attention)  # the configuration was checked
    layers = config.attention_layers
    for tower in towers:
        if tower == "vision" and config.family == "align":
            if config.attention_towers == "vision":
                raise UserError("the vision tower of ALIGN is an EfficientNet: it has no attention layers")
            continue  # of both towers the text has attention
        part = getattr(inner, f"{tower}_model")
        replace_attention(part.encoder, form, layers, config.lambda_init)  # not SigLIP's pooling head


def _inner(config: LibraryConfig) -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("models of transformers need its library: pip install 'diffclip[vlm]'") from None
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    content = dict(config.architecture)
    try:
        settings = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
        return transformers.AutoModel.from_config(settings)
    except Exception as error:  # of a dozen types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"transformers builds no {config.family} of this architecture: {reason[:300]}") from None

"""The model: transformers' LLaVA around our image tower, so that what is trained opens there as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from diffclip import durable
from diffclip.errors import UserError
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.store import load_clip
from diffclip.vlm import scratch
from diffclip.vlm.conversation import UNLEARNED, prepare_tokenizer
from diffclip.vlm.language import image_token, keep_first_layers, load_language
from diffclip.vlm.recipe import Part, VlmRecipe
from diffclip.vlm.tower import DiffCLIPVisionConfig, tower_of


def build(recipe: VlmRecipe) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model before its first step: encoder and language model as they are, and a fresh connector.

    Raises UserError where the encoder has other images than the recipe says, or the tokenizer no template.
    """
    encoder = load_clip(recipe.encoder.path, what="a vision-language model")
    size = encoder.config.image_size
    if recipe.encoder.image_size not in (0, size):
        raise UserError(
            f"the encoder {recipe.encoder.path} takes images of {size} pixels, but the recipe says "
            f"encoder.image_size = {recipe.encoder.image_size}"
        )
    depth = encoder.config.vision_depth
    if not -depth - 1 <= recipe.encoder.layer <= depth:
        raise UserError(f"encoder.layer = {recipe.encoder.layer}: this encoder has {depth} blocks")
    scratched = recipe.language.path == scratch.NAME
    language, tokenizer = scratch.build(recipe.seed) if scratched else load_language(recipe.language.path)
    if recipe.language.layers:
        keep_first_layers(language, recipe.language.layers)
    prepare_tokenizer(tokenizer, recipe.language.template)
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):  # the row of the image token, which is never read
            torch.manual_seed(recipe.seed)
            language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tower = tower_of(encoder, recipe.connector.shuffle)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=image_token(tokenizer),
        image_token_id=image_token(tokenizer),
        vision_feature_layer=recipe.encoder.layer,
        vision_feature_select_strategy="default",
        image_seq_length=tower.config.tokens,
        projector_hidden_act="gelu" if recipe.connector.kind == "mlp2x_gelu" else "linear",
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = language.get_decoder()
    model.lm_head = language.get_output_embeddings()
    _fresh_connector(model.model.multi_modal_projector, recipe)
    model.generation_config = language.generation_config
    return model.eval(), tokenizer


def _fresh_connector(projector: Any, recipe: VlmRecipe) -> None:
    """Weights drawn from the seed alone, as PyTorch's linear layers start; of a linear connector only its first layer.

    transformers' LLaVA has two layers. A linear connector is the first; the second is the identity, and stays it.
    """
    projector.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for layer in (projector.linear_1, projector.linear_2):
            layer.reset_parameters()
    if recipe.connector.kind == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)


def parts(model: LlavaForConditionalGeneration, recipe: VlmRecipe) -> dict[Part, nn.ParameterList | nn.Module]:
    """What a stage may name: the connector, the language model and the encoder."""
    projector = model.model.multi_modal_projector
    return {
        "connector": projector.linear_1 if recipe.connector.kind == "linear" else projector,
        "language": nn.ModuleList([model.model.language_model, model.lm_head]),
        "encoder": model.model.vision_tower,
    }


def image_settings(model: LlavaForConditionalGeneration) -> ModelConfig:
    """The encoder's configuration: image size, resizing, mean and standard deviation."""
    return ModelConfig(**model.config.vision_config.clip)


def image_tokens(model: LlavaForConditionalGeneration) -> int:
    return int(model.config.vision_config.tokens)


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the language model reads of images: (images, 3, S, S) normalised → (images, tokens, width)."""
    return torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))


def hidden_states(model: LlavaForConditionalGeneration, ids: Tensor, mask: Tensor, features: Tensor | None) -> Tensor:
    """The language model's last layer: ids, mask (B, L), features of images (images, tokens, width) → (B, L, width)."""
    embedded = model.get_input_embeddings()(ids)
    if features is not None:
        where = (ids == model.config.image_token_id).unsqueeze(-1)
        embedded = embedded.masked_scatter(where, features.flatten(0, 1).to(embedded.dtype))
    out: Tensor = model.model.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
    return out


def answer_losses(model: LlavaForConditionalGeneration, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and logits of the learned tokens alone: states (B, L, width), labels (B, L) → (T,), (T, vocabulary).

    The token at each place is predicted from the place before.
    """
    learned = labels[:, 1:] != UNLEARNED
    logits = model.lm_head(states[:, :-1][learned]).float()
    return F.cross_entropy(logits, labels[:, 1:][learned], reduction="none"), logits


def lora_layers(model: LlavaForConditionalGeneration, rank: int, seed: int) -> None:
    """Put adapters of a rank into every linear layer of the language model (Hu et al. 2021), by peft.

    alpha is twice the rank, as LLaVA's and TinyLLaVA's are. Raises UserError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("lora_rank needs the peft library: pip install peft") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model.model.language_model
        )


def merge_lora(model: LlavaForConditionalGeneration) -> None:
    """Add the adapters to the weights that they adapt."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    language = model.model.language_model
    for name, module in list(language.named_modules()):
        if isinstance(module, LoraLayer):
            assert isinstance(module, BaseTunerLayer)
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(language.get_submodule(parent), own, module.get_base_layer())


def save_folder(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path, **facts: Any
) -> None:
    """The model as transformers' LlavaForConditionalGeneration and LlavaProcessor open it, into an existing folder.

    facts: JSON values to keep in config.json. Raises OSError.
    """
    settings = image_settings(model)
    square = {"height": settings.image_size, "width": settings.image_size}
    squashed = settings.resize == "squash"
    processor = LlavaProcessor(
        CLIPImageProcessor(
            size=square if squashed else {"shortest_edge": settings.image_size},
            do_center_crop=not squashed,
            crop_size=square,
            image_mean=list(settings.image_mean),
            image_std=list(settings.image_std),
        ),
        tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    model.config.diffclip = facts
    with durable.writing(folder / ".transformers") as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        for file in sorted(unfinished.iterdir()):
            durable.sync(file)
            durable.replace(file, folder / file.name)
    durable.remove(folder / ".transformers")


def load_folder(folder: Path) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """A trained model in evaluation mode, and its tokenizer. Raises UserError where there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no vision-language model: give the --out of a finished `diffclip vlm train`")
    try:
        model = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise UserError(f"{folder} cannot be opened as a LLaVA: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(model.config.vision_config, DiffCLIPVisionConfig):
        raise UserError(f"{folder} is a LLaVA with another image tower than ours: use transformers itself")
    return model.eval(), processor.tokenizer


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def set_trained(
    model: LlavaForConditionalGeneration, recipe: VlmRecipe, trained: Sequence[Part], *, encoder_blocks: int = 0
) -> None:
    """Let gradients into these parts alone; adapters that are there are trained too."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for part in trained:
        chosen = parts(model, recipe)[part]
        if part == "encoder":
            blocks = model.model.vision_tower.visual.blocks
            used = len(blocks) + 1 + recipe.encoder.layer if recipe.encoder.layer < 0 else recipe.encoder.layer
            chosen = nn.ModuleList(blocks[max(0, used - encoder_blocks) : used]) if encoder_blocks else chosen
        chosen.requires_grad_(True)
    if "encoder" in trained:  # what lies behind the layer that is read has no gradient
        visual = model.model.vision_tower.visual
        used = len(visual.blocks) + 1 + recipe.encoder.layer if recipe.encoder.layer < 0 else recipe.encoder.layer
        for unused in (*visual.blocks[used:], visual.norm):
            unused.requires_grad_(False)

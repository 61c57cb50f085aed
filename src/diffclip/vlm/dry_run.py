"""What a recipe would do, without doing it: parameters, steps, tokens and memory of each stage."""

from __future__ import annotations

from torch import nn

from diffclip.distributed import default_device
from diffclip.training.step import autocast_dtype
from diffclip.vlm import model as models
from diffclip.vlm.loading import check_samples
from diffclip.vlm.recipe import VlmRecipe
from diffclip.vlm.training import reader_of, schedule_of

MIB = 2**20


def describe(recipe: VlmRecipe) -> list[tuple[str, str]]:
    """Rows of what and how much. Loads the encoder and the language model, and looks at the data.

    Raises UserError as training would.
    """
    model, tokenizer = models.build(recipe)
    language = model.model.language_model.config
    rows = [
        (
            "encoder",
            f"{recipe.encoder.path}: {_millions(model.model.vision_tower)}; layer {recipe.encoder.layer} is read",
        ),
        ("language model", f"{recipe.language.path}: {language.model_type}, {_millions(model.model.language_model)}"),
        (
            "connector",
            f"{recipe.connector.kind}: {_millions(models.parts(model, recipe)['connector'])}, "
            f"{models.image_tokens(model)} tokens an image",
        ),
    ]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for stage in recipe.stage:
        reader = reader_of(recipe, stage, model, tokenizer)
        schedule = schedule_of(stage, reader.samples)
        if stage.lora_rank:
            models.lora_layers(model, stage.lora_rank, recipe.seed)
        models.set_trained(model, recipe, stage.train, encoder_blocks=stage.encoder_blocks)
        trained = sum(parameter.numel() for _, parameter in models.trainable(model))
        bf16 = autocast_dtype(stage.precision, default_device()) is not None
        rows += [
            (f"stage {stage.name}", f"trains {', '.join(stage.train)}: {trained:,} parameters"),
            ("  data", check_samples(reader, recipe.max_unusable)),
            ("  steps", f"{schedule.steps:,} of {stage.batch_size} conversations, {schedule.warmup_steps} of warm-up"),
            ("  precision", "bfloat16 products" if bf16 else "float32"),
            (
                "  memory",
                f"{weights / MIB:,.0f} MiB of weights, {12 * trained / MIB:,.0f} MiB of gradients and moments; "
                "activations come on top",
            ),
        ]
        if stage.lora_rank:
            models.merge_lora(model)
    return rows


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} million parameters"

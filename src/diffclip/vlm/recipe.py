"""The recipe of a vision-language model: an encoder, a language model, a connector, and stages of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from diffclip.config import STRICT, Count, Fraction, NonNegative, Positive, PositiveInt
from diffclip.errors import UserError, describe
from diffclip.recipe_files import find_recipe, merge_tables, parse_settings, parse_toml, read_toml
from diffclip.text import listed

Part = Literal["connector", "language", "encoder"]
WITHOUT_IMAGE = ("scenes:text", "scenes:symbols")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The image tower."""

    __pydantic_config__ = STRICT

    path: str = ""
    """What `diffclip.load` takes: a run, a file, a released checkpoint."""
    image_size: Count = 0
    """Pixels a side that the encoder should have; 0: whatever it has."""
    layer: int = -2
    """Which hidden state is read, as transformers counts: −1 is that of the last block, −2 of the block before."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """The language model."""

    __pydantic_config__ = STRICT

    path: str = "smollm2"
    """`hf:OWNER/NAME` of the hub, a folder, a .gguf file, or a name that `diffclip vlm fetch` gets; a run's folder: the
    language model that it has trained. `scratch`: four layers with random weights and the vocabulary of scenes, a
    control."""
    template: Literal["chat", "vicuna", "plain"] = "chat"
    """How conversations are written: by the tokenizer's own template; as LLaVA 1.5 and TinyLLaVA write them; or
    without a word around questions and answers."""
    layers: Count = 0
    """The first so many blocks of the language model, which is cheaper and then has to learn to speak again; 0: all."""


@dataclass(frozen=True, kw_only=True)
class Connector:
    """From the encoder's width to the language model's."""

    __pydantic_config__ = STRICT

    kind: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    """`linear`: the paper's word. `mlp2x_gelu`: what its code trains, two layers with a GELU between."""
    shuffle: PositiveInt = 1
    """n × n neighbouring patches become one token of n² times the width; 1: each patch is a token."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training. It begins with what the stage before has made."""

    __pydantic_config__ = STRICT

    name: str
    """The folder of the run in which it lies."""
    data: str = ""
    """A file of LLaVA's JSON; or of drawn scenes `scenes:captions`, `scenes:lists` of all that is in them,
    `scenes:questions`, `scenes:text`: questions about such a list in place of an image, or `scenes:symbols`: about
    words that stand where the things are, which is how the image looks to a language model after a stage of words."""
    images: str = ""
    """The folder or the tar archive in which the images lie that the JSON names."""
    length: PositiveInt = 8000
    """How many drawn scenes; a file has the length it has."""
    form: Literal["conversation", "caption", "words"] = "conversation"
    """`caption`: the question is left out, and what follows the image is learned, as in LLaVA's first stage. `words`:
    the words of the answer are to be found at the image's tokens, by their embeddings; the language model is not run,
    so that a connector learns from ten times as many images."""
    train: tuple[Part, ...] = ("connector",)
    """What is trained; all else stays as it is to the last bit."""
    lr: Positive = 1e-3
    """Peak learning rate of the connector, and of every part that has none of its own."""
    language_lr: NonNegative = 0.0
    """Of the language model; 0: `lr`."""
    encoder_lr: NonNegative = 0.0
    """Of the encoder; 0: `lr`."""
    encoder_blocks: Count = 0
    """How many of the encoder's last blocks are trained; 0: all, with its embeddings."""
    lora_rank: Count = 0
    """Of adapters in every linear layer of the language model, which are trained in its place (peft); 0: none."""
    weight_decay: NonNegative = 0.0
    warmup: Fraction = 0.03
    """Share of the steps in which the learning rate rises; then it falls as a cosine to 0."""
    clip_norm: Positive = 1.0
    """The norm to which larger gradients are scaled."""
    epochs: Positive = 1.0
    batch_size: PositiveInt = 256
    """Conversations a step, of all processes together."""
    micro_batch: Count = 0
    """Conversations that a process computes at a time; 0: all of its part. It changes no gradient."""
    max_length: PositiveInt = 2048
    """Tokens of a conversation, those of its image included; what is longer is cut."""
    log_every: PositiveInt = 10
    measure_every: PositiveInt = 100
    """Steps between two measurements: the loss with another's image, and answers by yes and no."""
    checkpoint_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """What matrices are multiplied in. Parts that are not trained are also kept in it."""


@dataclass(frozen=True, kw_only=True)
class VlmRecipe:
    """One vision-language model."""

    __pydantic_config__ = STRICT

    seed: Count = 0
    """Of the connector's first weights, of the adapters, of the data's order and of drawn scenes."""
    encoder: Encoder = field(default_factory=Encoder)
    language: Language = field(default_factory=Language)
    connector: Connector = field(default_factory=Connector)
    stage: tuple[Stage, ...] = ()
    max_unusable: Fraction = 0.01
    """Share of the conversations looked at first of which nothing can be learned, above which nothing is trained."""
    workers: Count = 0
    """Processes that decode and tokenise."""


_RECIPE: TypeAdapter[VlmRecipe] = TypeAdapter(VlmRecipe)


def load_vlm_recipe(path: str | Path) -> VlmRecipe:
    """Read a recipe: a file, or the name of one that the package ships, such as scenes.

    Raises UserError where it is missing, is not TOML, or holds a wrong key or value.
    """
    return validate(read_toml(find_recipe(path, "vision-language recipe"), "recipe", typed=True), str(path))


def parse_vlm_recipe(text: str, where: str) -> VlmRecipe:
    return validate(parse_toml(text, where), where)


def validate(table: Mapping[str, Any], where: str) -> VlmRecipe:
    """A recipe from plain tables; `where` names their origin in the error. Raises UserError."""
    try:
        recipe = _RECIPE.validate_python(table)
    except ValidationError as error:
        raise UserError(f"{where}: {describe(error)}") from None
    if not recipe.stage:
        raise UserError(f"{where}: no stage of training: add [[stage]] with name, data and train")
    names = [stage.name for stage in recipe.stage]
    if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise UserError(f"{where}: stages need different names of letters, digits and _, not {', '.join(names)}")
    for stage in recipe.stage:
        if not stage.train:
            raise UserError(f'{where}: stage {stage.name} trains nothing: give train, such as ["connector"]')
        if stage.data in WITHOUT_IMAGE and {"connector", "encoder"} & set(stage.train):
            raise UserError(
                f"{where}: stage {stage.name}: {stage.data} has no image for a connector or an encoder to learn from: "
                'train = ["language"]'
            )
        if stage.form == "words" and (stage.lora_rank or "language" in stage.train):
            raise UserError(
                f'{where}: stage {stage.name}: form = "words" does not run the language model, nor train it'
            )
        if stage.lora_rank and "language" in stage.train:
            raise UserError(
                f"{where}: stage {stage.name}: lora_rank trains adapters in place of the language model: leave "
                '"language" out of train'
            )
    return recipe


def with_settings(recipe: VlmRecipe, texts: Sequence[str]) -> VlmRecipe:
    """A recipe with settings of the command line: KEY=VALUE; of a stage by its name, stage.NAME.KEY=VALUE.

    Raises UserError for a key, a stage or a value that a recipe does not have.
    """
    changes = parse_settings(texts)
    of_stages = changes.pop("stage", {})
    table = merge_tables(dataclasses.asdict(recipe), changes)
    names = [stage.name for stage in recipe.stage]
    for name in of_stages if isinstance(of_stages, Mapping) else ():
        if name not in names or not isinstance(of_stages[name], Mapping):
            raise UserError(f"--set stage.{name}: the stages are {listed(names)}: give stage.{names[0]}.KEY=VALUE")
    table["stage"] = [merge_tables(stage, of_stages.get(stage["name"], {})) for stage in table["stage"]]
    return validate(table, "command line")

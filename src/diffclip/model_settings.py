"""The part of a recipe that says which model is trained: a preset, one that exists, or transformers' classes."""

from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from diffclip.errors import UserError
from diffclip.models.library_config import LibraryConfig, library_config
from diffclip.models.presets import ModelConfig, model_config

# An unknown key is an error, not a silent default: a typo in a recipe must not change an experiment.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Other attention put into the start before the first step, as `diffclip convert` does."""

    __pydantic_config__ = STRICT

    attention: Literal["", "differential_v2", "differential_gated", "differential", "no_second_map"] = ""
    """Which; empty: the start is trained as it is. no_second_map is the control of a fair comparison: the parameters of
    differential_v2, and no second map."""
    towers: Literal["both", "vision", "text"] = "both"
    layers: tuple[Count, ...] | None = None
    """Which layers of each tower, counted from 0; by default all."""
    lambda_init: float | None = None
    """Where λ starts, by default 0.5; of differential, λ_init."""
    inexact: bool = False
    """Convert though the output moves: differential needs it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model: a preset, or one that exists, and what differs from it; or one of transformers' classes."""

    __pydantic_config__ = STRICT

    preset: str = "diffclip_vit_b16"
    """A name that `diffclip models` lists."""
    start: str = ""
    """Weights to start from, in place of fresh ones: what `diffclip.load` takes. It says which model it is, and the
    preset is left out, or empty."""
    library: Literal["diffclip", "transformers"] = "diffclip"
    """Whose classes a model with fresh weights is made of. transformers: a CLIP, SigLIP, BLIP or ALIGN of theirs, which
    reads texts by CLIP's tokenizer (docs/models.md)."""
    architecture: str = ""
    """Of transformers: a config.json, a folder that holds one, or clip_quickstart, siglip_quickstart, blip_quickstart,
    align_quickstart."""
    overrides: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Fields of ModelConfig that differ from the preset, such as `lambda_init = 0.5`, or from the start's, such as
    `patch_dropout = 0.5`. Of transformers, fields of LibraryConfig, such as `attention = "differential"`, and of the
    architecture, such as `"vision_config.num_hidden_layers" = 2`."""
    convert: Conversion = field(default_factory=Conversion)
    """Other attention put into the start."""

    def resolve(self) -> ModelConfig | LibraryConfig:
        """Raises UserError for a preset beside a start or an architecture, and where the start cannot be loaded."""
        given = next(
            (f'{name} = "{value}"' for name in ("start", "architecture") if (value := getattr(self, name))), ""
        )
        if given and self.preset not in ("", Model.preset):
            raise UserError(
                f'model.preset = "{self.preset}" beside model.{given}: the {given.partition(" ")[0]} says which model '
                'it is; leave the preset out, on the command line by --model.preset ""'
            )
        if self.start and (self.architecture or self.library != "diffclip"):
            raise UserError("model.start says which model it is: leave model.library and model.architecture out")
        if (self.library == "transformers" and not self.start) != bool(self.architecture):
            raise UserError(
                'model.library = "transformers" and model.architecture, such as "clip_quickstart", go together'
            )
        if self.convert != Conversion() and not (self.start and self.convert.attention):
            raise UserError("model.convert needs model.start, the model that is converted, and model.convert.attention")
        if self.start:
            return _config_of(self.start, tuple(self.overrides.items()), self.convert)
        if self.architecture:
            return library_config(self.architecture, self.overrides)
        return model_config(self.preset, **self.overrides)

    def resolve_clip(self, what: str) -> ModelConfig:
        """`resolve` for what can use a CLIP of ours alone, which messages call `what`. Raises UserError for another."""
        config = self.resolve()
        if isinstance(config, LibraryConfig):
            raise UserError(f"{what} needs a model of ours, and {self.name} is made of transformers' classes")
        return config

    @property
    def name(self) -> str:
        """What a person calls it: the start, the architecture or the preset, and what differs from it."""
        changes = dict(self.overrides)
        if self.convert.attention:
            changes["convert"] = self.convert.attention
        base = self.start or self.architecture or self.preset
        return base + "".join(f" {key}={value}" for key, value in changes.items())


@cache  # a recipe is resolved again and again
def _config_of(
    start: str, overrides: tuple[tuple[str, Any], ...], conversion: Conversion
) -> ModelConfig | LibraryConfig:
    from diffclip.models.start import started  # it needs torch, which a recipe without a start does not

    try:
        return started(start, dict(overrides), vars(conversion)).config
    except UserError as error:
        raise UserError(f"model.start: {error}") from None

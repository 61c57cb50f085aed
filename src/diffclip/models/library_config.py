"""Which model of transformers is built and trained here, as a configuration. Imports neither torch nor transformers."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from diffclip.errors import UserError, describe
from diffclip.models.image_settings import ImageSettings, Number, Size
from diffclip.models.presets import Attention, Layers
from diffclip.reading import parse_json, read_text
from diffclip.text import did_you_mean, listed

FAMILIES = ("clip", "siglip", "blip", "align")
FORMS = ("standard", "differential", "differential_v2", "differential_gated", "no_second_map")
"""The kinds of attention that their layers can have."""
VOCABULARY = 49408
"""Of CLIP's tokenizer, which these models read texts by."""


@dataclass(frozen=True, kw_only=True)
class LibraryConfig(ImageSettings):
    """A model of transformers' own classes with fresh weights, and the attention put into it.

    image_size is the architecture's. Raises UserError where the fields do not fit together.
    """

    library: Literal["transformers"] = "transformers"
    architecture: dict[str, Any] = field(default_factory=dict, hash=False)
    """What transformers keeps in config.json: model_type, text_config, vision_config and so on."""
    attention: Attention = "standard"
    attention_towers: Literal["both", "vision", "text"] = "both"
    attention_layers: Layers | None = None
    """Which layers of each tower have it, counted from 0; None: all."""
    lambda_init: Number | None = None
    """λ_init of "differential", 0.8 by default; where λ of "differential_v2" and "no_second_map" starts, 0.5."""
    context_length: Size = 77
    """Tokens that a text has at most."""
    logit_bias: Number | None = None
    """Where a learned bias of the logits starts; None: there is none."""

    def __post_init__(self) -> None:
        try:
            _fields().model_validate(vars(self))
        except ValidationError as error:
            raise UserError(describe(error)) from None
        super().__post_init__()
        if self.attention_layers is not None:
            object.__setattr__(self, "attention_layers", tuple(self.attention_layers))
        if self.attention not in FORMS:
            raise UserError(f"attention = {self.attention!r}: models of transformers take {', '.join(FORMS)}")
        if self.lambda_init is not None and not 0 < self.lambda_init < 1:
            raise UserError(f"lambda_init = {self.lambda_init}: give one in (0, 1)")
        if self.attention == "standard" and (self.attention_layers or self.lambda_init is not None):
            raise UserError("attention_layers and lambda_init are of an attention other than standard")
        kind = self.architecture.get("model_type")
        if kind not in FAMILIES:
            raise UserError(f"the architecture's model_type is {kind!r}: {listed(FAMILIES)} are trained here")
        text, vision = (_table(self.architecture, f"{tower}_config") for tower in ("text", "vision"))
        if vision.get("image_size") != self.image_size:
            raise UserError(
                f"image_size = {self.image_size}, and the architecture's vision_config.image_size is "
                f"{vision.get('image_size')!r}: state it there"
            )
        if text.get("vocab_size") != VOCABULARY:
            raise UserError(
                f"the architecture's text_config.vocab_size is {text.get('vocab_size')!r}: texts are read by CLIP's "
                f"tokenizer, of {VOCABULARY}"
            )
        longest = text.get("max_position_embeddings")
        if not isinstance(longest, int) or longest < self.context_length:
            raise UserError(
                f"context_length = {self.context_length}, and the architecture's text_config.max_position_embeddings "
                f"is {longest!r}"
            )

    @property
    def family(self) -> str:
        """The architecture's model_type, one of FAMILIES."""
        return str(self.architecture["model_type"])

    @property
    def is_differential(self) -> bool:
        """Whether its attention is of another form than standard."""
        return self.attention != "standard"


def _table(architecture: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    content = architecture.get(name)
    if not isinstance(content, Mapping):
        raise UserError(f"the architecture has no {name}")
    return content


def shipped() -> dict[str, Path]:
    """Name → file of the architectures that the package has."""
    folder = Path(str(files("diffclip") / "models" / "architectures"))
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def library_config(architecture: str, overrides: Mapping[str, Any]) -> LibraryConfig:
    """The configuration of an architecture by its name here, its file, or a folder with a config.json.

    overrides: fields of LibraryConfig; and of the architecture by their path, `vision_config.hidden_size`. Raises
    UserError for what does not exist or fit.
    """
    content = deepcopy(_read(architecture))
    fields: dict[str, Any] = {}
    for key, value in overrides.items():
        if "." in key or key in content:
            _set(content, key, value)
        elif key in LibraryConfig.__dataclass_fields__:
            fields[key] = value
        else:
            known = [*LibraryConfig.__dataclass_fields__, *content]
            raise UserError(f"there is no setting {key!r}{did_you_mean(key, known)}; there are {', '.join(known)}")
    size = _table(content, "vision_config").get("image_size")
    longest = _table(content, "text_config").get("max_position_embeddings")
    derived: dict[str, Any] = {"architecture": content, "image_size": size, "context_length": longest}
    return LibraryConfig(**(derived | fields))


def from_fields(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> LibraryConfig:
    """The inverse of dataclasses.asdict, with fields replaced. Raises UserError for those that do not exist."""
    unknown = [key for key in (*fields, *overrides) if key not in LibraryConfig.__dataclass_fields__]
    if unknown:
        raise UserError(f"there is no model setting {unknown[0]!r}")
    return replace(LibraryConfig(**fields), **overrides)


def _read(architecture: str) -> dict[str, Any]:
    known = shipped()
    path = Path(architecture).expanduser()
    path = known.get(architecture, path / "config.json" if path.is_dir() else path)
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"model.architecture = {architecture!r}: {path} cannot be read ({reason}); give a config.json of "
            f"transformers, a folder that holds one, or {listed(known)}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        inner = content.get(name)
        if not isinstance(inner, dict):
            raise UserError(f"the architecture has no {name!r} for {key!r}{did_you_mean(name, content)}")
        content = inner
    if last not in content:  # transformers keeps whatever it is given: a typo would do nothing
        raise UserError(f"the architecture does not state {key!r}{did_you_mean(last, content)}: state it in its file")
    content[last] = value


@cache
def _fields() -> type[BaseModel]:
    """What each field may hold, from its annotation."""
    hints: dict[str, Any] = get_type_hints(LibraryConfig, include_extras=True)
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items()}
    return create_model("LibraryConfig", __config__=ConfigDict(allow_inf_nan=False), **fields)

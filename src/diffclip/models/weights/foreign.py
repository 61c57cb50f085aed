"""Models of other programs: as a `CLIP` where it can be one, else wrapped. Which program wrote it shows beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffclip.errors import UserError
from diffclip.models.image_settings import ImageSettings
from diffclip.models.image_text import Tokenize
from diffclip.models.library import LibraryModel
from diffclip.models.library_config import LibraryConfig, from_fields
from diffclip.models.presets import ModelConfig, override
from diffclip.models.weights import convert, open_clip, transformers_folder
from diffclip.models.weights.files import CONFIG_NAME, OPEN_CLIP_CONFIG_NAME, read_json, read_tensors
from diffclip.models.weights.transformers_names import renamed
from diffclip.models.wrapped import Wrapped
from diffclip.text import listed


@dataclass(frozen=True)
class Expressed:
    """What a `CLIP` is made of."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    where: str
    tokenizer: Tokenize | None = None
    """Its own, where that is not CLIP's as it is here."""


def open_model(path: Path, overrides: Mapping[str, Any]) -> Expressed | Wrapped | LibraryModel:
    """A file of weights, ours or another program's. overrides: fields of ModelConfig. Raises UserError."""
    _refuse_timms(path)
    if transformers_folder.is_one(path):
        return _of_transformers(path, overrides)
    tensors, settings = read_tensors(path)
    if settings is not None and settings.get("library"):
        return _of_library(from_fields(settings, overrides), tensors, path)
    if settings is not None:
        return Expressed(override(override(ModelConfig(), settings), overrides), tensors, str(path))
    content = open_clip.beside(path)
    if content is None and "visual.layer1.0.conv1.weight" in tensors:
        return open_clip.resnet(tensors, str(path))
    stated: dict[str, Any] = {}
    if content is not None:
        where = path.with_name(OPEN_CLIP_CONFIG_NAME)
        stated, why = open_clip.model_settings(content, where)
        images = open_clip.image_settings(content, where)
        if why:
            _refuse(overrides, path)
            return open_clip.wrap(content, path, tensors, ImageSettings(**images), why)
        stated |= images
    config, tensors = convert.convert(tensors, str(path), stated | dict(overrides))
    return Expressed(config, tensors, f"{path} (named as in diffclip)")


def _of_transformers(path: Path, overrides: Mapping[str, Any]) -> Expressed | Wrapped:
    folder = transformers_folder.Folder(path.parent)
    why = folder.why_not_ours()
    if why:
        _refuse(overrides, path)
        return folder.wrap(why)
    tensors = convert.fuse_projections(renamed(read_tensors(path)[0]), str(path))
    config = override(override(ModelConfig(), folder.model_settings()), overrides)
    return Expressed(config, tensors, f"{path} (named as in diffclip)", folder.tokenizer)


def _of_library(config: LibraryConfig, tensors: Mapping[str, Tensor], path: Path) -> LibraryModel:
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = LibraryModel(config)
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys()) or [
        name for name, tensor in expected.items() if tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit its configuration: {listed(wrong)}")
    model.load_state_dict(dict(tensors))
    return model


def _refuse(overrides: Mapping[str, Any], path: Path) -> None:
    if overrides:
        raise UserError(f"{path} is used as it is: it has no setting {', '.join(overrides)} to override")


def _refuse_timms(path: Path) -> None:
    file = path.with_name(CONFIG_NAME)
    if path.name.startswith("open_clip") or not file.is_file():
        return
    content = read_json(file)
    if isinstance(content.get("architecture"), str) and "pretrained_cfg" in content:
        raise UserError(
            f"{path.parent} is timm's {content['architecture']}, an image tower alone: without a text tower there is "
            "nothing to compare an image with; give a CLIP, such as open_clip's with a tower of timm's"
        )

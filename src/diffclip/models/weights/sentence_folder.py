"""Folders of sentence-transformers that hold a CLIP: which folder of transformers is in them, and nothing after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffclip import reading
from diffclip.errors import UserError

MODULES = "modules.json"
ENCODERS = {"CLIPModel", "Transformer"}
"""Modules that are a folder of transformers."""
SAME_DIRECTION = {"Normalize"}
"""Modules that leave normalised features as they are."""
WHAT_EACH_IS = "sentence_bert_config.json"
METHODS = {"get_text_features", "get_image_features"}


def encoder_of(folder: Path) -> Path:
    """The folder of transformers in a folder of sentence-transformers; any other folder itself.

    Raises UserError where modules follow that change features, where the encoder gives other features than those of
    the joint space, and where modules.json is not in the form that sentence-transformers writes.
    """
    file = folder / MODULES
    if not file.is_file():
        return folder
    modules = _read(file)
    if not isinstance(modules, list) or not modules or not all(map(_is_module, modules)):
        raise UserError(f"{file}: expected a list of modules, each with a type and a path")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds[0] not in ENCODERS:
        raise UserError(f"{folder} begins with sentence-transformers' {kinds[0]}: {' and '.join(ENCODERS)} are read")
    others = [kind for kind in kinds[1:] if kind not in SAME_DIRECTION]
    if others:
        raise UserError(f"{folder}: sentence-transformers' {', '.join(others)} after the encoder cannot be obeyed here")
    first = Path(modules[0]["path"])
    if first.is_absolute() or ".." in first.parts:
        raise UserError(f"{file}: the module at {first} is not in the folder")
    settings = folder / first / WHAT_EACH_IS
    stated = _read(settings) if settings.is_file() else {}
    asked = stated.get("modality_config", {}) if isinstance(stated, dict) else {}
    methods = {part.get("method") for part in asked.values()} if isinstance(asked, dict) else {None}
    if not methods <= METHODS:
        raise UserError(
            f"{settings}: its encoder gives {', '.join(map(str, methods - METHODS))}, no features of a CLIP"
        )
    return folder / first


def _is_module(module: Any) -> bool:
    return isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)


def _read(file: Path) -> Any:
    try:
        return reading.parse_json(reading.read_text(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None

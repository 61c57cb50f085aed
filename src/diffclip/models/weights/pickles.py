"""Read what torch.save wrote, of which nothing but tensors, containers and argparse.Namespace is ever built."""

import argparse
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffclip import reading
from diffclip.errors import UserError


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle by name; of a checkpoint those of its part "state_dict". Raises UserError."""
    return _state_dict(_unpickle(path), path)


def _unpickle(path: Path) -> Any:
    _refuse_other_archives(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), reading.named(path) as name:
            return torch.load(name, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        what = f"asks for {wanted[1]}" if wanted else "is no pickle of tensors"
        raise UserError(
            f"{path} {what}; only tensors and argparse.Namespace are ever read from a pickle, "
            "so that loading runs no code: ask for the weights as safetensors"
        ) from None
    except Exception as error:  # on broken files torch's reader raises errors of a dozen types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as PyTorch weights: {reason}") from None


def _refuse_other_archives(path: Path) -> None:
    """What torch also reads but no longer writes: tar archives, which it would unpack, and what inflates."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inflated = next((f for f in archive.infolist() if f.compress_type != zipfile.ZIP_STORED), None)
            if inflated:
                raise UserError(f"{path} cannot be read as PyTorch weights: {inflated.filename} in it is compressed")
        elif tarfile.is_tarfile(path):
            raise UserError(
                f"{path} cannot be read as PyTorch weights: it is a tar archive; save it with a newer torch"
            )
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as PyTorch weights: {error}") from None


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    tensors = {str(name): tensor for name, tensor in content.items()}
    others = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if others:
        raise UserError(f"{path} holds no dictionary of tensors: {others[0]} is a {type(tensors[others[0]]).__name__}")
    return tensors

"""The weights of a TorchScript archive, as OpenAI published its models, without running anything in it."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffclip.errors import UserError

STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


class _Module:
    """Stands for a module of the archive, whose code is not looked at."""


class _Reader(pickle.Unpickler):
    """Builds tensors, containers and `_Module`; nothing else is ever called."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":  # marks the type of a list or dictionary
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype, count=count)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def root_of(path: Path) -> str | None:
    """The folder inside a TorchScript archive; None for any other file."""
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return None
    return next((name.removesuffix("/constants.pkl") for name in names if name.endswith("/constants.pkl")), None)


def read(path: Path, root: str) -> dict[str, Tensor]:
    """Its parameters and buffers by name. Raises UserError for an archive that holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            needed = [i for i in archive.infolist() if i.filename.startswith((f"{root}/data.pkl", f"{root}/data/"))]
            inflated = next((i for i in needed if i.compress_type != zipfile.ZIP_STORED), None)
            if inflated:
                raise UserError(f"{path} cannot be read as a TorchScript archive: {inflated.filename} is compressed")
            module = _Reader(archive, root).load()
        if not isinstance(module, _Module):
            raise UserError(f"{path} holds a {type(module).__name__} as TorchScript, not a module with weights")
        return dict(_tensors(module, ""))
    except UserError:
        raise
    except Exception as error:  # a broken pickle raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as a TorchScript archive: {reason[:300]}") from None


def _tensors(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    found = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Module):
            found += _tensors(value, f"{prefix}{name}.")
    return found

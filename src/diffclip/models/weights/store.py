"""Models on disk: `save` writes safetensors and JSON; `load` reads them, and three others' weights."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffclip import durable
from diffclip.data.images import to_rgb
from diffclip.data.tokenizer import Tokenizer, get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.presets import ModelConfig, override
from diffclip.models.weights import convert
from diffclip.models.weights.files import (
    CONFIG_NAME,
    OPEN_CLIP_CONFIG_NAME,
    WEIGHTS_NAME,
    locate,
    read_json,
    read_tensors,
)
from diffclip.text import listed


@dataclass(frozen=True)
class Preprocess:
    """Prepares an image for a model, as its configuration says: resized, cut square, normalised."""

    config: ModelConfig

    def __call__(self, image: Image.Image) -> Tensor:
        """A Pillow image of any mode and size → (3, image_size, image_size) float32."""
        pixels = EvalTransform(self.config.image_size, self.config.resize)(to_rgb(image))
        return normalise(pixels, self.config.image_mean, self.config.image_std)


def save(model: CLIP, directory: str | Path, **metadata: Any) -> None:
    """Write model.safetensors and config.json, which `load` takes, into `directory`, made if need be.

    Both are written under other names and then renamed, so that a reader never sees half a file. The configuration
    is in both: λ_init and the like are not among the weights, and one without the other would compute something else.
    metadata: JSON values to keep in config.json, such as step=1000. Raises OSError.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write(state, model.config, directory, **metadata)


def write(tensors: Mapping[str, Tensor], config: ModelConfig, directory: str | Path, **metadata: Any) -> None:
    """`save` of a model's tensors, on the CPU, apart from the model. Raises OSError."""
    directory = Path(directory)
    fields = asdict(config)
    content = {"library": "diffclip", "version": version("diffclip"), **metadata, "model": fields}
    durable.write_tensors(directory / WEIGHTS_NAME, tensors, {"format": "pt", "config": json.dumps(fields)})
    durable.write_text(directory / CONFIG_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_free(directory: Path) -> None:
    """Raise UserError where a directory holds anything, which a model could overwrite or be taken for."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is no empty folder: give a new one as --out")


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    *,
    compile: bool = False,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> tuple[CLIP, Preprocess, Tokenizer]:
    """A model in evaluation mode, with the preprocessing and the tokenizer it was made for.

    Args:
        source: a run directory or another that holds model.safetensors and config.json; a .safetensors file;
            a checkpoint of the released DiffCLIP or of SLIP's CLIP (.pt), or of open_clip's CLIP (.pt,
            .safetensors); or "hf:owner/name", maybe with "@revision", which holds one of these on the Hugging Face
            hub. Of a pickle nothing but tensors is ever built.
        device: where the model goes.
        compile: compile the blocks of both towers (CLIP.compile): the first images and the first texts then take a
            minute.
        dtype: of the weights, float32 by default. In torch.bfloat16 the model takes half the memory and is faster
            where the processor multiplies it; λ's vectors and the temperature stay in float32, pixels are cast by
            encode_image, and normalised features are float32 all the same.
        overrides: fields of ModelConfig. Of other libraries' files the shapes tell the sizes, but not the
            activations (open_clip: vision_activation, text_activation), nor λ_init (DiffCLIP: lambda_init,
            lambda_schedule).

    Raises: UserError, naming the tensors that are missing, unexpected or wrongly shaped; for a dtype of integers.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype = {dtype}: weights are floats; give torch.bfloat16, torch.float16 or torch.float32")
    path = locate(source)
    tensors, settings = read_tensors(path)
    where = str(path)
    if settings is not None:
        config = override(override(ModelConfig(), settings), overrides)
    else:
        config, tensors = convert.convert(tensors, where, _beside(path) | overrides)
        where += " (named as in diffclip)"
    with torch.device("meta"):
        model = CLIP(config)
    _check_tensors(tensors, model, where)
    kept = torch.promote_types(dtype or torch.float32, torch.float32)
    cast = {name: tensor.to(kept if _is_delicate(name) else dtype or kept) for name, tensor in tensors.items()}
    model.load_state_dict(cast, assign=True)
    model = model.to(device).eval()
    if compile:
        model.compile()
    return model, Preprocess(config), get_tokenizer(config.context_length)


def _is_delicate(name: str) -> bool:
    # Few numbers that much depends on: λ in bfloat16 would move in steps of 0.004, the temperature in steps of 0.5.
    return name in ("logit_scale", "logit_bias") or ".attn.lambda_" in name


def _beside(path: Path) -> dict[str, Any]:
    """What open_clip's own configuration file says beyond the shapes, if it lies beside the weights."""
    file = path.with_name(OPEN_CLIP_CONFIG_NAME)
    if not file.is_file():
        return {}
    content = read_json(file)
    model, statistics = content.get("model_cfg", {}), content.get("preprocess_cfg", {})
    if not isinstance(model, dict) or not isinstance(statistics, dict):
        raise UserError(f"{file}: model_cfg and preprocess_cfg must be objects, as open_clip writes them")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return {"vision_activation": activation, "text_activation": activation} | {
        f"image_{key}": statistics[key] for key in ("mean", "std") if key in statistics
    }


def _check_tensors(tensors: Mapping[str, Tensor], model: CLIP, where: str) -> None:
    expected = model.state_dict()
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "no floats": [name for name in expected if name in tensors and not tensors[name].is_floating_point()],
        "wrong shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    found = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
    if found:
        raise UserError(f"{where} does not fit its configuration: {found}")


def fingerprint(model: torch.nn.Module) -> str:
    """A digest of a model's weights and of its config, where it has one."""
    digest = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

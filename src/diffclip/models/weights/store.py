"""Models on disk: `save` writes safetensors and JSON; `load` reads them, and the models of other programs."""

import hashlib
import json
import logging
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
from diffclip.data.tokenizer import Tokenizer
from diffclip.data.transforms import normalise
from diffclip.errors import UserError
from diffclip.models.clip import CLIP, our_own
from diffclip.models.image_settings import ImageSettings
from diffclip.models.image_text import ImageTextModel, Tokenize
from diffclip.models.library import LibraryModel, Trainable
from diffclip.models.library_config import LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.files import CONFIG_NAME, WEIGHTS_NAME, locate
from diffclip.models.weights.foreign import Expressed, open_model
from diffclip.text import listed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocess:
    """Prepares an image for a model, as its configuration says: resized, cut square, normalised."""

    config: ImageSettings

    def __call__(self, image: Image.Image) -> Tensor:
        """A Pillow image of any mode and size → (3, image_size, image_size) float32."""
        pixels = self.config.transform(to_rgb(image))
        return normalise(pixels, self.config.image_mean, self.config.image_std)


def save(model: Trainable, directory: str | Path, **metadata: Any) -> None:
    """Write model.safetensors and config.json, which `load` takes, into `directory`, made if need be.

    Both are written under other names and then renamed, so that a reader never sees half a file. The configuration
    is in both: λ_init and the like are not among the weights, and one without the other would compute something else.
    metadata: JSON values to keep in config.json, such as step=1000. Raises OSError.
    """
    if not isinstance(model.tokenizer, Tokenizer):
        log.warning("%s: the model's own tokenizer is not saved, and CLIP's will take its place", directory)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write(state, model.config, directory, **metadata)


def write(
    tensors: Mapping[str, Tensor], config: ModelConfig | LibraryConfig, directory: str | Path, **metadata: Any
) -> None:
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
) -> tuple[ImageTextModel, Preprocess, Tokenize]:
    """A model in evaluation mode, with the preprocessing and the tokenizer it was made for.

    Args:
        source: a run directory or another that holds model.safetensors and config.json; a file of weights: ours, the
            released DiffCLIP's, SLIP's, open_clip's or OpenAI's TorchScript archive; a folder of open_clip
            ("local-dir:" before it or not), of transformers, or of sentence-transformers with one of these in it; an
            index of shards; "hf:owner/name", maybe with "@revision", which holds one of these on the Hugging Face hub;
            or weights by open_clip's name, "ViT-B-32/laion2b_s34b_b79k" (docs/models.md). Of a pickle nothing but
            tensors is ever built, and no code of an archive or folder runs.
        device: where the model goes.
        compile: compile the blocks of both towers (CLIP.compile): the first images and the first texts then take a
            minute.
        dtype: of the weights, float32 by default. In torch.bfloat16 the model takes half the memory and is faster
            where the processor multiplies it; λ's vectors and the temperature stay in float32, pixels are cast by
            encode_image, and normalised features are float32 all the same.
        overrides: fields of ModelConfig. Of other libraries' files the shapes tell the sizes, but not the
            activations (open_clip: vision_activation, text_activation), nor λ_init (DiffCLIP: lambda_init,
            lambda_schedule). A configuration beside the weights states them.

    Returns: a `CLIP`, or where no CLIP has what the model has, a `Wrapped` one; what prepares its images; its
        tokenizer.
    Raises: UserError, naming the tensors that are missing, unexpected or wrongly shaped; for a dtype of integers.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype = {dtype}: weights are floats; give torch.bfloat16, torch.float16 or torch.float32")
    path = locate(source)
    opened = open_model(path, overrides)
    exact = torch.promote_types(dtype or torch.float32, torch.float32)
    model = _filled(opened, exact) if isinstance(opened, Expressed) else opened
    model = model.to(device, dtype).eval()
    if compile:
        our_own(model, "compile=True").compile()
    return model, Preprocess(model.config), model.tokenizer


def load_trainable(source: str | Path, *, what: str, **overrides: Any) -> Trainable:
    """`load` for what our loop can change, which messages call `what`. Raises UserError for any other model."""
    model = load(source, **overrides)[0]
    return model if isinstance(model, LibraryModel) else our_own(model, what)


def load_clip(source: str | Path, device: torch.device | str = "cpu", *, what: str, **overrides: Any) -> CLIP:
    """`load` for what can use a `CLIP` alone, which messages call `what`. Raises UserError for any other model."""
    return our_own(load(source, device, **overrides)[0], what)


def _filled(opened: Expressed, dtype: torch.dtype) -> CLIP:
    with torch.device("meta"):
        model = CLIP(opened.config)
    _check_tensors(opened.tensors, model, opened.where)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in opened.tensors.items()}, assign=True)
    model.tokenizer = opened.tokenizer or model.tokenizer
    return model


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
    """A digest of a model's weights, of its config, where it has one, and of TF32, which rounds its features."""
    digest = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    if getattr(model, "tf32", False):
        digest.update(b"tf32")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

"""A folder that transformers' AutoModel and AutoProcessor take, and diffclip.load still reads."""

import shutil
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

from transformers import AutoModel, AutoProcessor, CLIPProcessor, CLIPTokenizer

from diffclip.data.tokenizer import END, START, vocabulary_and_merges
from diffclip.errors import UserError
from diffclip.models import parity
from diffclip.models.clip import CLIP
from diffclip.models.export.modeling_diffclip import DiffCLIPImageProcessor
from diffclip.models.image_settings import ImageSettings
from diffclip.models.parity import Parity
from diffclip.models.weights.store import save

CODE = "modeling_diffclip"
AUTO_MAP = {
    "AutoConfig": f"{CODE}.DiffCLIPConfig",
    **dict.fromkeys(("AutoModel", "AutoModelForZeroShotImageClassification"), f"{CODE}.DiffCLIPModel"),
}

IMAGE_MAP = {"AutoImageProcessor": f"{CODE}.DiffCLIPImageProcessor"}


def export(model: CLIP, out: Path) -> Parity:
    """Write the folder, open it with transformers, and compare from images and texts on. Raises UserError."""
    write(model, out)
    return _compare(model, out)


def write(model: CLIP, out: Path) -> None:
    """Write the folder. Raises UserError for another vocabulary than CLIP's, and OSError."""
    config = model.config
    vocabulary, merges = vocabulary_and_merges()
    if config.vocab_size != len(vocabulary):
        raise UserError(f"vocab_size = {config.vocab_size}: transformers' CLIPTokenizer has {len(vocabulary)} tokens")
    save(model, out, model_type="diffclip", architectures=["DiffCLIPModel"], auto_map=AUTO_MAP)
    shutil.copy(str(files("diffclip.models.export").joinpath(f"{CODE}.py")), out)
    tokenizer = CLIPTokenizer(
        vocabulary,
        merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,  # a text is read at its first end
        model_max_length=config.context_length,
    )
    settings = {field.name: getattr(config, field.name) for field in fields(ImageSettings)}
    processor = CLIPProcessor(DiffCLIPImageProcessor(settings, auto_map=IMAGE_MAP), tokenizer)
    processor.save_pretrained(out)


def _compare(model: CLIP, out: Path) -> Parity:
    double = AutoModel.from_pretrained(out, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    images, texts = parity.examples()
    given = processor(images=images, text=texts, padding="max_length", truncation=True, return_tensors="pt")
    tokens = given["input_ids"]
    return parity.compare(
        model, double.get_image_features, lambda _: double.get_text_features(tokens), given["pixel_values"]
    )

"""A folder that transformers' AutoModel and AutoProcessor take, and diffclip.load still reads."""

import shutil
from importlib.resources import files
from pathlib import Path

from transformers import AutoModel, AutoProcessor, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

from diffclip.data.tokenizer import END, START, vocabulary_and_merges
from diffclip.errors import UserError
from diffclip.models import parity
from diffclip.models.clip import CLIP
from diffclip.models.parity import Parity
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.store import save

CODE = "modeling_diffclip"
AUTO_MAP = {
    "AutoConfig": f"{CODE}.DiffCLIPConfig",
    **dict.fromkeys(("AutoModel", "AutoModelForZeroShotImageClassification"), f"{CODE}.DiffCLIPModel"),
}


def export(model: CLIP, out: Path) -> Parity:
    """Write the folder, open it with transformers, and compare from images and texts on. Raises UserError."""
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
    CLIPProcessor(_image_processor(config), tokenizer).save_pretrained(out)
    return _compare(model, out)


def _image_processor(config: ModelConfig) -> CLIPImageProcessor:
    square = {"height": config.image_size, "width": config.image_size}
    return CLIPImageProcessor(
        size=square if config.resize == "squash" else {"shortest_edge": config.image_size},
        do_center_crop=config.resize == "shortest",
        crop_size=square,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def _compare(model: CLIP, out: Path) -> Parity:
    double = AutoModel.from_pretrained(out, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    images, texts = parity.examples()
    given = processor(images=images, text=texts, padding="max_length", truncation=True, return_tensors="pt")
    tokens = given["input_ids"]
    return parity.compare(
        model, double.get_image_features, lambda _: double.get_text_features(tokens), given["pixel_values"]
    )

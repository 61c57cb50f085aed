"""A folder that SentenceTransformer takes: that of transformers, with three files beside that name its two encoders."""

import json
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from diffclip import durable
from diffclip.models import parity
from diffclip.models.clip import CLIP
from diffclip.models.export import transformers
from diffclip.models.parity import Parity

ENCODERS = {"text": "get_text_features", "image": "get_image_features"}
FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {kind: {"method": name, "method_output_name": None} for kind, name in ENCODERS.items()},
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}


def export(model: CLIP, out: Path) -> Parity:
    """Write the folder, open it with sentence-transformers, and compare from images and texts on. Raises UserError."""
    transformers.write(model, out)
    for name, content in FILES.items():
        durable.write_text(out / name, json.dumps(content, indent=1) + "\n")
    return _compare(model, out)


def _compare(model: CLIP, out: Path) -> Parity:
    double = SentenceTransformer(str(out), trust_remote_code=True, device="cpu")
    images, texts = parity.examples()
    return parity.compare(
        model,
        lambda _: torch.from_numpy(double.encode(images, show_progress_bar=False)),
        lambda _: torch.from_numpy(double.encode(texts, show_progress_bar=False)),
        double.preprocess(images)["pixel_values"],
    )

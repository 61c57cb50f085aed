"""Small models of other libraries on random weights, with what tests ask of them.

Texts hold what cleaning treats differently (curly quotes, entities, accents), images odd margins.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

TEXTS = [
    "a photo of a dog",
    "Two red cubes — it’s “left” of &amp; a ball",
    "",
    "CAFÉ naïve 123 <end_of_text> ok",
    "z" * 400,
]


def images():
    noise = np.random.default_rng(0)
    return [
        Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for shape, size in (((6, 5, 3), (67, 41)), ((5, 6, 3), (32, 35)), ((9, 4, 3), (50, 120)))
    ]


def shaken(model):
    """Random values for what would start as ones and zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(expected) == 1 or (expected[0] - expected[1]).abs().max() > 1e-5  # no constant


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PROCESSOR = {"do_resize": True, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def clip_tokenizer(transformers, folder):
    from diffclip.data.tokenizer import _vocabulary_and_model

    vocabulary, model = _vocabulary_and_model()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    made = transformers.CLIPTokenizer({names.get(k, k): v for k, v in vocabulary.items()}, merges, model_max_length=77)
    made.save_pretrained(folder)


def transformers_folder(folder, config, processor=None, **options):
    """A folder with CLIP's tokenizer, as transformers writes it, and its model and processors."""
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, options.pop("kind", "AutoModel"))
    model = shaken(kind.from_config(config) if kind is transformers.AutoModel else kind(config))
    model.save_pretrained(folder, **options)
    (processor or transformers.CLIPImageProcessor(**PROCESSOR)).save_pretrained(folder)
    clip_tokenizer(transformers, folder)
    theirs = kind.from_pretrained(folder).eval()
    return (
        theirs,
        transformers.AutoImageProcessor.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def clip_config(**text):
    transformers = pytest.importorskip("transformers")
    special = {"bos_token_id": 49406, "eos_token_id": 49407, "vocab_size": 49408}
    return transformers.CLIPConfig(
        vision_config=SIZES | {"image_size": 32, "patch_size": 16, "projection_dim": 24},
        text_config=SIZES | special | {"intermediate_size": 64, "projection_dim": 24} | text,
        projection_dim=24,
    )

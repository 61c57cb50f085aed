"""Find a file of weights, on disk or on the hub, and read it without running anything in it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffclip import reading
from diffclip.data.formats.paths import contents
from diffclip.errors import UserError
from diffclip.models.weights import pickles, sentence_folder, torchscript
from diffclip.models.weights.hub import HUB, asked_of_hub, download, open_clips_tag

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"
LOCAL = "local-dir:"
"""open_clip's word for a folder."""
OPEN_CLIP_WEIGHTS_NAME = "open_clip_model.safetensors"
PICKLES = ("*.pt", "*.pth", "*.bin")
# In the order in which they are looked for: on the hub, open_clip's file may lie beside one of another
# library.
_WORDS = ["*.json", "*.txt", "*.model"]  # configurations and vocabularies
DOWNLOADS = ([*_WORDS, OPEN_CLIP_WEIGHTS_NAME], [*_WORDS, "*.safetensors"], [*_WORDS, *PICKLES])
INDICES = ("*.safetensors.index.json", "*.bin.index.json")
_PREFIXES = ("module.", "model.")


def locate(source: str | Path) -> Path:
    """The file of weights that `source` means: a file, a directory that holds one, or a model of the hub.

    The hub is asked for "hf:owner/name" and "hf:owner/name@revision", and for weights by open_clip's name, such as
    "ViT-B-32/laion2b_s34b_b79k". For any other name without "hf:" it is asked, with a warning, only
    where no folder is called as the owner: a mistyped path would give whoever has that name the say over the model.
    Raises UserError if there is none, if a directory holds several, or if the hub cannot be reached.
    """
    if tagged := open_clips_tag(str(source)):
        name, file = tagged
        return download(name, None, [*_WORDS, file]) / file if file else _on_hub(name, None)
    on_hub = asked_of_hub(str(source))
    if on_hub:
        return _on_hub(*on_hub)
    path = Path(str(source).removeprefix(LOCAL)).expanduser()
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # too long a name, or one with a null byte
        raise UserError(f"{str(source)[:200]} is no name of a file: {getattr(error, 'strerror', error)}") from None
    if is_file:
        return path
    if path.exists() and not is_directory:
        raise UserError(f"{path} is no regular file: a model is a file or a directory")
    if is_directory:
        found = _in_directory(path)
        if found is None:
            there = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
            raise UserError(f"{path} holds no {WEIGHTS_NAME} and no other file of weights, but {there}")
        return found
    if path.parent.is_dir():
        raise UserError(
            f"{source} is neither a file nor a directory; {path.parent} is, and {contents(path.parent)}"
            + (f"; if you mean the Hugging Face hub, write hf:{source}" if HUB.fullmatch(str(source)) else "")
        )
    raise UserError(f"{source} is neither a file nor a directory, nor a hub id such as hf:owner/name@revision")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file by name, on the CPU, and the configuration that came with them, or None.

    A `.safetensors` file may carry its configuration inside or have config.json beside it; if both are there
    they must agree. Any other file is read as a pickle of tensors, containers and argparse.Namespace; nothing
    else is ever built, and a file that asks for more is refused. Of a checkpoint the part "state_dict" is
    taken. Of names, "module.", "_orig_mod." and "model." are removed. An index of
    shards gives all their tensors; of a TorchScript archive no code is looked at. Raises UserError.
    """
    if path.name.endswith(".index.json"):
        return _shards(path), None
    root = torchscript.root_of(path)
    if root is not None:
        return _all_there(torchscript.read(path, root), path), None
    if path.suffix == ".safetensors":
        try:
            with reading.named(path) as name, safe_open(name, framework="pt") as file:
                inside = (file.metadata() or {}).get("config")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is no readable safetensors file: {error}") from None
        return _all_there(_unprefixed(tensors), path), _configuration(path, inside)
    return _all_there(_unprefixed(pickles.read(path)), path), None


def files_of(path: Path) -> list[Path]:
    """The files that hold the weights of one that `locate` found: itself, or the shards that it lists."""
    if not path.name.endswith(".index.json"):
        return [path]
    listed_files = read_json(path).get("weight_map")
    names = sorted(set(listed_files.values())) if isinstance(listed_files, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{path} must have a weight_map of names of tensors to names of files beside it")
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise UserError(f"{path} lists files that are not beside it: {', '.join(missing)}")
    return [path.with_name(name) for name in names]


def _shards(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files_of(path):
        tensors |= read_tensors(file)[0]
    absent = [name for name in read_json(path)["weight_map"] if name not in tensors]
    if absent and not set(_unprefixed(dict.fromkeys(absent))) <= tensors.keys():
        raise UserError(f"{path} lists tensors that its files lack: {', '.join(absent[:5])}")
    return tensors


def _unprefixed(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without what DDP, torch.compile and training frameworks put before every name."""
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while prefix := next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _all_there(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, each of which has all its numbers in the file. Raises UserError for any other.

    A few bytes may stand for any number of them: by strides of 0, by zeros left out, by one storage under many names.
    """
    held: dict[int, int] = {}
    stated = 0
    for name, tensor in tensors.items():
        kinds = {
            "nested": tensor.is_nested,
            "sparse": not tensor.is_nested and tensor.layout != torch.strided,
            "quantised": tensor.is_quantized,
            "without numbers": tensor.is_meta,
            "complex": tensor.is_complex(),
        }
        kind = next((kind for kind, is_so in kinds.items() if is_so), None)
        if kind is None:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            stated += tensor.nbytes
            kind = "larger than what is stored of it" if tensor.nbytes > storage.nbytes() else None
        if kind is not None:
            raise UserError(f"{path}: the tensor {name} is {kind}: save plain tensors of floats, each contiguous")
    if stated > 2 * sum(held.values()):  # tied weights have two names
        raise UserError(f"{path}: its tensors have {stated:,} bytes, of which {sum(held.values()):,} are stored")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError if it holds anything else."""
    try:
        text = reading.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return _json_object(text, str(path))


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        content = reading.parse_json(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds a JSON {type(content).__name__}, not an object")
    return content


def _in_directory(directory: Path) -> Path | None:
    directory = sentence_folder.encoder_of(directory)
    for patterns in ([OPEN_CLIP_WEIGHTS_NAME], [WEIGHTS_NAME], INDICES[:1], ["*.safetensors"], INDICES, PICKLES):
        found = sorted(path for pattern in patterns for path in directory.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{directory} holds several files of weights: name one of {names}")
        if found:
            return found[0]
    return None


def _on_hub(name: str, revision: str | None) -> Path:
    for patterns in DOWNLOADS:
        found = _in_directory(download(name, revision, patterns))
        if found is not None:
            return found
    raise UserError(f"{name} on the Hugging Face hub holds no .safetensors, .pt, .pth or .bin file")


def _configuration(path: Path, inside: str | None) -> dict[str, Any] | None:
    beside = path.with_name(CONFIG_NAME)
    written = read_json(beside).get("model") if beside.is_file() else None  # other libraries' have no "model"
    if inside is None:
        return written if isinstance(written, dict) else None
    config = _json_object(inside, f"the configuration inside {path}")
    if isinstance(written, dict) and written != config:
        differing = sorted(key for key in config.keys() | written.keys() if config.get(key) != written.get(key))
        raise UserError(
            f"{beside} and {path.name} disagree: "
            + ", ".join(f"{key} is {written.get(key)!r} and {config.get(key)!r}" for key in differing)
            + "; restore the one that was changed"
        )
    return config

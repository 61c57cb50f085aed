"""What of a model a recipe trains, and how fast: frozen parts, rates by tower, adapters, the warm-up of λ."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from diffclip.config import Tuning
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.library import Trainable

_PARTS = {
    "vision": ("visual.", "image_projection", "inner.vision_model.", "inner.visual_projection."),
    "text": ("text.", "text_projection", "inner.text_model.", "inner.text_projection."),
}
_BLOCK = re.compile(r"^(?:visual|text)\.blocks\.(\d+)\.")
_AFTER = ("visual.norm.", "text.norm.", "image_projection", "text_projection", "logit_")
"""What comes after the blocks."""
MATRICES = ("qkv", "proj", "fc1", "fc2", "q2")
"""Of a block, those that get adapters."""
_BESIDE_ADAPTERS = ("image_projection", "text_projection", "logit_")


def is_lambda(name: str) -> bool:
    """Whether a parameter makes λ or a gate. In some forms it is a matrix, and decay would pull λ to one value."""
    return ".lambda_" in name or ".gate_proj." in name


def tower_of(name: str) -> str | None:
    """ "vision" or "text", the tower of a parameter with its projection; None for temperature and bias."""
    return next((tower for tower, starts in _PARTS.items() if name.startswith(starts)), None)


def rate_of(name: str, tuning: Tuning) -> float:
    """The learning rate of a parameter as a multiple of the recipe's."""
    tower = tower_of(name)
    rate = 1.0 if tower is None else tuning.vision_rate if tower == "vision" else tuning.text_rate
    return rate * (tuning.lambda_rate if is_lambda(name) else 1.0)


def prepare(model: Trainable, tuning: Tuning) -> None:
    """Put adapters in and freeze what is not trained, in place. Raises UserError where adapters need peft."""
    if tuning.lora_rank:
        assert isinstance(model, CLIP)  # the recipe was checked
        _put_adapters(model, tuning)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rate_of(name, tuning) > 0 and _is_trained(name, model, tuning))


def _is_trained(name: str, model: Trainable, tuning: Tuning) -> bool:
    block = _BLOCK.match(name)
    if (
        tuning.last_blocks
        and not name.startswith(_AFTER)
        and not (block and _is_last(name, int(block[1]), model, tuning))
    ):
        return False
    return not tuning.lora_rank or ".lora_" in name or is_lambda(name) or name.startswith(_BESIDE_ADAPTERS)


def _is_last(name: str, number: int, model: Trainable, tuning: Tuning) -> bool:
    assert isinstance(model, CLIP)
    depth = model.config.vision_depth if name.startswith("visual.") else model.config.text_depth
    return number >= depth - tuning.last_blocks


def _put_adapters(model: CLIP, tuning: Tuning) -> None:
    try:
        import peft
    except ImportError:
        raise UserError("tuning.lora_rank needs the peft library: pip install 'diffclip[lora]'") from None
    towers: dict[str, tuple[float, Any]] = {
        "visual": (tuning.vision_rate, model.visual),
        "text": (tuning.text_rate, model.text),
    }
    wanted = [
        f"{tower}.blocks.{number}.{name}"
        for tower, (rate, module) in towers.items()
        if rate
        for number, block in enumerate(module.blocks)
        if number >= len(module.blocks) - (tuning.last_blocks or len(module.blocks))
        for name, part in block.named_modules()
        if name.rpartition(".")[2] in MATRICES and isinstance(part, nn.Linear)
    ]
    config = peft.LoraConfig(r=tuning.lora_rank, lora_alpha=2 * tuning.lora_rank, target_modules=wanted)
    peft.inject_adapter_in_model(config, model)


def has_adapters(model: nn.Module) -> bool:
    """Whether `prepare` has put adapters in."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors as they would be without adapters: each matrix has its own added, W + (α/r)·B A."""
    state: dict[str, Tensor] = {}
    adapted: dict[str, Any] = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    for name, tensor in model.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if ".lora_" in name:
            continue
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            delta = adapted[owner].get_delta_weight("default") if kind == "weight" else None
            state[f"{owner}.{kind}"] = tensor.detach() if delta is None else tensor.detach() + delta
        else:
            state[name] = tensor.detach()
    return state


def scale_lambda(model: nn.Module, share: float) -> None:
    """Multiply λ of every layer by a share in [0, 1], in what it computes and in what it reports."""
    for module in model.modules():
        if hasattr(module, "lambda_scale"):
            setattr(module, "lambda_scale", share)  # noqa: B010  a module's attributes are typed as tensors

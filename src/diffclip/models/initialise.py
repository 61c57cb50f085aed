"""How weights start.

Every parameter is drawn from a generator of its own, seeded by one number from torch's global generator and
the parameter's name. So parameters with the same name, shape and rule start equal in two models built after
the same `torch.manual_seed`, whatever else the models hold: CLIP and DiffCLIP of one size start from the same
place.

init = "matched" (the default) draws both kinds of model alike:
    vision: timm's rules: linear weights, and positions, normal with std 0.02 (timm's trunc_normal_, which
        cuts at ±2, so a hundred standard deviations away); linear biases 0; the class token normal with std
        1e-6; the patch embedding, and a stem of convolutions, keep PyTorch's default, uniform in ±1/√fan_in, weight and
        bias.
    text: SLIP's (and OpenAI CLIP's) rules, normal throughout: token embedding std 0.02, positions 0.01, q, k
        and v d^-1/2, the projections that end a half-block d^-1/2 (2L)^-1/2, the first MLP layer (2d)^-1/2;
        attention's biases 0, those of the MLP PyTorch's default.
    differential_v2 and differential_gated: the second query like the first. Weights and biases of λ and gates: 0.
    joint projections: normal, std width^-1/2. λ vectors: normal, std 0.1. Norms: weight 1, bias 0.
        Temperature: ln(1/0.07).
init = "released" is the published pairing: linear layers in differential vision blocks keep PyTorch's
    default, uniform in ±1/√fan_in (Kaiming-uniform with a = √5), because that model was built after timm had
    initialised it.
"""

import hashlib
import math

import torch
from torch import Generator, Tensor, nn

from diffclip.models.attention.layer import DifferentialAttention
from diffclip.models.presets import ModelConfig

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
INITIAL_SIGMOID_SCALE = math.log(10)  # SigLIP (Zhai et al. 2023)


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw every parameter of a CLIP in place. Takes one number from torch's global generator."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        owner = modules[name.rpartition(".")[0]]
        _draw(values, name, owner, config, generator)
        parameter.copy_(values)


def _draw(values: Tensor, name: str, owner: nn.Module, config: ModelConfig, generator: Generator) -> None:
    kind = name.rpartition(".")[2]
    if name == "logit_scale":
        values.fill_(INITIAL_LOGIT_SCALE if config.logit_bias is None else INITIAL_SIGMOID_SCALE)
    elif name == "logit_bias":
        values.fill_(config.logit_bias or 0.0)
    elif isinstance(owner, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
        values.fill_(1.0 if kind == "weight" else 0.0)
    elif ".attn.lambda_proj." in name or ".attn.gate_proj." in name:
        values.zero_()  # λ or the gate starts at σ(0) = ½, or at tanh(0) = 0
    elif isinstance(owner, DifferentialAttention) and kind.startswith("lambda_"):
        values.normal_(std=0.1, generator=generator)  # the λ vectors
    elif name in ("image_projection", "text_projection"):
        values.normal_(std=values.shape[0] ** -0.5, generator=generator)
    elif name.startswith("visual."):
        _draw_vision(values, name, owner, config, generator)
    else:
        _draw_text(values, name, owner, config, generator)


def _draw_vision(values: Tensor, name: str, owner: nn.Module, config: ModelConfig, generator: Generator) -> None:
    rebuilt = config.init == "released" and config.vision_attention == "differential"
    if name == "visual.cls_token":
        values.normal_(std=1e-6, generator=generator)
    elif name == "visual.pos_embed":
        values.normal_(std=0.02, generator=generator)
    elif isinstance(owner, nn.Conv2d) or rebuilt:
        _uniform(values, owner, generator)
    elif name.endswith("bias"):
        values.zero_()
    else:
        values.normal_(std=0.02, generator=generator)


def _draw_text(values: Tensor, name: str, owner: nn.Module, config: ModelConfig, generator: Generator) -> None:
    width, depth = config.text_width, config.text_depth
    if name == "text.token_embedding.weight":
        values.normal_(std=0.02, generator=generator)
    elif name == "text.positional_embedding":
        values.normal_(std=0.01, generator=generator)
    elif name.endswith((".attn.qkv.bias", ".attn.q2.bias", ".attn.proj.bias")):
        values.zero_()
    elif name.endswith(".bias"):
        _uniform(values, owner, generator)
    elif name.endswith((".attn.qkv.weight", ".attn.q2.weight")):
        values.normal_(std=width**-0.5, generator=generator)
    elif name.endswith(".mlp.fc1.weight"):
        values.normal_(std=(2 * width) ** -0.5, generator=generator)
    else:
        assert name.endswith((".attn.proj.weight", ".mlp.fc2.weight")), name
        values.normal_(std=width**-0.5 * (2 * depth) ** -0.5, generator=generator)


def _uniform(values: Tensor, owner: nn.Module, generator: Generator) -> None:
    assert isinstance(owner, nn.Linear | nn.Conv2d), type(owner)
    bound = owner.weight[0].numel() ** -0.5  # 1/√fan_in
    values.uniform_(-bound, bound, generator=generator)

"""The kinds of attention by the names that a configuration gives them."""

from torch import nn

from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.attention.version2 import DifferentialAttentionV2, GatedDifferentialAttention, NoSecondMap

ATTENTION: dict[str, type[nn.Module]] = {
    "standard": StandardAttention,
    "differential": DifferentialAttention,
    "differential_v2": DifferentialAttentionV2,
    "differential_gated": GatedDifferentialAttention,
    "no_second_map": NoSecondMap,
}

DIFFERENTIAL = (DifferentialAttention, DifferentialAttentionV2)
"""The classes whose `lam()` is λ; the others derive from the second."""

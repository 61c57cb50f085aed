"""The kinds of attention by the names that a configuration gives them."""

from torch import nn

from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.attention.variants import (
    ClampedDifferentialAttention,
    DintAttention,
    GatedAttention,
    GatedMapsAttention,
    NormedAttention,
    UnnormedDifferentialAttention,
    WideAttention,
)
from diffclip.models.attention.version2 import DifferentialAttentionV2, GatedDifferentialAttention, NoSecondMap

ATTENTION: dict[str, type[nn.Module]] = {
    "standard": StandardAttention,
    "differential": DifferentialAttention,
    "differential_v2": DifferentialAttentionV2,
    "differential_gated": GatedDifferentialAttention,
    "differential_unnormed": UnnormedDifferentialAttention,
    "differential_clamped": ClampedDifferentialAttention,
    "dint": DintAttention,
    "mdgsa": GatedMapsAttention,
    "gated": GatedAttention,
    "no_second_map": NoSecondMap,
    "standard_normed": NormedAttention,
    "standard_wide": WideAttention,
}

DIFFERENTIAL = (DifferentialAttention, DifferentialAttentionV2)
"""The classes whose `lam()` is λ; the other differential ones derive from these."""

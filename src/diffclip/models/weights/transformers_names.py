"""The tensors of transformers' CLIPModel under the names of `CLIP`."""

import re
from collections.abc import Mapping

from torch import Tensor

# Of CLIPModel's names, applied in this order.
RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.cls_token"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.pos_embed"),
    (r"^vision_model\.pre_layrnorm\.", "visual.norm_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.norm."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.norm."),
    (r"^vision_model\.encoder\.layers\.", "visual.blocks."),
    (r"^text_model\.encoder\.layers\.", "text.blocks."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^visual_projection\.weight$", "image_projection"),
    (r"^text_projection\.weight$", "text_projection"),
)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPModel's tensors under `CLIP`'s names, q, k and v apart still."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith(".position_ids"):  # numbers from 0 on, which older versions saved
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if name in ("image_projection", "text_projection"):
            tensor = tensor.mT.contiguous()
        elif name == "visual.cls_token":
            tensor = tensor.view(1, 1, -1)
        elif name == "visual.pos_embed":
            tensor = tensor.unsqueeze(0)
        made[name] = tensor
    return made

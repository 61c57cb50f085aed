"""What the attention does: maps by layer and head, relevance for a text, what occlusion hides, and λ over training."""

from diffclip.analysis.attention_maps import image_attention, text_attention
from diffclip.analysis.relevance import relevance

__all__ = ["image_attention", "relevance", "text_attention"]

"""What the attention does: relevance maps, how well they find the object, and λ over layers and time."""

from diffclip.analysis.attention_maps import image_attention, relevance, text_attention

__all__ = ["image_attention", "relevance", "text_attention"]

"""Vision-language models: an encoder of ours, a connector, and a causal language model of transformers'.

Importing this registers the image tower with transformers, so that a trained folder opens there too:
`import diffclip.vlm; transformers.LlavaForConditionalGeneration.from_pretrained(FOLDER)`.
"""

from diffclip.errors import UserError

try:
    import transformers as _transformers  # noqa: F401
except ImportError:
    raise UserError("vision-language models need the transformers library: pip install 'diffclip[vlm]'") from None


from diffclip.vlm.answering import VisionLanguageModel, answer, answer_about, load
from diffclip.vlm.tower import DiffCLIPVisionConfig, DiffCLIPVisionModel

__all__ = ["DiffCLIPVisionConfig", "DiffCLIPVisionModel", "VisionLanguageModel", "answer", "answer_about", "load"]

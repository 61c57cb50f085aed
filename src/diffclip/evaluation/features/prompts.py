"""The embeddings of classes: the mean of each class's prompts (Radford et al. 2021, section 3.1.4)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from diffclip.data.sources import check_template
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import Tokenize, text_features
from diffclip.models.clip import CLIP


def class_embeddings(
    model: CLIP,
    tokenizer: Tokenize,
    classnames: Sequence[str],
    templates: Sequence[str],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """One embedding a class, (classes, embed_dim): the normalised mean of normalised prompt embeddings.

    templates: `str.format` patterns in which `{c}` is the class name. on_progress: see `text_features`. Raises
    UserError for no class, no template, and a template that cannot be filled in.
    """
    if not classnames or not templates:
        raise UserError(
            f"zero-shot classification needs class names and templates, found {len(classnames)} and {len(templates)}"
        )
    prompts = [fill(template, name) for name in classnames for template in templates]
    features = text_features(model, tokenizer, prompts, on_progress=on_progress)  # (classes × templates, embed_dim)
    means = features.view(len(classnames), len(templates), -1).mean(dim=1)
    return nn.functional.normalize(means, dim=-1)


def fill(template: str, classname: str) -> str:
    """The prompt of a class. Raises UserError where the template has other fields than `{c}`, or none."""
    check_template(template)
    return template.replace("{c}", classname)

"""`diffclip attend`: where models look in one image for some texts, and the attention maps behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import model_labels as _labels
from diffclip.text import say_loading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIGURES, ARRAYS = (".png", ".pdf", ".svg"), (".safetensors", ".npz")


def attend(
    model: Positional[str],
    image: Positional[Path],
    /,
    *,
    beside: tuple[str, ...] = (),
    text: tuple[str, ...] = (),
    control: tuple[str, ...] = (),
    out: Path,
    layers: Path | None = None,
    heads: Path | None = None,
    maps: Path | None = None,
) -> None:
    """Draw where a model looks in an image for each text, beside others if you like.

    Args:
        model: What diffclip.load takes, if its attention maps can be had: a run, a file, hf:OWNER/NAME. Or the folder
            of a vision-language model: then --text are questions, and the figure shows where their answers begin.
        image: The image, a file.
        beside: Further models, a row of the figure each.
        text: What to look for, one text or several.
        control: Texts of what is not in the image, marked as such: what a map looks like that found nothing.
        out: The figure of relevance maps: .png, .pdf or .svg.
        layers: A second figure: A1, A2 and A1 − λA2 of every layer, signed, averaged over heads.
        heads: A third: the same of every head.
        maps: All maps as arrays: .safetensors or .npz.
    """
    if not text or not all(query.strip() for query in (*text, *control)):
        raise UserError('no text to look for: give --text "a red star" "a blue arrow"')
    for path, endings in ((out, FIGURES), (layers, FIGURES), (heads, FIGURES), (maps, ARRAYS)):
        if path is not None and path.suffix.lower() not in endings:
            raise UserError(f"{path}: its name must end in one of {', '.join(endings)}")
    from diffclip.data.images import decode_file

    picture = decode_file(image)
    say_loading()
    if any(_is_vision_language(source) for source in (model, *beside)):
        if not all(_is_vision_language(source) for source in (model, *beside)) or control or layers or heads or maps:
            raise UserError(f"{model} and those beside it: vision-language models are drawn alone, by --text and --out")
        _draw_answers((model, *beside), picture, text, out)
        return

    from diffclip.analysis.look import look, save_arrays
    from diffclip.distributed import default_device
    from diffclip.models.weights.store import load
    from diffclip.reporting.figures.attention import head_figure, layer_figure, relevance_figure
    from diffclip.reporting.figures.style import save
    from diffclip.terminal import Terminal

    models, texts = (model, *beside), (*text, *control)
    looks = {
        label: look(load(source, default_device())[0], picture, texts)
        for label, source in zip(_labels(models), models, strict=True)
    }
    console = Terminal()
    for label, of_model in looks.items():
        for query, score in zip(texts, of_model.scores, strict=True):
            console.print(f"{label}  {query}:  cosine {score:.3f}", highlight=False, soft_wrap=True)
    figures = [(out, relevance_figure(looks, texts, controls=len(control)))]
    figures += [(layers, layer_figure(looks))] if layers else []
    figures += [(heads, head_figure(looks))] if heads else []
    for path, figure in figures:
        save(figure, path)
    if maps is not None:
        save_arrays(maps, looks.values())
    written = ", ".join(str(path) for path in (out, layers, heads, maps) if path is not None)
    console.print(f"Written to {written}", highlight=False, soft_wrap=True)


def _is_vision_language(source: str) -> bool:
    """Whether a folder holds what `diffclip vlm train` writes."""
    config = Path(source) / "config.json"
    return config.is_file() and '"model_type": "llava"' in config.read_text(encoding="utf-8", errors="replace")


def _draw_answers(models: tuple[str, ...], picture: NDArray[np.uint8], questions: tuple[str, ...], out: Path) -> None:
    from diffclip.analysis.look import SHOWN, visible
    from diffclip.reporting.figures.attention import answer_figure
    from diffclip.reporting.figures.style import save
    from diffclip.terminal import Terminal
    from diffclip.vlm import load
    from diffclip.vlm.answering import first_token_map
    from diffclip.vlm.model import image_settings

    console = Terminal()
    answers = {}
    for label, source in zip(_labels(models), models, strict=True):
        opened = load(source)
        answers[label] = [first_token_map(opened, picture, question) for question in questions]
        for question, (_, said) in zip(questions, answers[label], strict=True):
            console.print(f"{label}  {question}  {said}", highlight=False, soft_wrap=True)
    seen = visible(image_settings(opened.model), picture, SHOWN)
    save(answer_figure(seen, answers, questions), out)
    console.print(f"Written to {out}", highlight=False, soft_wrap=True)

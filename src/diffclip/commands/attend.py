"""`diffclip attend`: where models look in one image."""

from pathlib import Path

from tyro.conf import Positional, UseAppendAction


def attend(
    model: Positional[str],
    image: Positional[Path],
    /,
    *,
    beside: tuple[str, ...] = (),
    text: UseAppendAction[tuple[str, ...]] = (),
    out: Path,
    layers: Path | None = None,
    heads: Path | None = None,
    maps: Path | None = None,
) -> None:
    """Draw where a model looks in an image for each text, beside others if you like.

    Args:
        model: A run directory, a .safetensors file, a released checkpoint or a hub id.
        image: The image, a file.
        beside: Further models, a row of the figure each.
        text: What to look for; once for each text.
        out: The figure of relevance maps: .png, .pdf or .svg.
        layers: A second figure: A1, A2 and A1 − λA2 of every layer, signed, averaged over heads.
        heads: A third: the same of every head.
        maps: All maps as arrays: .safetensors or .npz.
    """
    from diffclip.reporting.attend import run

    run((model, *beside), image, text, out, layers=layers, heads=heads, maps=maps)

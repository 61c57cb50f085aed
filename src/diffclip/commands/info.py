"""`diffclip info`: what a model is, from where, and what it takes."""

from __future__ import annotations

from tyro.conf import Positional

from diffclip.text import say_loading


def info(model: Positional[str], /) -> None:
    """Say what a model is: attention, parameters, images, origin and SHA-256.

    Args:
        model: A run directory, a file of weights, a folder of open_clip or transformers, or hf:OWNER/NAME of the hub.
    """
    say_loading()
    from diffclip.durable import sha256
    from diffclip.models.clip import count_parameters
    from diffclip.models.weights.files import files_of, locate
    from diffclip.models.weights.store import load
    from diffclip.terminal import Terminal

    files = files_of(locate(model))
    opened, _, _ = load(model)
    settings, counts = opened.config, count_parameters(opened)
    facts = opened.describe()
    added = counts["lambda"] + counts["head_norm"]
    facts["parameters"] = f"{counts['total']:,}" + (f", of them {added:,} λ and head norms" if added else "")
    facts["images"] = (
        f"{settings.image_size} × {settings.image_size}, resized: {settings.resize}, {settings.interpolation} by "
        f"{settings.resizer}, mean {_three(settings.image_mean)}, deviation {_three(settings.image_std)}"
    )
    facts |= {f"SHA-256 of {file}": sha256(file) for file in files}
    console = Terminal()
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False, soft_wrap=True)


def _three(colours: tuple[float, float, float]) -> str:
    return " ".join(f"{colour:.3f}" for colour in colours)

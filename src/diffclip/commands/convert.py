"""`diffclip convert`: put differential attention into a model that exists."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def convert(
    model: Positional[str],
    /,
    *,
    out: Path,
    attention: Literal["differential_v2", "differential_gated", "differential", "no_second_map"] = "differential_v2",
    towers: Literal["both", "vision", "text"] = "both",
    layers: tuple[int, ...] | None = None,
    lambda_init: float | None = None,
    inexact: bool = False,
) -> None:
    """Put differential attention into a model that exists.

    Args:
        model: What diffclip.load takes: a run, a folder, a file, hf:owner/name.
        out: Where the converted model is written.
        attention: differential_v2 starts as a mirror, differential_gated with nothing subtracted, both exactly.
            differential is the paper's, which cannot start exactly: it asks for --inexact. no_second_map is a control:
            the parameters of differential_v2, no second map.
        towers: Which towers.
        layers: Which layers of each, counted from 0; by default all.
        lambda_init: Where λ of differential_v2 starts, 0.5 by default; and λ_init of differential.
        inexact: Convert though the output moves.
    """
    import torch

    from diffclip.models import convert as work
    from diffclip.models.clip import count_parameters
    from diffclip.models.parity import compare
    from diffclip.models.weights.store import check_free, load_trainable, save
    from diffclip.terminal import Terminal

    check_free(out)
    before = load_trainable(model, what="convert")
    torch.manual_seed(0)  # the λ vectors of "differential" are drawn
    after = work.convert(before, attention, towers=towers, layers=layers, lambda_init=lambda_init, inexact=inexact)
    moved = compare(before, after.encode_image, after.encode_text)
    save(after, out, converted_from=model)
    added = count_parameters(after)["total"] - count_parameters(before)["total"]
    console = Terminal()
    console.print(f"{added:,} parameters added; {moved}.", highlight=False)
    console.print(
        f'The model is in {out}: diffclip.load({str(out)!r}); train it by a recipe with model.start = "{out}"',
        highlight=False,
        soft_wrap=True,
    )

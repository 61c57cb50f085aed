"""`diffclip quickstart`: train CLIP and DiffCLIP on drawn scenes, compare them."""

from pathlib import Path

from diffclip.text import say_loading


def quickstart(*, out: Path = Path("runs/quickstart"), minutes: float = 9.0, seed: int = 0) -> None:
    """Train CLIP and DiffCLIP on drawn scenes, compare them, and write report.html.

    Args:
        out: Where both runs, results.jsonl and report.html go.
        minutes: The whole budget. Fewer minutes mean fewer training steps, the same number for both models.
        seed: Of the weights and of the order of the data, the same for both.
    """
    say_loading()
    from diffclip.quickstart import run

    run(out, minutes, seed)

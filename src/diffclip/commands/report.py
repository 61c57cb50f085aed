"""`diffclip report`: tables, figures and one page of any results."""

from pathlib import Path

from tyro.conf import Positional


def report(
    inputs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    label: tuple[str, ...] = (),
    with_paper: bool = False,
    image: tuple[str, ...] = (),
    scenes: int = 2,
) -> None:
    """Make tables, figures and one page, OUT/report.html, of any results.

    Args:
        inputs: Run directories, folders of them, results.jsonl files, or the LAION benchmark's .json and .csv.
        out: Where report.html, tables/ and figures/ go.
        label: NAME=PATTERN: call the models NAME whose name or weights match a shell pattern.
        with_paper: Show the paper's own numbers beside, marked as such.
        image: IMAGE=QUERY;QUERY: show where the models look in an image for each query; needs their run directories.
        scenes: The same on this many test scenes, for models that were trained on scenes.
    """
    from diffclip.reporting import report as command

    options = command.Options(labels=label, with_paper=with_paper, images=image, scenes=scenes)
    command.tell(command.report(inputs, out, options))

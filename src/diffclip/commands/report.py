"""`diffclip report`: tables, figures and one page of any results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from diffclip.reporting.report import ReportFiles


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
    from diffclip.reporting.report import Options, report

    print_files(report(inputs, out, Options(labels=label, with_paper=with_paper, images=image, scenes=scenes)))


def print_files(files: ReportFiles) -> None:
    """Say what is missing, and where the report is."""
    from diffclip.terminal import Terminal

    console, out = Terminal(), files.page.parent
    for line in files.notes:
        console.print(f"note: {line}", highlight=False, soft_wrap=True)
    for line in files.missing:
        console.print(f"missing: {line}", highlight=False, soft_wrap=True)
    written = f"{files.tables} tables in {out / 'tables'}, {files.figures} figures in {out / 'figures'}"
    console.print(written, f"Report: {files.page}", sep="\n", highlight=False, soft_wrap=True)

"""`diffclip index`: make an index of pictures, or bring it up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import counted, duration, listed, say_loading

if TYPE_CHECKING:
    from diffclip.search.update import Report


def index(
    model: Positional[str],
    folders: Positional[tuple[str, ...]] = (),
    /,
    *,
    to: str,
    exclude: tuple[str, ...] = (),
    forget: tuple[str, ...] = (),
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    batch_size: int | None = None,
) -> None:
    """Index the pictures in folders, for `diffclip search` and `diffclip serve`.

    Again, it brings the index up to date. Status 1: some could not be read.

    Args:
        model: What diffclip.load takes: a run, a folder, a file, hf:OWNER/NAME.
        folders: Folders of pictures, those below them included; the folders that the index has are looked through too.
        to: The index, a folder; or s3://, gs:// or az:// with a path.
        exclude: Patterns of names, or of paths below a folder, that stay out: "*.gif" private. The index remembers
            them.
        forget: Folders to take out of the index.
        dtype: What the model computes in: bfloat16 takes half the memory; int8 quantises the image tower (extra onnx).
        batch_size: Pictures encoded at a time; by default what is fast on this device.
    """
    if exclude and not all(pattern.strip("/ ") for pattern in exclude):
        raise UserError("--exclude has an empty pattern: leave it out")
    say_loading()
    import time

    from diffclip.search.update import forget as take_out
    from diffclip.search.update import open_index, real_folders, update
    from diffclip.terminal import Terminal
    from diffclip.use.choices import check_all_read, progress
    from diffclip.use.encoder import open_encoder

    real_folders(folders)
    console = Terminal()
    encoder = open_encoder(model, dtype, batch_size)
    with open_index(to, encoder, folders, exclude) as opened:
        if forget:
            console.print(f"{counted(take_out(opened, forget), 'picture')} taken out", highlight=False)
        began = time.monotonic()
        with progress("indexing", None) as told:
            report = update(opened, encoder, told)
        for line in _lines(report):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(
            f"{to}: {counted(len(opened), 'picture')}; {report.encoded:,} encoded, {report.reused:,} moved or copied, "
            f"{report.deleted:,} deleted, in {duration(time.monotonic() - began)}",
            highlight=False,
            soft_wrap=True,
        )
        check_all_read(report.problems, read=len(opened))


def _lines(report: Report) -> list[str]:
    lines = []
    if report.missing:
        lines.append(f"not there now, their pictures stay in the index: {listed(report.missing)} (--forget takes out)")
    if report.links:
        lines.append(f"not followed: {counted(report.links, 'link')}; name the folders that they lead to")
    if report.known_problems:
        lines.append(f"{counted(report.known_problems, 'file')} could not be read before, unchanged since")
    return lines

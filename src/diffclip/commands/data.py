"""`diffclip data verify`, `pack`, `show` and `icons`: their arguments."""

from pathlib import Path
from typing import Annotated

from tyro.conf import PositionalRequiredArgs, arg

from diffclip.data.options import Located
from diffclip.errors import UserError

Data = Annotated[PositionalRequiredArgs[Located], arg(name="")]


def data() -> None:
    """Data sets: `list`, `verify`, `pack`, `show`, `icons`; see diffclip data --help."""


def data_list(*, root: Path | None = None) -> None:
    """List the paper's data sets: which are there, how to get the others.

    Args:
        root: The folder below which data sets lie; by default $DIFFCLIP_DATA, or else data/.
    """
    from diffclip.evaluation.datasets.listing import print_list

    print_list(root)


def verify(data: Data, *, workers: int = 0, json: Path | None = None) -> None:
    """Decode every image, tokenise every caption; report sizes and what is wrong.

    Status 1: an example cannot be used, or is there twice.

    Args:
        workers: Processes; 0: as many as there are processors.
        json: Write the report there too, with the place of everything that is wrong.
    """
    from diffclip.data.parallel import processors
    from diffclip.data.tools import verify as work
    from diffclip.evaluation.datasets.folders import open_given

    work.verify(open_given(data), workers=workers or processors(), json_file=json)


def pack(
    data: Data,
    *,
    out: Path,
    shard_mb: float = 256,
    shard_examples: int = 10_000,
    resize: int | None = None,
    quality: int = 92,
    shuffle: int | None = None,
    workers: int = 0,
) -> None:
    """Write a data set as tar shards. The same command goes on where it was stopped.

    Args:
        out: The folder of the shards, new or of the same packing.
        shard_mb: Megabytes (10^6 bytes) of a shard, at most.
        shard_examples: Examples of a shard, at most.
        resize: Shrink images whose shorter edge is longer than this to it, as JPEG; without it files stay as they are.
        quality: Of those JPEG files, 1 to 100.
        shuffle: Seed of a random order of the examples, which streams need; without it the data set's own.
        workers: Processes; 0: as many as there are processors.
    """
    from diffclip.data.parallel import processors
    from diffclip.data.tools import pack as work
    from diffclip.evaluation.datasets.folders import open_given

    for name, value, least, most in (
        ("shard-mb", shard_mb, 0.01, 1e6),
        ("shard-examples", shard_examples, 1, 99_999),
        ("resize", 1 if resize is None else resize, 1, 1 << 14),
        ("quality", quality, 1, 100),
    ):
        if not least <= value <= most:
            raise UserError(f"--{name} {value}: give a number from {least:g} to {most:g}")
    plan = work.ShardPlan(round(shard_mb * 1e6), shard_examples, resize, quality, shuffle)
    work.tell(work.pack(open_given(data), out, plan, workers=workers or processors()), out)


def show(data: Data, *, out: Path, count: int = 24, columns: int = 6, seed: int = 0) -> None:
    """Draw some examples of a data set on one sheet, with their captions.

    Args:
        out: The sheet, a .png file.
        count: How many examples.
        columns: How many side by side.
        seed: Of the random choice.
    """
    from diffclip.data.tools import show as work
    from diffclip.evaluation.datasets.folders import open_given

    if not (0 < count <= 1000 and columns > 0):
        raise UserError(f"--count {count} --columns {columns}: give 1 to 1000 examples in at least one column")
    work.show(open_given(data), out, count=count, columns=columns, seed=seed)


def icons(
    *, out: Path, package: Path | None = None, version: str | None = None, seed: int = 0, workers: int = 0
) -> None:
    """Make image-text pairs of open icons; docs/icons.md says of which.

    Args:
        out: The folder for the shards; the same command goes on where it was stopped.
        package: The package's .tgz, where it is there already; without it npm fetches it, once.
        version: Of the package that npm fetches; by default the one of the page's numbers.
        seed: Of colours, margins, the words of captions, and the choice of names that are held out.
        workers: Processes; 0: as many as there are processors.
    """
    from diffclip.data.icons import make as work
    from diffclip.data.parallel import processors

    if package is not None and version is not None:
        raise UserError("--package names a file, so that --version has nothing to choose: leave one of them out")
    work.make(out, package, version, seed=seed, workers=workers or processors())

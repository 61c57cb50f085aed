"""Data sets that are one benchmark each, in their authors' own form: how a folder is recognised, and what opens it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffclip.data.sources import Source
from diffclip.evaluation.datasets.mmvp import MMVPSource
from diffclip.evaluation.datasets.pairs import PairImages
from diffclip.evaluation.datasets.sugarcrepe import SugarCrepeSource, kinds_in
from diffclip.evaluation.datasets.winoground import WinogroundSource, files_in


@dataclass(frozen=True)
class Benchmark:
    """The form of one data set."""

    lies_in: Callable[[Path], bool]
    """Whether a folder holds it. Reads names, and heads of files at most."""
    open: Callable[[Path], Source]
    """Its examples, from that folder. Raises UserError where files are missing or of another form."""


# By the names of the registry.
BENCHMARKS: dict[str, Benchmark] = {
    "mmvp_vlm": Benchmark(
        lambda folder: (folder / "Questions.csv").is_file(), lambda folder: PairImages(MMVPSource(folder))
    ),
    "sugarcrepe": Benchmark(lambda folder: bool(kinds_in(folder)), SugarCrepeSource),
    "winoground": Benchmark(
        lambda folder: bool(files_in(folder)), lambda folder: PairImages(WinogroundSource(folder), "swaps")
    ),
}


def benchmark_in(folder: Path) -> Benchmark | None:
    """The benchmark that a folder holds, if it holds one."""
    return next((form for form in BENCHMARKS.values() if form.lies_in(folder)), None)

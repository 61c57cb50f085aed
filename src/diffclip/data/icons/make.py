"""`diffclip data icons`: fetch the package, choose, draw each split into shards, write the card"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from diffclip import durable
from diffclip.data.icons.card import card
from diffclip.data.icons.choose import Choice, choose
from diffclip.data.icons.draw import renderer
from diffclip.data.icons.package import VERSION, fetch, read
from diffclip.data.icons.source import SPLITS, IconSource
from diffclip.data.tools.pack import ShardPlan, pack
from diffclip.terminal import Terminal

CARD = "README.md"


def make(out: Path, archive: Path | None, version: str | None, *, seed: int, workers: int) -> None:
    """Write the data set into `out`, or what is left of it, and say what is in it. Raises UserError."""
    renderer()  # before 100 MB are fetched
    archive = archive or fetch(version or VERSION, out)
    package = read(archive)
    choice = choose(package, seed)
    left_out, counts, megabytes = Counter(choice.left_out), dict[str, int](), 0.0
    for split in SPLITS:
        source, folder = IconSource(choice, split, seed, package.sha256), out / SPLITS[split]
        state = pack(source, folder, ShardPlan(), workers=workers)
        counts[split] = sum(shard["examples"] for shard in state["shards"])
        megabytes += sum(shard["bytes"] for shard in state["shards"]) / 1e6
        for reason, count in state["left_out"].items():
            left_out[_WHY.get(reason, reason)] += count
    written = card(package, choice, counts, dict(left_out), seed)
    with durable.cannot_write(out):
        durable.write_text(out / CARD, written)
    _tell(out, choice, counts, left_out, megabytes)


_WHY = {"blank": "nothing is to be seen", "cannot_be_drawn": "it cannot be drawn"}


def _tell(out: Path, choice: Choice, counts: dict[str, int], left_out: Counter[str], megabytes: float) -> None:
    console = Terminal()
    said: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
    for split in SPLITS:
        icons = getattr(choice, split)
        sets, names = {icon.icons.prefix for icon in icons}, {icon.key for icon in icons}
        console.print(f"{out / SPLITS[split]}: {counts[split]:,} icons, {len(sets)} sets, {len(names):,} names", **said)
    console.print(f"{megabytes:,.0f} MB; left out {sum(left_out.values()):,}:", **said)
    for reason, count in left_out.most_common():
        console.print(f"  {count:>7,} {reason}", **said)

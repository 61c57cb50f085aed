"""The card of a data set of icons: what is in it, by which rules, and whose work it is"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib.metadata import version

from diffclip.data.icons.choose import CLASSES, HELD_OUT, Choice
from diffclip.data.icons.draw import SIZE
from diffclip.data.icons.package import IconSet, Package
from diffclip.data.icons.source import SPLITS


def card(package: Package, choice: Choice, counts: Mapping[str, int], left_out: Mapping[str, int], seed: int) -> str:
    """The card, in Markdown."""
    sets: dict[str, IconSet] = {}
    of_set: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for split in SPLITS:
        for icon in getattr(choice, split):
            sets[icon.icons.prefix] = icon.icons
            of_set[icon.icons.prefix][split] += 1
    lines = [
        "# Icons with captions",
        "",
        f"Drawn by `diffclip data icons` from @iconify/json {package.version}, seed {seed}, resvg-py "
        f"{version('resvg-py')}, {SIZE} pixels. SHA-256 of the package: {package.sha256}.",
        "",
        "| folder | icons | what |",
        "|---|---:|---|",
        f"| `train` | {counts['train']:,} | captions; names that are not held out |",
        f"| `val` | {counts['heldout']:,} | one icon of each held-out name, from sets of `train`; for retrieval |",
        f"| `test` | {counts['unseen']:,} | {len(choice.classnames)} classes, from sets of which nothing is in "
        "`train`; for zero-shot |",
        "",
        f"- One name in {HELD_OUT} is held out, by a hash of its words in any order, without style, size and number. "
        "No icon of `train` has it as a name or a further name.",
        f"- Classes are the {CLASSES} names that most sets of `train` have, of those that two authors of unseen sets "
        "use. Training has seen the names, and none of the sets.",
        "- Colours, ground, margin and the words of captions are drawn by the seed. Pictures are drawings on one "
        "colour.",
        "- The `.json` of each example has its set, name, author and licence.",
        "",
        "Names are the authors'. Many mean the same (`trash`, `delete`), so that an answer that counts as wrong may be "
        "right. Drawings of one thing by several authors are alike by convention.",
        "",
        "## Left out",
        "",
        "| icons | why |",
        "|---:|---|",
        *(f"| {count:,} | {reason} |" for reason, count in sorted(left_out.items(), key=lambda item: -item[1])),
        "",
        "## Whose work it is",
        "",
        "| set | author | licence | train | val | test |",
        "|---|---|---|---:|---:|---:|",
    ]
    for prefix, made in sorted(sets.items()):
        numbers = " | ".join(f"{of_set[prefix][split]:,}" for split in SPLITS)
        author = f"[{_cell(made.author)}]({_cell(made.author_url)})" if made.author_url else _cell(made.author)
        lines.append(
            f"| {_cell(made.title)} (`{prefix}`) | {author} | [{made.licence}]({made.licence_url}) | {numbers} |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text from the package that cannot end a cell of a table, or a link."""
    return "".join(" " if character in "|[]()\n\r" else character for character in text)

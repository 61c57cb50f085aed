"""Which icons are left out, and why; which train, and which are kept to be asked about"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from diffclip.data.icons.names import Name, plain, style_of_set, taken_apart
from diffclip.data.icons.package import IconSet, Package, box_of
from diffclip.errors import UserError

UNSEEN = (
    "dinkie-icons", "game-icons", "glyphs", "glyphs-poly", "healthicons", "icon-park", "icon-park-outline",
    "icon-park-solid", "icon-park-twotone", "openmoji", "pepicons-pencil", "pepicons-pop", "pepicons-print",
)  # fmt: skip
"""Sets that nothing is trained on: all of their authors' sets, in styles unlike those of the others."""
CLASSES = 200
HELD_OUT = 32
"""One name in so many is held out of training."""
_MOVES = re.compile(r"<(animate|set|script)")
_OUTSIDE = re.compile(r"<(image|foreignObject|style)|href\s*=\s*[\"'](?!#)|url\((?![\"']?#)")
_BRAND = re.compile(r"brand|logo|social", re.IGNORECASE)
_SKIN = re.compile(r"skin-tone")
_SHADES = ("light", "medium-light", "medium", "medium-dark", "dark")
BRANDS = 5
"""A name that so many sets of logos have is a brand's in every other set too."""


@dataclass(frozen=True)
class Icon:
    """An icon that is drawn."""

    icons: IconSet = field(repr=False)
    name: str
    body: str = field(repr=False)
    box: tuple[float, float, float, float]
    says: Name
    styles: tuple[str, ...]
    also: tuple[str, ...] = ()
    """Other names of it."""

    @property
    def key(self) -> str:
        return self.says.key


@dataclass(frozen=True)
class Choice:
    """The splits, and what is in none of them by reason."""

    train: tuple[Icon, ...]
    heldout: tuple[Icon, ...]
    unseen: tuple[Icon, ...]
    labels: tuple[int, ...]
    """Of the icons of unseen sets."""
    classnames: tuple[str, ...]
    left_out: Mapping[str, int]


def choose(package: Package, seed: int) -> Choice:
    """The splits of a package's icons: the same for the same package and seed. Raises UserError where one is empty."""
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    kept: dict[bool, list[Icon]] = {False: [], True: []}
    brands = _brands(package)
    archived = {icons.author: True for icons in package.sets}
    for icons in package.sets:
        archived[icons.author] &= _archived(icons)
    for icons in sorted(
        package.sets, key=lambda icons: icons.prefix in UNSEEN
    ):  # a drawing that both have is trained on
        reason = _set_reason(icons, package, archived[icons.author])
        if reason:
            left_out[reason] += len(icons.icons)
            continue
        for icon, why in _icons(icons, seen, brands):
            if icon is None:
                left_out[why] += 1
            else:
                kept[icons.prefix in UNSEEN].append(icon)
    classes = _classes(kept[False], kept[True])
    numbers = {key: number for number, key in enumerate(classes)}
    train, heldout = list[Icon](), dict[str, tuple[bytes, Icon]]()
    for icon in kept[False]:
        if icon.key in classes or not _held_out(icon.key, seed):
            train.append(icon)
            continue
        rank = _digest(seed, icon.icons.prefix, icon.name)
        if icon.key in heldout:
            left_out["has a held-out name"] += 1
        if icon.key not in heldout or rank < heldout[icon.key][0]:
            heldout[icon.key] = rank, icon
    unseen = [icon for icon in kept[True] if icon.key in numbers]
    left_out["of an unseen set, and of no class"] += len(kept[True]) - len(unseen)
    for what, split in (("trained on", train), ("held out", heldout), ("of a class in an unseen set", unseen)):
        if not split:
            raise UserError(f"@iconify/json {package.version} leaves no icon that is {what}: give another version")
    return Choice(
        tuple(_without_held_out(icon, classes, seed) for icon in train),
        tuple(icon for _, icon in heldout.values()),
        tuple(unseen),
        tuple(numbers[icon.key] for icon in unseen),
        tuple(classes.values()),
        dict(sorted((reason, count) for reason, count in left_out.items() if count)),
    )


def _archived(icons: IconSet) -> bool:
    return icons.category.startswith("Archive")


def _set_reason(icons: IconSet, package: Package, all_archived: bool) -> str:
    """Why nothing of a set is drawn; empty where it is."""
    older = re.sub(r"-v\d+$", "", icons.prefix)
    if not icons.listed:
        return "the set is withdrawn"
    if not icons.licence or "-NC" in icons.licence or "-ND" in icons.licence:
        return "the licence forbids some uses, or is not stated"
    if icons.category in ("Logos", "Programming"):
        return "the set is of logos and products"
    if icons.category.startswith("Flags") and "flag" in f"{icons.prefix} {icons.title}".lower():
        return "the set is of flags"
    if (older != icons.prefix and any(other.prefix == older for other in package.sets)) or (
        _archived(icons) and not all_archived
    ):
        return "an older set, whose author has a newer one"
    return ""


def _icons(icons: IconSet, seen: set[str], brands: Set[str]) -> Iterator[tuple[Icon | None, str]]:
    """Each icon of a set, or why it is left out."""
    names = {plain(name) for name in icons.icons}
    also: dict[str, list[str]] = defaultdict(list)
    for alias, parent in sorted(icons.aliases.items()):
        also[parent].append(alias)
    general = style_of_set(icons.prefix, icons.title, icons.strokes, icons.multicoloured)
    said = {name: taken_apart(name, names) for name in icons.icons}
    sizes = set[tuple[Name, tuple[str, ...]]]()
    for name in sorted(icons.icons, key=lambda name: (-_size(said[name], icons), name)):
        icon, says = icons.icons[name], said[name]
        why = "a brand" if str(says) in brands else _reason(name, icon, says, icons)
        size = (Name(says.words, ()), says.styles)
        body = str(icon.get("body", ""))
        box = box_of(icon, icons)
        drawing = hashlib.sha256(f"{box} {' '.join(body.split())}".encode(errors="replace")).hexdigest()
        if not why and _size(says, icons) and size in sizes:
            why = "another size of an icon"
        if not why and drawing in seen:
            why = "the drawing of an earlier icon"
        if why:
            yield None, why
            continue
        seen.add(drawing)
        sizes.add(size)
        styles = tuple(
            dict.fromkeys((*says.styles, *(style for style in general if style != "line" or not says.styles)))
        )
        further = dict.fromkeys(str(taken_apart(alias, names)) for alias in also[name])
        yield Icon(icons, name, body, box, says, styles, tuple(w for w in further if w != str(says))), ""


def _shaded(name: str, icons: IconSet) -> bool:
    """Whether the set has a person in this shade and in others."""
    shade = next((shade for shade in _SHADES if name.endswith(f"-{shade}")), "")
    return bool(shade) and all(f"{name.removesuffix(shade)}{other}" in icons.icons for other in ("light", "dark"))


def _brands(package: Package) -> frozenset[str]:
    """The names that many sets of logos have, as words."""
    count = Counter(
        plain(name).replace("-", " ") for icons in package.sets if icons.category == "Logos" for name in icons.icons
    )
    return frozenset(name for name, sets in count.items() if sets >= BRANDS)


def _size(says: Name, icons: IconSet) -> int:
    return int(says.number.removesuffix("px")) if says.number in icons.sizes else 0


def _reason(name: str, icon: Mapping[str, Any], says: Name, icons: IconSet) -> str:
    body = str(icon.get("body", ""))
    if icon.get("hidden"):
        return "the icon is withdrawn"
    if any(_BRAND.search(category) for category in icons.categories.get(name, ())) or _BRAND.search(name):
        return "a brand"
    if icons.category == "Emoji" and (_SKIN.search(name) or name.startswith("flag-") or _shaded(name, icons)):
        return "an emoji's skin tone, or a flag"
    if _MOVES.search(body):
        return "it moves"
    if _OUTSIDE.search(body) or "<text" in body:
        return "it refers to other files or fonts"
    if not re.search("[a-z]{2}", str(says)):
        return "its name has no word"
    return ""


def _classes(trained: list[Icon], unseen: list[Icon]) -> dict[str, str]:
    """Name and key of the classes: names of unseen sets that most sets of training have; of equals the first."""
    sets, there, names = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set), dict[str, Counter[str]]()
    for icon in trained:
        sets[icon.key].add(icon.icons.prefix)
    for icon in unseen:
        there[icon.key].add(icon.icons.author)
        names.setdefault(icon.key, Counter())[str(icon.says)] += 1
    able = [key for key, authors in there.items() if len(authors) > 1 and sets[key]]
    chosen = sorted(able, key=lambda key: (-len(sets[key]), key))[:CLASSES]
    return {key: min(names[key], key=lambda name: (-names[key][name], name)) for key in chosen}


def _held_out(key: str, seed: int) -> bool:
    return int.from_bytes(_digest(seed, key)[:8], "big") % HELD_OUT == 0


def _without_held_out(icon: Icon, classes: Mapping[str, str], seed: int) -> Icon:
    """Without the further names that training must not see."""
    also = tuple(
        name for name in icon.also if (key := " ".join(sorted(name.split()))) in classes or not _held_out(key, seed)
    )
    return icon if also == icon.also else Icon(**{**vars(icon), "also": also})


def _digest(*facts: object) -> bytes:
    return hashlib.blake2b(repr(facts).encode(errors="replace"), digest_size=16).digest()

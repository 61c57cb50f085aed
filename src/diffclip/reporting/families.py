"""Who is who in a set of results: which model is CLIP, which DiffCLIP, which runs differ in their seed alone.

A family is one row of a table: one kind of model, pretrained on one data set, over one or several seeds. Only
families of one group, that is of one pretraining and size, are compared with each other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from diffclip.analysis.curves import read_warnings
from diffclip.errors import UserError
from diffclip.evaluation.stats.seeds import split_seed
from diffclip.models.presets import PRESETS, SIZES
from diffclip.reporting.collect import Collection, RunDirectory

BASELINE = "CLIP"
# The paper's order, and its names.
# Other forms of attention, and the controls, come last.
OTHER_FORMS = {
    "differential_v2": "DiffCLIP v2",
    "differential_gated": "DiffCLIP gated",
    "differential_unnormed": "DiffCLIP unnormed",
    "differential_clamped": "DiffCLIP clamped",
    "dint": "DINT",
    "mdgsa": "M-DGSA",
    "gated": "gated CLIP",
    "no_second_map": "CLIP, no second map",
    "standard_normed": "normed CLIP",
    "standard_wide": "wide CLIP",
}
KINDS = (BASELINE, "DiffCLIP", "DiffCLIP*", "DiffCLIP†", "DiffCLIP text", *OTHER_FORMS.values())
PRETRAINING = re.compile(r"(cc\d+m|yfcc\d+m|laion\d+[mb]|redcaps)", re.IGNORECASE)
LIBRARY = re.compile(r"(clip|siglip|blip|align)model(?:_(\w+))?")
"""What results call a model of transformers' classes, with its attention where that is not standard."""
SEED_PLACE = re.compile(r"[-_./]?seed[-_=]?\*")
SIZE = re.compile(r"vit[_-]?([a-z]+[_-]?\d*)", re.IGNORECASE)


@dataclass(frozen=True)
class Member:
    """One trained model: what results call it, its seed and its run's directory, where those are known."""

    model: str
    pretrained: str
    kind: str
    seed: int | None = None
    run: RunDirectory | None = None

    @property
    def logs(self) -> Path | None:
        """The run's directory, where it is trained to the end and has logged its training."""
        whole = self.run is not None and self.run.finished and (self.run.path / "metrics.jsonl").exists()
        return self.run.path if self.run and whole else None


@dataclass(frozen=True)
class Family:
    """One row of a table: models that differ in their seed alone."""

    label: str
    kind: str
    """One of KINDS: what the attention is, whatever the label says."""
    members: tuple[Member, ...]

    @property
    def by_seed(self) -> Mapping[int | None, Member]:
        """The members by their seed; a lone member whose seed is not known is under None."""
        return {member.seed: member for member in self.members}


@dataclass(frozen=True)
class Group:
    """Families that may be compared: of one pretraining and one size. The first is the baseline."""

    name: str
    families: tuple[Family, ...]

    @property
    def baseline(self) -> Family:
        """What the others are compared with: CLIP where there is one."""
        return self.families[0]


def find_groups(collection: Collection, labels: Sequence[tuple[str, str]] = ()) -> tuple[Group, ...]:
    """Sort every model of a collection into groups and families.

    labels: (NAME, PATTERN) pairs; a model whose `model` or `pretrained` a shell pattern matches is called NAME,
    and the first match counts. Runs without results, which have curves to show, are sorted in too. Raises
    UserError for a pattern that matches nothing.
    """
    members = _members(collection)
    for name, pattern in labels:
        if not any(_matches(member, pattern) for member in members):
            known = ", ".join(sorted({member.model for member in members}))
            raise UserError(f"--label {name}={pattern} matches no model; there are {known}")
    sizes: dict[str, dict[str, None]] = {}
    for member in members:
        sizes.setdefault(_pretraining(member), {})[_size(member)] = None
    groups: dict[str, dict[str, list[Member]]] = {}
    for member in members:
        pretraining = _pretraining(member)
        several = len(sizes[pretraining]) > 1
        name = f"{pretraining} {_size(member)}" if several else pretraining
        label = next((name for name, pattern in labels if _matches(member, pattern)), member.kind)
        groups.setdefault(name, {}).setdefault(label, []).append(member)
    order = [name for name, _ in labels]
    return tuple(
        Group(
            name, _sort_families([f for label, members in families.items() for f in _families(label, members)], order)
        )
        for name, families in sorted(groups.items(), key=lambda item: _natural_order(item[0]))
    )


def run_warnings(groups: Sequence[Group]) -> tuple[str, ...]:
    """What the runs of some groups warned of while they trained, a line each."""
    members = [member for group in groups for family in group.families for member in family.members]
    found = [(member, read_warnings(member.run.path)) for member in members if member.run]
    return tuple(f"{member.pretrained}, {text}" for member, texts in found for text in texts)


def _members(collection: Collection) -> list[Member]:
    named = dict.fromkeys((result.model, result.pretrained) for result in collection.results)
    members = []
    taken = set()
    for model, pretrained in named:
        run = collection.run_of(pretrained)
        if run is not None:
            taken.add(run.path)
        members.append(Member(model, pretrained, kind_of(model, run), _seed(pretrained, run), run))
    for run in collection.runs:
        if run.path not in taken:
            stated = run.recipe.get("model", {})
            model = str(stated.get("start") or stated.get("preset", run.path.name))
            seed = _seed(str(run.path), run)
            members.append(Member(model, str(run.path), kind_of(model, run), seed, run))
    return members


def kind_of(model: str, run: RunDirectory | None = None) -> str:
    """One of KINDS, from the run's config; of an unfinished run, which has none, its recipe; else from the name."""
    name = model.lower()
    preset, library = PRESETS.get(name), LIBRARY.fullmatch(name)
    if run is None and preset is not None and preset.vision_attention in OTHER_FORMS:
        return OTHER_FORMS[preset.vision_attention]
    if run is None and library is not None:
        return OTHER_FORMS.get(library[2] or "", "DiffCLIP" if library[2] == "differential" else BASELINE)
    both = "diffclip" in name or name.startswith("diff")
    differential = {"vision": both and not name.endswith("_text"), "text": both and not name.endswith("_vision")}
    dynamic = name.endswith("_dynamic")
    if run is not None:
        fields = _attentions(run.config or run.recipe.get("model", {}).get("overrides", {}))
        for tower in differential:
            attention = fields.get(f"{tower}_attention")
            if attention in OTHER_FORMS:
                return OTHER_FORMS[attention]
            if attention is not None:
                differential[tower] = attention == "differential"
        if "lambda_schedule" in fields:
            dynamic = fields["lambda_schedule"] == "depth"
    towers = differential["vision"], differential["text"]
    if towers == (True, True):
        return "DiffCLIP*" if dynamic else "DiffCLIP"
    return {(False, False): BASELINE, (True, False): "DiffCLIP†", (False, True): "DiffCLIP text"}[towers]


def _attentions(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a configuration; of transformers' models, which state one attention, that of each tower."""
    if "attention" not in fields:
        return fields
    towers = {"both": ("vision", "text")}.get(fields.get("attention_towers", "both"), (fields.get("attention_towers"),))
    return {
        f"{tower}_attention": fields["attention"] if tower in towers else "standard" for tower in ("vision", "text")
    }


def _families(label: str, members: Sequence[Member]) -> list[Family]:
    """One family where the seeds tell the members apart, else one for each name without its seed."""
    seeds = [member.seed for member in members]
    if len(set(seeds)) == len(members) and (None not in seeds or len(members) == 1):
        return [Family(label, members[0].kind, tuple(sorted(members, key=lambda m: -1 if m.seed is None else m.seed)))]
    stems: dict[str, list[Member]] = {}
    for member in members:
        stems.setdefault(_without_seed(member.pretrained), []).append(member)
    if len(stems) == 1:  # the same name and seed: they differ in their model's name
        stems = {}
        for member in members:
            stems.setdefault(member.model, []).append(member)
    shortest = _distinct_endings(list(stems))
    return [
        family
        for stem, members in stems.items()
        for family in (
            _families(f"{label} ({shortest[stem]})", members)
            if len(stems) > 1
            else [Family(f"{label} ({member.pretrained})", member.kind, (member,)) for member in members]
        )
    ]


def _without_seed(pretrained: str) -> str:
    """A run's name without its seed: `runs/half/seed_3` is `runs/half`, `runs/half-seed3` too."""
    return SEED_PLACE.sub("", split_seed(pretrained)[0])


def _distinct_endings(names: Sequence[str]) -> dict[str, str]:
    """Each path's last parts, as many as tell them all apart."""
    parts = {name: Path(name).parts for name in names}
    for length in range(1, max(map(len, parts.values())) + 1):
        short = {name: "/".join(path[-length:]) for name, path in parts.items()}
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}


def _sort_families(families: Sequence[Family], labels: Sequence[str]) -> tuple[Family, ...]:
    """CLIP first, then the paper's order; among equals the order of --label, then that of the results."""

    def place(family: Family) -> tuple[int, int]:
        return KINDS.index(family.kind), labels.index(family.label) if family.label in labels else len(labels)

    return tuple(sorted(families, key=place))


def _pretraining(member: Member) -> str:
    """What a model was pretrained on, in a word: the data of its recipe, else what its name says."""
    data = member.run.recipe.get("data", {}).get("train", {}).get("path") if member.run else None
    for text in (data, member.pretrained, member.model):
        if text and (match := PRETRAINING.search(str(text))):
            return match.group(1).upper()
    if data:
        name = str(data).partition(":")[0].rstrip("/*")
        plain = re.sub(r"\{.*|\.\w+$", "", Path(name).name) or Path(name).parent.name
        return plain or str(data)
    folder = Path(_without_seed(member.pretrained)).parent.name
    return folder if "/" in member.pretrained and folder else "other"


def _size(member: Member) -> str:
    """The size in the model's name or its recipe's preset, with what the recipe sets otherwise."""
    recipe = member.run.recipe.get("model", {}) if member.run else {}
    changed = {name: value for name, value in recipe.get("overrides", {}).items() if name in SIZES}
    if changed:
        preset = SIZE.search(str(recipe.get("start") or recipe.get("preset", "")))
        settings = ", ".join(f"{name} {value}" for name, value in sorted(changed.items()))
        return f"ViT-{preset.group(1)} with {settings}" if preset else settings
    if library := LIBRARY.fullmatch(member.model.lower()):
        return f"transformers' {library[1]}"
    match = SIZE.search(member.model) or SIZE.search(member.pretrained)
    if match:
        return f"ViT-{match.group(1).replace('_', '').replace('-', '')}"
    return re.sub(r"^(diff)?clip_?", "", member.model)


def _seed(pretrained: str, run: RunDirectory | None) -> int | None:
    if run is not None and run.seed is not None:
        return run.seed
    return split_seed(pretrained)[1]


def _matches(member: Member, pattern: str) -> bool:
    return fnmatchcase(member.model, pattern) or fnmatchcase(member.pretrained, pattern)


def _natural_order(text: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", text)]

"""Relevance maps of two models on images, ready to be drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffclip.analysis.look import Look, inputs, look, visible
from diffclip.analysis.relevance import relevance
from diffclip.data.images import BadImage, decode, read_image
from diffclip.data.scenes import SceneSource
from diffclip.errors import UserError
from diffclip.evaluation.tasks.grounding import MaskedSource
from diffclip.models.image_text import ImageTextModel
from diffclip.models.weights.store import load
from diffclip.reporting.families import Family, Group, Member
from diffclip.reporting.figures.style import AttentionPanel, Map, Pixels


@dataclass(frozen=True)
class GroupPanels:
    """Panels of two models, and what they are called."""

    baseline: str
    candidate: str
    panels: tuple[AttentionPanel, ...]
    looks: Mapping[str, Look]
    """What each of the two makes of the first panel's image."""


def attention_panel(
    baseline: ImageTextModel, candidate: ImageTextModel, pixels: Pixels, queries: Sequence[str]
) -> AttentionPanel:
    """Where both models look in an image (H, W, 3) uint8, for each query. Shows the part that the models see."""
    maps = [_maps(model, pixels, queries) for model in (baseline, candidate)]
    image = visible(baseline.config, pixels, min(pixels.shape[:2]))
    return AttentionPanel(image, tuple(queries), maps[0], maps[1])


def scenes_that_name(source: MaskedSource, *, count: int = 4, things: int = 2) -> list[tuple[Pixels, tuple[str, ...]]]:
    """The first `count` images of a source that name at least `things` things, with them: not chosen by the outcome."""
    found: list[tuple[Pixels, tuple[str, ...]]] = []
    for index in range(len(source)):
        if len(found) == count:
            break
        phrases = tuple(phrase for phrase, _ in source.masks(index))
        if len(phrases) >= things:
            found.append((decode(source[index].image), phrases[:things]))
    return found


def pair_of(group: Group) -> tuple[Family, Member, Family, Member] | None:
    """The baseline and the family after it, each with one trained model at hand, of the same seed where there is one.

    None where the group has no two families with weights.
    """
    having = {
        family.label: {member.seed: member for member in family.members if weights_of(member)}
        for family in group.families
    }
    able = [family for family in group.families if having[family.label]]
    if len(able) < 2 or able[0] is not group.baseline:
        return None
    first, second = (having[family.label] for family in able[:2])
    seed = next((seed for seed in first if seed in second), None)
    both = seed in first and seed in second
    members = (first[seed], second[seed]) if both else (*first.values(), *second.values())
    return able[0], members[0], able[1], members[-1]


def weights_of(member: Member) -> str | None:
    """What `diffclip.load` takes for a model: its run's directory, or the file that results name."""
    if member.run is not None:
        return str(member.run.path) if (member.run.path / "model.safetensors").exists() else None
    return member.pretrained if Path(member.pretrained).is_file() else None


def group_panels(group: Group, images: Sequence[tuple[Path, tuple[str, ...]]], *, scenes: int) -> GroupPanels | None:
    """Relevance maps of a group's first two models: on images of the user's and, if trained on scenes, on scenes.

    None where the weights of two are not at hand, or there is nothing to look at. Raises UserError for a file that
    is no image.
    """
    pair = pair_of(group)
    drawn = any(str(_training_data(member)).startswith("scenes") for member in pair[1::2]) if pair else False
    if pair is None or not (images or (scenes and drawn)):
        return None
    baseline, first, candidate, second = pair
    models = [load(str(weights_of(member)))[0] for member in (first, second)]
    shown = [(_picture(path), queries) for path, queries in images]
    if drawn and scenes:
        shown += scenes_that_name(SceneSource("test"), count=scenes)
    labels = (baseline.label, candidate.label)
    return GroupPanels(
        *labels,
        tuple(attention_panel(models[0], models[1], pixels, queries) for pixels, queries in shown),
        {label: look(model, *shown[0]) for label, model in zip(labels, models, strict=True)},
    )


def _picture(path: Path) -> Pixels:
    try:
        return decode(read_image(path))
    except BadImage as error:
        raise UserError(f"{path} is no image that can be read: {error}") from None


def _training_data(member: Member) -> object:
    return member.run.recipe.get("data", {}).get("train", {}).get("path") if member.run else None


def _maps(model: ImageTextModel, image: Pixels, queries: Sequence[str]) -> tuple[Map, ...]:
    pixels, tokens = inputs(model, image, queries)
    return tuple(relevance(model, pixels.expand(len(queries), -1, -1, -1), tokens).cpu().numpy())

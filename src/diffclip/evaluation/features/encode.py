"""Features of a data set's images and of texts: what every task starts from."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from diffclip.data.loading.workers import batches_of
from diffclip.data.sources import Source, check_template
from diffclip.data.transforms import normalise
from diffclip.distributed import World, get_world
from diffclip.errors import UserError
from diffclip.evaluation.features.cache import FeatureCache, Part, spans_of
from diffclip.evaluation.features.decode import Decoded, DecodedImages, Items, split_readable
from diffclip.models.clip import check_finite, evaluation_mode
from diffclip.models.image_text import ImageTextModel, Tokenize
from diffclip.models.weights.store import fingerprint

# Features that are projected at a time.
BLOCK = 2**14
# A small source is cut into this many batches, so that as many processes have some of it, but not into smaller ones.
SHARES, SMALLEST = 16, 32


@dataclass(frozen=True)
class ImageFeatures:
    """The images of a source that could be read, in its order."""

    features: Tensor
    """(N, embed_dim) float32, normalised, on the CPU."""
    indices: Tensor
    """(N,) int64, each image's place in the source."""
    labels: Tensor
    """(N,) int64; -1 where the example has none."""
    captions: tuple[tuple[str, ...], ...]
    """The captions of each image, possibly none."""
    skipped: Counter[str]
    """How many images could not be read, by reason."""
    tower: Tensor
    """(N, vision_width) float32, on the CPU: what the image tower gives, before the projection."""

    def rows_of_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Of `count` pairs, whose images 2 p and 2 p + 1 belong together, those of which both could be read.

        Returns the rows of both images, (P, 2) int64, and the numbers p of the pairs, (P,) int64.
        """
        place = {index: row for row, index in enumerate(self.indices.tolist())}
        whole = [p for p in range(count) if 2 * p in place and 2 * p + 1 in place]
        rows = torch.tensor([[place[2 * p], place[2 * p + 1]] for p in whole])
        return rows, torch.tensor(whole)


def image_features(
    model: ImageTextModel,
    source: Source,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
    cache: FeatureCache | None = None,
    weights: str | None = None,
) -> ImageFeatures:
    """Encode every image of a source, in evaluation mode, without gradients, on the model's device.

    Images are resized as the model's config says. With a cache, what it has is read and what it lacks is added to
    it, part by part; weights is then the model's `fingerprint`, where it is known already. on_progress is
    given the number of images done so far, first of those that the cache has. Processes that train together share the
    work, all call this, and all have the result. Raises UserError where no image can be
    read or the model gives features that are not finite.
    """
    world = get_world()
    assert world.size == 1 or cache is None, "processes could find different parts of a cache"
    entry = cache.entry(weights or fingerprint(model), model.config, source) if cache else None
    spans = spans_of(len(source))
    part_of = {span: part for span in spans if entry and (part := entry.read(span))}
    known = sum(map(len, part_of))
    on_progress(known)
    missing = [span for span in spans if span not in part_of]
    encoded = encode(model, source, missing, batch_size, num_workers, lambda done: on_progress(known + done), world)
    for span, part in encoded:
        if entry:
            entry.write(span, part)
        part_of[span] = part
    if entry:
        entry.finish(source=source.name, image_size=model.config.image_size, resize=model.config.resize)
    parts = [part_of[span] for span in spans]
    skipped = sum((part.skipped for part in parts), Counter[str]())
    if not any(len(part.indices) for part in parts):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "it is empty"
        raise UserError(f"data set {source.name}: no image could be read: {reasons}")
    tower = torch.cat([part.features for part in parts])  # (N, width)
    features = _joint(model, tower)
    check_finite(f"image features of {source.name}", features)
    indices = torch.cat([part.indices for part in parts])
    labels = torch.cat([part.labels for part in parts])
    captions = tuple(chain.from_iterable(part.captions for part in parts))
    return ImageFeatures(features, indices, labels, captions, skipped, tower)


def encode(
    model: ImageTextModel,
    source: Source,
    spans: Sequence[range],
    batch_size: int,
    num_workers: int,
    on_progress: Callable[[int], None] = lambda done: None,
    world: World = World(),  # noqa: B008  it is frozen
) -> Iterator[tuple[range, Part]]:
    """The features of some ranges of a source, one after the other; several processes take turns at the batches.

    Batches depend on the source alone, so that features are the same to the last digit whoever makes them. A UserError
    of one process is raised in all.
    """
    if not spans:
        return
    config = model.config
    batch_size = min(batch_size, max(SMALLEST, -(-len(source) // SHARES)))
    images = DecodedImages(source, config.transform)
    batches = [list(span[start : start + batch_size]) for span in spans for start in range(0, len(span), batch_size)]
    own = world.own_items(batches)
    loader = batches_of(images, batch_sampler=own, num_workers=num_workers, collate=Items)
    done = began = 0  # images, batches
    for spans_at_a_time in (spans[i : i + world.size] for i in range(0, len(spans), world.size)):
        counts = [-(-len(span) // batch_size) for span in spans_at_a_time]
        numbers = range(began, began + sum(counts))
        pieces: list[Part] = []
        failed: UserError | None = None
        try:
            for number in numbers:
                if number % world.size == world.rank:
                    pieces.append(_encode_batch(model, next(loader)))
                done += len(batches[number])
                on_progress(done)
        except UserError as error:
            failed = error
        began = numbers.stop
        everyones = iter(world.gather_in_order(failed or pieces, first=numbers.start))
        for span, count in zip(spans_at_a_time, counts, strict=True):
            part = _join(model.tower_width, [next(everyones) for _ in range(count)])
            check_finite(f"image features of {source.name}", part.features)
            yield span, part


def _encode_batch(model: ImageTextModel, batch: "Sequence[Decoded]") -> Part:
    """The features of a batch."""
    config = model.config
    readable, reasons = split_readable(batch)
    features = torch.empty(0, model.tower_width)
    if readable:
        pixels = torch.stack([item.pixels for item in readable]).to(next(model.parameters()).device)
        pixels = normalise(pixels, config.image_mean, config.image_std)  # (B, 3, S, S)
        with evaluation_mode(model), torch.no_grad():
            features = model.tower(pixels).float().cpu()  # (B, width)
    indices = torch.tensor([item.index for item in readable], dtype=torch.int64)
    labels = torch.tensor([-1 if item.label is None else item.label for item in readable], dtype=torch.int64)
    return Part(features, indices, labels, tuple(item.captions for item in readable), Counter(reasons))


def _join(width: int, pieces: Sequence[Part]) -> Part:
    """Pieces, possibly none, one after the other."""
    return Part(
        torch.cat([torch.empty(0, width), *(piece.features for piece in pieces)]),
        torch.cat([torch.empty(0, dtype=torch.int64), *(piece.indices for piece in pieces)]),
        torch.cat([torch.empty(0, dtype=torch.int64), *(piece.labels for piece in pieces)]),
        tuple(chain.from_iterable(piece.captions for piece in pieces)),
        sum((piece.skipped for piece in pieces), Counter[str]()),
    )


def _joint(model: ImageTextModel, tower: Tensor) -> Tensor:
    """The image tower's features (N, width) → what `encode_image(normalize=True)` gives, float32 on the CPU."""
    like = next(model.parameters())
    with torch.no_grad():
        blocks = [
            model.project_image(block.to(like), normalize=True).float().cpu() for block in torch.split(tower, BLOCK)
        ]
    return torch.cat(blocks)


def text_features(
    model: ImageTextModel,
    tokenizer: Tokenize,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Encode texts: (N, embed_dim) float32, normalised, on the CPU, in their order.

    Each distinct text is encoded once, so equal texts have equal features to the last bit. Texts of as many tokens
    share a batch, which the text tower cuts at its longest. on_progress is given how many of the distinct
    texts are done, and how many there are. Processes that train together share the work, as in image_features.
    Raises UserError for features that are not finite.
    """
    device = next(model.parameters()).device
    distinct = sorted(set(texts))
    tokens = tokenizer(distinct)  # (distinct, context)
    order = (tokens != 0).int().cumsum(1).argmax(1).argsort(stable=True)  # by where the padding begins
    blocks: list[Tensor] = []
    world = get_world()
    with evaluation_mode(model), torch.no_grad():
        for rows in world.own_items(torch.split(order, batch_size)):
            blocks.append(model.encode_text(tokens[rows].to(device), normalize=True).float().cpu())
            on_progress(min(world.size * sum(map(len, blocks)), len(distinct)), len(distinct))
    features = torch.cat(world.gather_in_order(blocks))  # (distinct, embed_dim)
    check_finite("text features", features)
    place = {distinct[text]: row for row, text in enumerate(order.tolist())}
    return features[torch.tensor([place[text] for text in texts])]


def class_embeddings(
    model: ImageTextModel,
    tokenizer: Tokenize,
    classnames: Sequence[str],
    templates: Sequence[str],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """One embedding a class, (classes, embed_dim): the normalised mean of normalised prompt embeddings.

    templates: `str.format` patterns in which `{c}` is the class name. on_progress: see `text_features`. Raises
    UserError for no class, no template, and a template that cannot be filled in.
    """
    if not classnames or not templates:
        raise UserError(
            f"zero-shot classification needs class names and templates, found {len(classnames)} and {len(templates)}"
        )
    prompts = [fill(template, name) for name in classnames for template in templates]
    features = text_features(model, tokenizer, prompts, on_progress=on_progress)  # (classes × templates, embed_dim)
    means = features.view(len(classnames), len(templates), -1).mean(dim=1)
    return nn.functional.normalize(means, dim=-1)


def fill(template: str, classname: str) -> str:
    """The prompt of a class. Raises UserError where the template has other fields than `{c}`, or none."""
    check_template(template)
    return template.replace("{c}", classname)

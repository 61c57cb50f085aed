"""Features of a data set's images and of texts: what every task starts from."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffclip.data.images import BadImage, decode
from diffclip.data.sources import Source
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.models.clip import CLIP

Tokenize = Callable[[Sequence[str]], Tensor]


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


def image_features(
    model: CLIP,
    source: Source,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ImageFeatures:
    """Encode every image of a source, in evaluation mode, without gradients, on the model's device.

    Images are resized as the model's config says. on_progress is given the number of images done so far.
    Raises UserError where no image can be read or the model gives features that are not finite.
    """
    config = model.config
    device = next(model.parameters()).device
    images = DecodedImages(source, EvalTransform(config.image_size, config.resize))
    features: list[Tensor] = []
    indices: list[int] = []
    labels: list[int] = []
    captions: list[tuple[str, ...]] = []
    skipped: Counter[str] = Counter()
    done = 0
    with evaluating(model), torch.no_grad():
        for batch in DataLoader(images, batch_size, num_workers=num_workers, collate_fn=list):
            good = [item for item in batch if isinstance(item, DecodedImage)]
            skipped.update(item for item in batch if isinstance(item, str))
            if good:
                pixels = torch.stack([item.pixels for item in good]).to(device)
                pixels = normalise(pixels, config.image_mean, config.image_std)  # (B, 3, S, S)
                features.append(model.encode_image(pixels, normalize=True).float().cpu())
            indices += [item.index for item in good]
            labels += [-1 if item.label is None else item.label for item in good]
            captions += [item.captions for item in good]
            done += len(batch)
            on_progress(done)
    if not features:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "it is empty"
        raise UserError(f"data set {source.name}: no image could be read: {reasons}")
    encoded = torch.cat(features)
    check_finite(f"image features of {source.name}", encoded)
    return ImageFeatures(encoded, torch.tensor(indices), torch.tensor(labels), tuple(captions), skipped)


def text_features(model: CLIP, tokenizer: Tokenize, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Encode texts: (N, embed_dim) float32, normalised, on the CPU, in their order.

    Each distinct text is encoded once, so equal texts have equal features to the last bit, and texts of like
    length share a batch, which the text tower cuts at its longest. Raises UserError for features that are not
    finite.
    """
    device = next(model.parameters()).device
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    with evaluating(model), torch.no_grad():
        features = torch.cat(
            [
                model.encode_text(tokenizer(distinct[start : start + batch_size]).to(device), normalize=True)
                .float()
                .cpu()
                for start in range(0, len(distinct), batch_size)
            ]
        )  # (distinct, embed_dim)
    check_finite("text features", features)
    place = {text: row for row, text in enumerate(distinct)}
    return features[torch.tensor([place[text] for text in texts])]


def check_finite(what: str, features: Tensor) -> None:
    """Raises UserError where any feature is not finite.

    NaN compares as neither better nor worse, so that a broken model could otherwise score anything.
    """
    broken = (~features.isfinite()).any(dim=1).sum().item()
    if broken:
        raise UserError(f"{broken} of {len(features)} {what} are not finite: the model's weights are broken")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back in its own mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class DecodedImage:
    """An example whose image has become pixels: (3, S, S) uint8."""

    index: int
    pixels: Tensor
    label: int | None
    captions: tuple[str, ...]


class DecodedImages(Dataset["DecodedImage | str"]):
    """A source's examples, decoded and resized; for an image that cannot be read, the reason."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self._source, self._transform = source, transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> "DecodedImage | str":
        try:
            example = self._source[index]
            pixels = self._transform(decode(example.image))
        except BadImage as error:
            return error.reason
        return DecodedImage(index, pixels, example.label, example.captions)

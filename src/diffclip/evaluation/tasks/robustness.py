"""Zero-shot accuracy under attack: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018).

The attacker knows the weights and the class prompts, and changes each value of a pixel by at most ε. Pixels are those
that the model sees: resized and cropped, but not yet normalised. Pixels and ε are in grey levels, 0 to 255: ε = 1 is
what papers write as 1/255. Attacked images are not rounded to whole grey levels.

A low accuracy proves that the model can be fooled. A high one proves only that these attacks failed: docs/robustness.md
says how to tell a robust model from one whose gradients mislead the attack.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.data.sources import TEMPLATES, Source
from diffclip.data.transforms import normalise
from diffclip.errors import UserError
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.decode import DecodedImages
from diffclip.evaluation.features.encode import Tokenize, check_finite, class_embeddings
from diffclip.evaluation.features.pixels import batches, classnames_of, sample_indices
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task
from diffclip.models.clip import evaluation_mode
from diffclip.models.image_text import ImageTextModel

EPSILONS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
Attack = Literal["fgsm", "pgd"]
Loss = Literal["cross_entropy", "margin"]

Classify = Callable[[Tensor], Tensor]
"""(B, 3, S, S) float grey levels → (B, classes) logits."""


def evaluate(
    model: ImageTextModel,
    tokenizer: Tokenize,
    source: Source,
    *,
    attacks: Sequence[Attack] = ("fgsm", "pgd"),
    epsilons: Sequence[float] = EPSILONS,
    steps: int = 10,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    seed: int = 0,
    limit: int | None = 500,
    batch_size: int = 128,
    num_workers: int = 0,
    crafted_on: ImageTextModel | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PerExampleScores:
    """`acc1` of clean images, and `acc1/fgsm/eps_<ε>` and `acc1/pgd<steps>/eps_<ε>` of attacked ones.

    epsilons: in grey levels. PGD starts at a random place, `restarts` times; more than one shows in the name, as in
    `pgd20x5`, and so does the loss "margin", as in `pgd20_margin`. limit: this many images, drawn by `seed`. The images
    and the starts depend on `seed` alone, so that two models compare pair by pair.

    An image that the model gets wrong without any attack counts as wrong under each. One that PGD has broken with a
    smaller ε counts as broken with a larger one, which allows the same change; FGSM is run anew for each ε, and may get
    weaker as ε grows. Scores that equal the right one are wrong.

    crafted_on: another model, for which the attacks are made instead; `model` only has to withstand them (transfer).

    Gradients are in float32, also of a model in half precision. The model's mode, parameters and their gradients are
    afterwards what they were. Raises UserError for a data set without class names or labels, numbers out of range, and
    two models that do not see the same pixels.
    """
    for epsilon in epsilons:
        if not 0 <= epsilon <= 255:
            raise UserError(f"epsilon {epsilon:g} must be between 0 and 255 grey levels")
    if steps < 1 or restarts < 1:
        raise UserError(f"PGD needs at least one step and one start, not {steps} and {restarts}")
    own, model = model, in_float32(model)
    config = model.config
    attacker = model if crafted_on is None or crafted_on is own else in_float32(crafted_on)
    if attacker.config.transform != config.transform:
        raise UserError(
            f"an attack made on images of {attacker.config.image_size} pixels ({attacker.config.resize}) does not fit "
            f"a model of {config.image_size} ({config.resize}): take two models with the same image_size and resize"
        )
    indices = sample_indices(source, limit, seed)
    skipped: Counter[str] = Counter()
    images = DecodedImages(source, config.transform)
    epsilons = sorted(set(epsilons))
    pgd_name = f"pgd{steps}{f'x{restarts}' if restarts > 1 else ''}{'_margin' if loss == 'margin' else ''}"
    names = {"fgsm": "fgsm_margin" if loss == "margin" else "fgsm", "pgd": pgd_name}
    rows: list[Tensor] = []
    hits_of: dict[str, list[Tensor]] = {"acc1": []}
    device = next(model.parameters()).device
    with evaluation_mode(model), evaluation_mode(attacker), torch.autocast(device.type, enabled=False):
        victim = classifier(model, tokenizer, source)
        target = victim if attacker is model else classifier(attacker, tokenizer, source)
        for batch in batches(source, images, indices, batch_size, num_workers, skipped):
            pixels, labels = batch.pixels.to(device).float(), batch.labels.to(device)
            clean = _right(victim, pixels, labels)
            hits_of["acc1"].append(clean)
            if "fgsm" in attacks:
                slope, _ = gradient(target, pixels, labels, loss)  # the same for every ε
                for epsilon in epsilons:
                    hits = clean & _right(victim, fgsm(pixels, slope, epsilon), labels)
                    hits_of.setdefault(f"acc1/{names['fgsm']}/eps_{epsilon:g}", []).append(hits)
            if "pgd" in attacks:
                standing = clean.clone()
                for epsilon in epsilons:
                    for restart in range(restarts):
                        left = standing.nonzero()[:, 0]
                        if len(left):
                            places = batch.indices[left.cpu()].tolist()
                            start = random_start((seed, restart), places, config.image_size).to(device)
                            attacked = pgd(
                                target, pixels[left], labels[left], epsilon, start=start, steps=steps, loss=loss
                            )
                            standing[left] = _right(victim, attacked, labels[left])
                    hits_of.setdefault(f"acc1/{names['pgd']}/eps_{epsilon:g}", []).append(standing.clone())
            rows.append(batch.indices)
            on_progress(sum(map(len, rows)))
    values = {name: torch.cat(hits).double().cpu() for name, hits in hits_of.items()}
    chance = dict.fromkeys(values, 1 / len(classnames_of(source)))
    return PerExampleScores(torch.cat(rows), values, chance, skipped=skipped)


def classifier(model: ImageTextModel, tokenizer: Tokenize, source: Source) -> Classify:
    """The zero-shot classifier of a source's classes, differentiable from grey levels to logits, in float32.

    Logits are cosines times the model's inverse temperature. Raises UserError for scores that are not finite.
    """
    model = in_float32(model)
    config, weight = model.config, next(model.parameters())
    embeddings = class_embeddings(model, tokenizer, classnames_of(source), source.templates or TEMPLATES)
    embeddings = embeddings.to(weight)  # (classes, embed_dim)
    scale = model.logit_scale.detach().exp()

    def classify(pixels: Tensor) -> Tensor:
        normalised = normalise(pixels, config.image_mean, config.image_std, weight.dtype)
        logits = scale * model.encode_image(normalised, normalize=True) @ embeddings.T
        check_finite("rows of scores", logits)
        return logits

    return classify


def in_float32(model: ImageTextModel) -> ImageTextModel:
    """The model with weights of at least float32, whose products are not rounded to TF32 either."""
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    if model.tf32:
        model = copy.copy(model)  # with the same weights
        model.tf32 = False
    return model


def gradient(classify: Classify, pixels: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Of each image's loss by its pixels, (B, 3, S, S), and the margins (B,) on the way. No parameter gets a gradient.

    "cross_entropy" is what FGSM and PGD are defined with. "margin" is how far the best wrong class is ahead of the
    right one, as in Carlini & Wagner 2017: it has a gradient also where the softmax is so sure that the entropy's is 0.
    """
    pixels = pixels.detach().requires_grad_()
    with torch.enable_grad():
        logits = classify(pixels)
        ahead = margins(logits, labels)
        total = ahead.sum() if loss == "margin" else F.cross_entropy(logits, labels, reduction="sum")
        (slope,) = torch.autograd.grad(total, pixels)
    return slope, ahead.detach()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the best wrong class is ahead of the right one, (B,); negative where the image is right."""
    right = labels[:, None]
    return logits.scatter(1, right, -torch.inf).amax(1) - logits.gather(1, right)[:, 0]


def fgsm(pixels: Tensor, slope: Tensor, epsilon: float) -> Tensor:
    """Images one step of ε along the sign of the loss's gradient `slope`, within 0 … 255."""
    return (pixels + epsilon * slope.sign()).clamp(0, 255)


def pgd(
    classify: Classify,
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    start: Tensor,
    steps: int,
    step_size: float | None = None,
    loss: Loss = "cross_entropy",
) -> Tensor:
    """Images (B, 3, S, S) within ε of `pixels` and within 0 … 255, after steps along the gradient's sign.

    start: where in the box to begin, (B, 3, S, S) from −1 to 1. step_size: in grey levels, by default 2.5 ε / steps,
    which reaches every corner of the box from every start (Madry et al. 2018). Of all places visited, each image's is
    the one where a wrong class was furthest ahead.
    """
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=255)
    here = (pixels + epsilon * start).clamp(low, high)
    best, best_ahead = here, torch.full_like(labels, -torch.inf, dtype=pixels.dtype)
    for step in range(steps + 1):
        if step < steps:
            slope, ahead = gradient(classify, here, labels, loss)
        else:
            with torch.no_grad():
                ahead = margins(classify(here), labels)
        better = ahead > best_ahead
        best, best_ahead = torch.where(better[:, None, None, None], here, best), torch.where(better, ahead, best_ahead)
        if step < steps:
            here = (here + step_size * slope.sign()).clamp(low, high)
    return best


def random_start(seed: tuple[int, ...], indices: Sequence[int], size: int) -> Tensor:
    """Uniform in [−1, 1], (B, 3, size, size), of each image by the seed and its place in the source."""
    draws = [np.random.default_rng((*seed, index)).uniform(-1, 1, size=(3, size, size)) for index in indices]
    return torch.from_numpy(np.stack(draws)).float()


@torch.no_grad()
def _right(classify: Classify, pixels: Tensor, labels: Tensor) -> Tensor:
    return margins(classify(pixels), labels) < 0


def _measure(context: EvalContext) -> PerExampleScores:
    return evaluate(context.model, context.tokenizer, context.data.test, **context.on_changed_images)


TASK = Task(
    name="robustness",
    title="robustness",
    result="robustness",
    needs="labels and class names",
    requires=("labels",),
    settings=("sample", "seed"),
    # Clean, FGSM's gradient, and for each ε FGSM's image and ten steps of PGD; fewer where images are broken early.
    passes=1 + 3 + len(EPSILONS) * (1 + 10 * 3),
    metrics=(Metric("acc1", "top-1 accuracy"), Metric("acc1/*/*", "acc1/{}/{}", compared=False)),
    measure=_measure,
)

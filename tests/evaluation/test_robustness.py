import itertools

import numpy as np
import pytest
import torch

from diffclip.data.sources import Example
from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import image_features
from diffclip.evaluation.tasks import robustness, zero_shot
from diffclip.models.clip import create_model
from small_models import PICTURES

TINY = PICTURES | {"image_size": 8, "patch_size": 4, "vision_depth": 2, "text_width": 32}
NAMES = ("red", "green", "blue")


class Colours:
    """Noisy images, brighter in the channel of their class; one in nine is not an image."""

    name = "colours"
    classnames: tuple[str, ...] | None = NAMES
    templates = ("a {c} thing",)

    def __init__(self, length=45, offset=0):
        self.length, self.offset = length, offset

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng(self.offset + index)
        image = rng.integers(40, 200, size=(8, 8, 3))
        image[:, :, index % 3] += 25
        return Example(b"no image" if index % 9 == 5 else image.astype(np.uint8), (), index % 3)


@pytest.fixture(scope="module")
def trained():
    """A small DiffCLIP that has learned the three colours."""
    torch.manual_seed(0)
    model = create_model("diffclip_vit_t16", **TINY)
    tokens = get_tokenizer()([f"a {name} thing" for name in NAMES])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(80):
        labels = torch.from_numpy(rng.integers(0, 3, 48))
        pixels = torch.from_numpy(rng.integers(40, 200, (48, 3, 8, 8))).float()
        pixels[torch.arange(48), labels] += 25
        out = model(image=robustness.normalise(pixels, model.config.image_mean, model.config.image_std), text=tokens)
        logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def attacked(trained):
    epsilons = (0, 1, 12, 16, 255)
    return robustness.evaluate(trained, get_tokenizer(), Colours(), epsilons=epsilons, steps=5, batch_size=16)


def test_no_change_changes_nothing_and_a_large_one_wins(trained, attacked):
    images = image_features(trained, Colours())
    embeddings = zero_shot.class_embeddings(trained, get_tokenizer(), NAMES, Colours.templates)
    clean = zero_shot.scores(images.features, images.labels, embeddings)["acc1"]
    assert clean.mean() > 0.9
    assert torch.equal(attacked.indices, images.indices)
    for name in ("acc1", "acc1/fgsm/eps_0", "acc1/pgd5/eps_0"):
        assert torch.equal(attacked.values[name], clean), name
    assert attacked.metrics["acc1/fgsm/eps_16"] < clean.mean()
    assert attacked.metrics["acc1/pgd5/eps_255"] == 0
    assert attacked.chance["acc1/pgd5/eps_1"] == 1 / 3


def test_pgd_is_not_weaker_as_epsilon_grows_nor_than_fgsm(attacked):
    curves = [attacked.values[f"acc1/pgd5/eps_{epsilon}"] for epsilon in (0, 1, 12, 16, 255)]
    assert all(bool((after <= before).all()) for before, after in itertools.pairwise(curves))
    assert 0 < curves[2].mean() < curves[0].mean()  # neither ε too small nor too large to tell
    for epsilon in (12, 16, 255):
        assert attacked.metrics[f"acc1/pgd5/eps_{epsilon}"] <= attacked.metrics[f"acc1/fgsm/eps_{epsilon}"]


@pytest.fixture(scope="module")
def batch(trained):
    classify = robustness.classifier(trained.eval(), get_tokenizer(), Colours())
    source = Colours(45)
    good = [source[index] for index in range(45) if index % 9 != 5]
    pixels = torch.from_numpy(np.stack([example.image for example in good])).permute(0, 3, 1, 2).float()
    return classify, pixels, torch.tensor([example.label for example in good])


def ahead(classify, pixels, labels):
    """Reference for the margin: a loop over images and classes."""
    with torch.no_grad():
        rows = classify(pixels).tolist()
    return [
        max(score for c, score in enumerate(row) if c != label) - row[label]
        for row, label in zip(rows, labels.tolist(), strict=True)
    ]


def test_more_steps_are_not_weaker(batch):
    classify, pixels, labels = batch
    start = robustness.random_start((0,), range(len(labels)), 8)
    reached = [
        np.mean(ahead(classify, robustness.pgd(classify, pixels, labels, 16.0, start=start, steps=steps), labels))
        for steps in (1, 3, 10, 30)
    ]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 0.2
    # With steps of one size the longer walk contains the shorter one, so this holds for each image.
    few, many = (
        ahead(
            classify,
            robustness.pgd(classify, pixels, labels, 16.0, start=start, steps=steps, step_size=4.0),
            labels,
        )
        for steps in (3, 12)
    )
    assert all(a <= b + 1e-5 for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize("epsilon", [0.25, 1.0, 8.0, 60.0])
def test_changes_stay_within_epsilon_and_the_range_of_pixels(batch, epsilon):
    classify, pixels, labels = batch
    pixels = pixels.clone()
    pixels[:, :, 0], pixels[:, :, 1] = 0, 255
    start = robustness.random_start((0,), range(len(labels)), 8)
    slope, _ = robustness.gradient(classify, pixels, labels, "cross_entropy")
    for attacked in (
        robustness.pgd(classify, pixels, labels, epsilon, start=start, steps=4),
        robustness.fgsm(pixels, slope, epsilon),
    ):
        assert (attacked - pixels).abs().max() == epsilon  # and it is used to the full
        assert attacked.min() == 0
        assert attacked.max() == 255


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("preset", ["clip_vit_t16", "diffclip_vit_t16"])
def test_gradient_equals_finite_differences_in_float64(preset, loss):
    torch.manual_seed(0)
    model = create_model(preset, **TINY).double().eval()
    classify = robustness.classifier(model, get_tokenizer(), Colours())
    pixels = 255 * torch.rand(2, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    found, _ = robustness.gradient(classify, pixels, labels, loss)
    assert found.abs().min() > 0  # every pixel reaches the scores
    for image, channel, row, column in [(0, 0, 0, 0), (0, 2, 7, 3), (1, 1, 4, 4), (1, 0, 3, 7)]:
        step = torch.zeros_like(pixels)
        step[image, channel, row, column] = 1e-3
        losses = []
        for moved in (pixels + step, pixels - step):
            if loss == "margin":
                losses.append(ahead(classify, moved, labels)[image])
            else:
                probability = classify(moved)[image].softmax(0)[labels[image]]
                losses.append(-probability.log().item())
        expected = (losses[0] - losses[1]) / 2e-3
        assert found[image, channel, row, column].item() == pytest.approx(expected, rel=1e-5)


def test_the_margin_has_a_gradient_where_the_softmax_is_sure():
    pixels, labels = torch.full((1, 3, 4, 4), 250.0), torch.tensor([0])

    def sure(pixels):
        level = 160 * pixels.mean(dim=(1, 2, 3)) / 255
        return torch.stack([level, torch.zeros_like(level)], dim=1)

    assert not robustness.gradient(sure, pixels, labels, "cross_entropy")[0].any()
    assert robustness.gradient(sure, pixels, labels, "margin")[0].all()


def test_the_model_is_left_as_it_was(trained):
    trained.train()
    trained.zero_grad(set_to_none=True)
    trained.text.requires_grad_(False)
    modes = []
    hook = trained.visual.register_forward_hook(lambda tower, *_: modes.append(tower.training))
    before = [(parameter.requires_grad, parameter.grad, parameter.clone()) for parameter in trained.parameters()]
    robustness.evaluate(trained, get_tokenizer(), Colours(9), epsilons=[2], steps=1)
    hook.remove()
    assert not any(modes)
    assert trained.training
    for parameter, (required, slope, value) in zip(trained.parameters(), before, strict=True):
        assert parameter.requires_grad == required
        assert parameter.grad is slope
        assert torch.equal(parameter, value)
    trained.text.requires_grad_(True)


def test_what_is_wrong_without_attack_stays_wrong(trained):
    class Mislabelled(Colours):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return Example(example.image, (), (index + (index % 2)) % 3)

    torch.manual_seed(1)
    other = create_model("clip_vit_t16", **TINY)  # its attacks push the trained model anywhere, also to the given label
    found = robustness.evaluate(trained, get_tokenizer(), Mislabelled(), epsilons=[60, 120], steps=2, crafted_on=other)
    assert 0.2 < found.metrics["acc1"] < 0.8
    for name, hits in found.values.items():
        assert bool((hits <= found.values["acc1"]).all()), name


def test_starts_and_images_depend_on_the_seed_only(trained, monkeypatch):
    asked = []
    draw = robustness.random_start
    monkeypatch.setattr(robustness, "random_start", lambda *key: asked.append(key) or draw(*key))
    settings = {"attacks": ["pgd"], "epsilons": [2.0, 6.0], "steps": 1, "limit": 30}
    one, same, other = (
        robustness.evaluate(trained, get_tokenizer(), Colours(), seed=seed, batch_size=size, **settings)
        for seed, size in [(3, 64), (3, 7), (4, 64)]
    )
    assert torch.equal(one.indices, same.indices)
    assert len(one.indices) <= 30
    assert all(torch.equal(one.values[name], same.values[name]) for name in one.values)
    assert not torch.equal(one.indices, other.indices)
    first, second = (
        {index for seed, places, _ in asked[a:b] for index in places} for a, b in [(0, 2), (2, len(asked) - 2)]
    )
    assert first == second <= set(one.indices.tolist())
    assert all(seed == (3, 0) for seed, _, _ in asked[:-2])
    starts = robustness.random_start((3, 0), [5, 8], 8)
    assert torch.equal(robustness.random_start((3, 0), [8], 8)[0], starts[1])
    assert not torch.equal(starts[0], starts[1])
    assert starts.abs().max() <= 1
    assert abs(starts.mean()) < 0.1


def test_names_tell_restarts_and_loss(trained):
    found = robustness.evaluate(
        trained, get_tokenizer(), Colours(9), epsilons=[0.5], steps=2, restarts=3, loss="margin"
    )
    assert list(found.values) == ["acc1", "acc1/fgsm_margin/eps_0.5", "acc1/pgd2x3_margin/eps_0.5"]


def test_transfer_is_weaker_than_an_attack_on_the_model_itself(trained):
    torch.manual_seed(1)
    other = create_model("clip_vit_t16", **TINY)
    settings = {"attacks": ["pgd"], "epsilons": [16.0], "steps": 5}
    own = robustness.evaluate(trained, get_tokenizer(), Colours(), **settings)
    transferred = robustness.evaluate(trained, get_tokenizer(), Colours(), crafted_on=other, **settings)
    assert torch.equal(transferred.values["acc1"], own.values["acc1"])
    assert transferred.metrics["acc1/pgd5/eps_16"] > own.metrics["acc1/pgd5/eps_16"]
    large = create_model("clip_vit_t16", **{**TINY, "image_size": 16})
    with pytest.raises(UserError, match=r"images of 16 pixels \(shortest\) does not fit a model of 8"):
        robustness.evaluate(trained, get_tokenizer(), Colours(), crafted_on=large)


def test_a_model_in_half_precision_is_attacked_in_float32(trained):
    import copy

    half = copy.deepcopy(trained).bfloat16()
    found = robustness.evaluate(half, get_tokenizer(), Colours(), epsilons=[16], steps=2)
    full = robustness.evaluate(half.float(), get_tokenizer(), Colours(), epsilons=[16], steps=2)
    assert all(torch.equal(found.values[name], full.values[name]) for name in full.values)


def test_a_model_that_is_evaluated_in_tf32_is_attacked_in_float32(trained, monkeypatch):
    seen, encode = set(), type(trained).encode_image

    def encode_image(model, *arguments, **options):
        seen.add(torch.get_float32_matmul_precision())
        return encode(model, *arguments, **options)

    monkeypatch.setattr(type(trained), "encode_image", encode_image)
    monkeypatch.setattr(trained, "tf32", True)
    robustness.evaluate(trained, get_tokenizer(), Colours(), epsilons=[16], steps=1)
    assert seen == {"highest"}
    assert trained.tf32


def test_bad_input_is_refused(trained):
    def run(source=None, **settings):
        robustness.evaluate(trained, get_tokenizer(), source or Colours(), **settings)

    with pytest.raises(UserError, match="epsilon -1 must be between 0 and 255"):
        run(epsilons=[-1])
    with pytest.raises(UserError, match="at least one step and one start, not 0 and 1"):
        run(steps=0)
    with pytest.raises(UserError, match="limit must be 1 or more"):
        run(limit=0)
    nameless = Colours()
    nameless.classnames = None
    with pytest.raises(UserError, match="colours has no class names"):
        run(nameless)
    few = Colours()
    few.classnames = NAMES[:2]
    with pytest.raises(UserError, match="has the label 2, but only 2 class names"):
        run(few)

    class Broken(Colours):
        def __getitem__(self, index):
            return Example(b"no image", (), 0)

    with pytest.raises(UserError, match="no image with a label could be read: 45 not_an_image"):
        run(Broken())


def test_fgsm_and_pgd_equal_torchattacks(batch):
    """With the peer's scale of pixels, 0 to 1, and its start, which is the clean image."""
    torchattacks = pytest.importorskip("torchattacks")
    classify, pixels, labels = batch

    class Peer(torch.nn.Module):
        def forward(self, shares):
            return classify(shares * 255)

    expected = torchattacks.FGSM(Peer(), eps=8 / 255)(pixels / 255, labels) * 255
    slope, _ = robustness.gradient(classify, pixels, labels, "cross_entropy")
    torch.testing.assert_close(robustness.fgsm(pixels, slope, 8.0), expected, rtol=0, atol=1e-3)

    peer = torchattacks.PGD(Peer(), eps=8 / 255, alpha=2 / 255, steps=7, random_start=False)(pixels / 255, labels) * 255
    ours = robustness.pgd(classify, pixels, labels, 8.0, start=torch.zeros_like(pixels), steps=7, step_size=2.0)
    theirs, found = ahead(classify, peer, labels), ahead(classify, ours, labels)
    # The peer gives the last image of the walk, and we the best: of most images the same.
    assert np.mean(found) >= np.mean(theirs) - 1e-4
    same = [(a - b).abs().max() < 0.01 for a, b in zip(ours, peer, strict=True)]
    assert np.mean(same) > 0.5

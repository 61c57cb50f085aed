"""Micro-batches give the gradients of the whole batch, which autograd finds here by going through all of it at once."""

import math

import pytest
import torch

from diffclip.config import validate
from diffclip.data.loading.loader import Batch
from diffclip.data.transforms import normalise
from diffclip.distributed import World
from diffclip.models.patch_dropout import PatchDropout, patch_noise
from diffclip.training import loss as losses
from diffclip.training.dry_run import saved_bytes
from diffclip.training.loss import LOSSES, Pairing, backward_by_rows, contrastive, gather, scatter_gradients
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule
from small_models import TRAINED

SIZE, END = 11, 49407
GROUPS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 2, 1, 0])


def trainer(kind="diffclip", shared=False, loss="contrastive", **training):
    recipe = validate(
        {
            "seed": 5,
            "model": {"preset": f"{kind}_vit_quickstart", "overrides": TRAINED},
            "loss": {"kind": loss, "shared_captions": shared},
            "training": {"batch_size": SIZE, "precision": "float32"} | training,
        },
        where="test",
    )
    one = new_state(recipe, Schedule(steps_per_epoch=10, steps=20, warmup_steps=0))
    one.optimizer.step = lambda: None
    one.model.clamp_logit_scale = lambda: None
    return one


def batch(shared=False):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (SIZE, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, END, (SIZE, 9), generator=generator)
    ends = 3 + torch.arange(SIZE) % 6  # of several lengths, so that parts are cut at different ones
    tokens[torch.arange(SIZE), ends] = END
    tokens[torch.arange(9) > ends[:, None]] = 0
    groups = GROUPS if shared else -1 - torch.arange(SIZE)
    return Batch(pixels, tokens[GROUPS] if shared else tokens, groups, torch.arange(SIZE))


def expected(one, made, step):
    """The gradients of one forward pass over everything, every caption encoded as often as it comes."""
    model, config = one.model, one.model.config
    model.visual.patch_drop.noise = patch_noise((5, step, 0, 3), 0, len(made.pixels), 16)
    out = model(image=normalise(made.pixels, config.image_mean, config.image_std), text=made.tokens)
    groups = made.groups if one.shared_captions else None
    loss = LOSSES[one.loss_kind](out, groups, slice(None))
    model.visual.patch_drop.noise = None
    found = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("kind", ["clip", "diffclip"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("micro_batch", [0, 4, 1])
def test_the_gradients_are_those_of_the_whole_batch(kind, shared, micro_batch):
    """Parts of unequal size, fewer captions than parts, patch dropout: 1e-5 of the largest entry of each gradient."""
    one = trainer(kind, shared, micro_batch=micro_batch)
    made = batch(shared)
    loss, whole = expected(one, made, step=3)
    found, _ = one.step(3, made)
    assert found == pytest.approx(loss, rel=1e-6)
    for name, parameter in one.model.named_parameters():
        scale = whole[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, whole[name], rtol=0, atol=1e-5 * scale + 1e-9, msg=name)


def test_in_bfloat16_every_weight_has_a_gradient_too():
    """Autocast keeps what it has cast: a weight cast without gradients must not serve the pass that needs them."""
    one, whole = trainer(precision="bf16", micro_batch=4), trainer(precision="bf16")
    one.step(0, batch())
    whole.step(0, batch())
    for (name, parameter), other in zip(one.model.named_parameters(), whole.model.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() < 0.02 * other.grad.norm() + 1e-6, name


def test_activations_are_those_of_one_part():
    kept = []
    for micro_batch in (0, 2):
        one = trainer(micro_batch=micro_batch)
        largest = []

        def encode(part, one=one, largest=largest, encode=one.encode):
            with saved_bytes() as saved:
                outputs = encode(part)
            largest.append(saved.total)
            return outputs

        one.encode = encode
        one.step(0, batch())
        kept.append(max(largest))
    owned = sum(p.nbytes for p in one.model.parameters() if p.ndim > 1)
    assert kept[1] - owned < 0.35 * (kept[0] - owned)


def test_a_loss_that_is_not_finite_leaves_no_gradient(monkeypatch):
    one = trainer(micro_batch=4)
    monkeypatch.setitem(LOSSES, "contrastive", lambda *_: torch.tensor(math.inf, requires_grad=True))
    value, _ = one.step(0, batch())
    assert value == math.inf
    assert all(parameter.grad is None for parameter in one.model.parameters())


def feature_gradients(outputs, loss_of):
    pairing = Pairing(groups=GROUPS)
    gathered = gather(outputs, pairing, World())
    value = backward_by_rows(loss_of, gathered, World())
    return value, dict(zip(outputs, scatter_gradients(gathered, outputs, pairing, World()), strict=True))


def test_logits_in_blocks(monkeypatch):
    """Rows at a time, the last block being smaller."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, SIZE, 8, generator=generator), dim=-1)
    outputs = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(9.0)}
    value, whole = feature_gradients(outputs, contrastive)
    monkeypatch.setattr(losses, "LOGITS", 4 * SIZE)
    sizes = []

    def watched(outputs, groups, rows):
        sizes.append(rows.stop - rows.start)
        return contrastive(outputs, groups, rows)

    again, blocks = feature_gradients(outputs, watched)
    assert sizes == [4, 4, 3]
    assert again == pytest.approx(value, rel=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(blocks[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_row_of_noise_does_not_depend_on_those_beside_it():
    whole = patch_noise((1, 2, 0, 3), 0, 9, 50)
    assert torch.equal(whole[4:7], patch_noise((1, 2, 0, 3), 4, 3, 50))
    assert not torch.equal(whole, patch_noise((1, 3, 0, 3), 0, 9, 50))
    assert len(whole.unique()) == whole.numel()
    kept = torch.zeros(50)  # a patch is as likely to be kept as any other
    for row in patch_noise((0,), 0, 4000, 50).argsort(1)[:, :25]:
        kept[row] += 1
    assert (kept - 2000).abs().max() < 6 * math.sqrt(4000 / 4)


def test_patch_dropout_keeps_what_the_noise_says():
    drop = PatchDropout(0.5, 1).train()
    x = torch.arange(2 * 5.0).view(2, 5, 1)
    drop.noise = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    assert drop(x).squeeze(-1).tolist() == [[0, 3, 2], [5, 6, 7]]
    assert torch.equal(drop.eval()(x), x)


def test_statistics_are_the_same_whenever_they_are_measured():
    one = trainer(micro_batch=4)
    before = one.statistics(batch())
    one.step(0, batch())
    torch.rand(3)
    assert one.statistics(batch()) == before

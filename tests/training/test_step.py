"""The step's options change what it costs, not what it computes."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffclip.config import validate
from diffclip.data.loading.loader import Batch
from diffclip.models.attention import layer, ops
from diffclip.models.clip import CLIP
from diffclip.training import step
from diffclip.training.dry_run import saved_bytes
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule
from small_models import TRAINED

SMALL = TRAINED | {"vision_depth": 3}
END = 49407


def recipe_with(kind="diffclip", model=SMALL, **training):
    return validate(
        {
            "model": {"preset": f"{kind}_vit_quickstart", "overrides": model},
            "training": {"batch_size": 6, "precision": "float32"} | training,
        },
        where="test",
    )


def trainer(kind="diffclip", model=SMALL, **training):
    return new_state(recipe_with(kind, model, **training), Schedule(steps_per_epoch=10, steps=20, warmup_steps=0))


def batch(number, size=6):
    """Random pixels, and captions of another length in every batch."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, END, (size, 4 + 3 * number), generator=generator)
    tokens[:, -1] = END
    return Batch(pixels=pixels, tokens=tokens, groups=-1 - torch.arange(size), indices=torch.arange(size))


def gradients(one):
    return {name: parameter.grad for name, parameter in one.model.named_parameters()}


@pytest.mark.parametrize("kind", ["clip", "diffclip"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_checkpointed_activations_give_the_same_gradients_for_less_memory(kind, precision):
    """With patch dropout, which a block that is run again must not draw anew."""
    found, kept = [], []
    for checkpointed in (False, True):
        one = trainer(kind, checkpoint_activations=checkpointed, precision=precision)
        assert one.model.visual.grad_checkpointing is one.model.text.grad_checkpointing is checkpointed
        with saved_bytes() as saved:
            one.step(0, batch(1))
        found.append(gradients(one))
        kept.append(saved.total)
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    assert kept[1] < 0.6 * kept[0]


def test_evaluation_is_not_checkpointed(monkeypatch):
    one = trainer(checkpoint_activations=True)
    monkeypatch.setattr("diffclip.models.towers.checkpoint", lambda *a, **k: pytest.fail("ran a checkpoint"))
    with torch.no_grad():
        one.model.encode_text(batch(0).tokens)


def test_the_gradients_of_the_step_before_are_gone_when_the_forward_pass_runs():
    one = trainer()
    one.step(0, batch(0))
    seen = []
    one.model.visual.register_forward_pre_hook(lambda *_: seen.extend(gradients(one).values()))
    one.step(1, batch(1))
    assert len(seen) > 10
    assert all(gradient is None for gradient in seen)


def test_a_compiled_step_computes_the_same(monkeypatch):
    """Losses, gradients, names of parameters and monitored statistics, over texts of several lengths; and blocks that
    are alike but for λ_init are compiled once."""
    torch.compiler.reset()  # what another test compiled counts among the lengths already seen
    graphs = []
    aot_eager = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compile_blocks = CLIP.compile
    monkeypatch.setattr(CLIP, "compile", lambda model: compile_blocks(model, backend=backend))
    deep = SMALL | {"vision_depth": 3, "text_depth": 3, "lambda_schedule": "depth"}
    plain, compiled = trainer(model=deep), trainer(model=deep, compile=True)
    counts = []
    for number in range(4):
        expected, _ = plain.step(number, batch(number))
        found, _ = compiled.step(number, batch(number))
        assert found == pytest.approx(expected, rel=1e-5)
        for name, gradient in gradients(plain).items():
            torch.testing.assert_close(gradients(compiled)[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
        counts.append(len(graphs))
    assert 2 <= counts[0] <= counts[1] == counts[2] == counts[3] <= 4, "for two kinds of blocks of some length"
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    expected = plain.statistics(batch(2))
    for name, values in compiled.statistics(batch(2)).items():
        assert values == pytest.approx(expected[name], rel=1e-3), name
    assert len(graphs) == counts[-1], "what is recorded runs as it is written"


def test_a_recipe_without_either_compiles_nothing(monkeypatch):
    monkeypatch.setattr(CLIP, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert not trainer().model.visual.grad_checkpointing


@pytest.mark.parametrize(
    ("asked", "device", "capability", "triton", "lambda_rises", "expected"),
    [
        ("auto", "cuda", (9, 0), True, False, True),
        ("auto", "cuda", (7, 0), True, False, True),
        ("auto", "cuda", (6, 1), True, False, False),
        ("auto", "cuda", (9, 0), False, False, False),
        ("auto", "cuda", (9, 0), True, True, False),
        ("auto", "cpu", (9, 0), True, False, False),
        (False, "cuda", (9, 0), True, False, False),
        (True, "cpu", (6, 1), False, False, True),
    ],
)
def test_blocks_are_compiled_by_themselves_where_triton_can(
    asked, device, capability, triton, lambda_rises, expected, monkeypatch
):
    """No GPU: what is asked of one is answered."""
    compiled, rule = [], step.worth_compiling
    monkeypatch.setattr(CLIP, "compile", lambda model: compiled.append(model))
    monkeypatch.setattr(step, "find_spec", lambda name: object() if triton and name == "triton" else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(step, "worth_compiling", lambda model, tuning, _: rule(model, tuning, torch.device(device)))
    recipe = recipe_with(compile=asked)
    tuning = {"lambda_warmup_epochs": 1.0 if lambda_rises else 0.0}
    recipe = dataclasses.replace(recipe, tuning=dataclasses.replace(recipe.tuning, **tuning))
    new_state(recipe, Schedule(steps_per_epoch=10, steps=20, warmup_steps=0))
    assert len(compiled) == expected


class Waits(TorchDispatchMode):
    """Counts what a GPU's program would stop for: a number, or a size, that it asks of a tensor."""

    ASKED = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.ASKED:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["clip", "diffclip"])
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_a_step_waits_once_for_the_loss(kind, micro_batch, monkeypatch):
    """In the form of attention that asks for no number on a processor either. Where texts end is looked up on the CPU
    for a GPU too, which is left out here."""
    monkeypatch.setattr(layer, "fastest", lambda *_: "eager")
    monkeypatch.setattr(ops, "fastest", lambda *_: "eager")
    one = trainer(kind, micro_batch=micro_batch)
    one.step(0, batch(1))
    monkeypatch.setattr(one.model.text, "forward", one.model.text.full)
    with Waits() as waits:
        one.step(1, batch(1))
    assert waits.seen == ["_local_scalar_dense"]

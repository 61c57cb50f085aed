"""The step's options change what it costs, not what it computes."""

import pytest
import torch

from diffclip.config import validate
from diffclip.data.loading.loader import Batch
from diffclip.models.clip import CLIP
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

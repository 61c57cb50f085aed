"""A run goes on with the forms of attention that it began with."""

import json
import logging

import pytest
import torch
from killed import recipe as small_recipe

from diffclip import create_model
from diffclip.distributed import World
from diffclip.errors import UserError
from diffclip.models.attention import choice, forms, native, ops
from diffclip.training import backends
from diffclip.training.setup import train
from small_models import PICTURES


@pytest.fixture
def used(monkeypatch):
    """The backends that were called, in order."""
    names = []
    for name, run in list(forms.BACKENDS.items()):
        monkeypatch.setitem(forms.BACKENDS, name, lambda call, name=name, run=run: names.append(name) or run(call))
    return names


def test_a_run_that_goes_on_takes_the_forms_of_its_record(tmp_path, used, caplog):
    model, pixels = create_model("diffclip_vit_t16", **PICTURES), torch.zeros(1, 3, 16, 16)
    path = tmp_path / backends.ATTENTION_FORMS
    with backends.kept(tmp_path, model, "cpu", World(), resume=False):
        model.encode_image(pixels)
    usual, record = set(used), json.loads(path.read_text())
    assert record["cpu"]["processor"] == choice.processor()
    assert record["cpu"]["fastest"] == {kind: choice.rows(kind, "cpu") for kind in backends.KINDS}
    record["cpu"] = {"processor": "abacus", "fastest": {"differential": {"float32": {"197": "sdpa"}}}}
    path.write_text(json.dumps(record))
    used.clear()
    with caplog.at_level(logging.WARNING), backends.kept(tmp_path, model, "cpu", World(), resume=True):
        model.encode_image(pixels)
    assert set(used) == {"sdpa"}
    assert "began on abacus and goes on on" in caplog.text
    assert json.loads(path.read_text()) == record
    used.clear()
    model.encode_image(pixels)
    assert set(used) == usual


def test_a_clip_does_not_build_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "available", lambda _: pytest.fail("asked for the kernel"))
    with backends.kept(tmp_path, create_model("clip_vit_t16", **PICTURES), "cpu", World(), resume=False):
        pass
    record = json.loads((tmp_path / backends.ATTENTION_FORMS).read_text())
    assert record["cpu"]["fastest"] == {"standard": choice.rows("standard", "cpu")}


def test_what_is_compiled_takes_them_too(tmp_path):
    compiled = torch.compile(
        lambda q, v: ops.differential_attention(q, q, v, 0.5), backend="eager", fullgraph=True, dynamic=False
    )
    q, v = torch.randn(1, 2, 7, 4), torch.randn(1, 1, 7, 8)
    results = []
    for form in ("eager", "sdpa"):
        with choice.taking("cpu", {"differential": {"float32": {"197": form}}}):
            expected = ops.differential_attention(q, q, v, 0.5, backend=form)
            results.append(torch.equal(compiled(q, v), expected))
    assert results == [True, True]


def test_training_writes_the_record_down_and_keeps_it(tmp_path, monkeypatch):
    recipe, run = small_recipe(0), tmp_path / "run"
    evaluators = {"data": lambda _: {"score": 0.5}}
    train(recipe, run, evaluators=evaluators)
    first = (run / backends.ATTENTION_FORMS).read_text()
    monkeypatch.setattr(choice, "_row", lambda *_: {"197": "sdpa"})  # another version's table
    train(recipe, run, resume=True, evaluators=evaluators)
    assert (run / backends.ATTENTION_FORMS).read_text() == first


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"cpu": 1}', '{"cpu": {"processor": "AMX"}}', '{"cpu": {"processor": 1, "fastest": {}}}'),
        '{"cpu": {"processor": "AMX", "fastest": {"other": {}}}}',
        '{"cpu": {"processor": "AMX", "fastest": {"standard": {"float32": {}}}}}',
        '{"cpu": {"processor": "AMX", "fastest": {"standard": {"float32": {"many": "sdpa"}}}}}',
        '{"cpu": {"processor": "AMX", "fastest": {"standard": {"float32": {"197": "quick"}}}}}',
        '{"cpu": {"processor": "AMX", "fastest": {"standard": {"float32": {"197": ["sdpa"]}}}}}',
    ],
)
def test_a_record_that_says_something_else_is_refused(tmp_path, content):
    (tmp_path / backends.ATTENTION_FORMS).write_text(content)
    model = create_model("clip_vit_t16", **PICTURES)
    with (
        pytest.raises(UserError, match=r"attention.json cannot be read: restore it, or delete it"),
        backends.kept(tmp_path, model, "cpu", World(), resume=True),
    ):
        pass

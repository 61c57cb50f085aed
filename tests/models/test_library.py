"""Models of transformers' classes that our loop trains: built, encoded, converted, saved, and what is refused."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

import diffclip
from diffclip import UserError, cli
from diffclip.config import Optimizer, load_recipe
from diffclip.models.library import LibraryModel
from diffclip.models.library_config import library_config
from diffclip.models.parity import compare
from diffclip.training.optimizer import make_optimizer

pytest.importorskip("transformers")
FAMILIES = ("clip", "siglip", "blip", "align")
TEXTS = ["a red circle", "two blue squares on a green ground"]


def small(family, **fields):
    """A model of a family, 16 wide, of one layer a tower."""
    towers = ("text",) if family == "align" else ("text", "vision")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    changes = {f"{tower}_config.{name}": value for tower in towers for name, value in sizes.items()}
    if family == "siglip":
        changes["text_config.projection_size"] = 16
    if family == "blip":
        changes["text_config.encoder_hidden_size"] = 16
    torch.manual_seed(0)
    return LibraryModel(library_config(f"{family}_quickstart", changes | fields)).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_class(family):
    model = small(family)
    tokens, pixels = model.tokenizer(TEXTS), torch.randn(2, 3, 64, 64)
    ids, ends = tokens.clone(), (tokens == 49407).int().argmax(1)
    mask = torch.stack([F.pad(torch.ones(int(end) + 1, dtype=torch.long), (0, 31 - int(end))) for end in ends])
    asked = {"input_ids": ids} | ({"attention_mask": mask} if family in ("blip", "align") else {})
    torch.testing.assert_close(model.encode_image(pixels), model.inner.get_image_features(pixels).pooler_output)
    torch.testing.assert_close(model.encode_text(tokens), model.inner.get_text_features(**asked).pooler_output)
    alone = torch.cat([model.encode_text(row.unsqueeze(0)) for row in tokens])
    torch.testing.assert_close(model.encode_text(tokens), alone, rtol=1e-4, atol=1e-5)
    assert not any("temperature" in name or name.startswith("inner.logit") for name, _ in model.named_parameters())
    (model.encode_image(pixels) * model.encode_text(tokens)).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["logit_scale"]  # several processes wait for every other gradient
    assert model.encode_text(tokens[:0]).shape[0] == model.encode_image(pixels[:0]).shape[0] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_starts_exactly_and_reloads(family, tmp_path):
    model = small(family)
    for form in ("differential_v2", "no_second_map"):
        found = compare(model, *(f for f in encoders(diffclip.convert(model, form, lambda_init=0.2))))
        assert max(found.image, found.text) <= 2e-6
    with pytest.raises(UserError, match="inexact"):
        diffclip.convert(model, "differential")
    converted = diffclip.convert(model, "differential", inexact=True, lambda_init=0.3)
    assert set(converted.lambdas()) == ({"text"} if family == "align" else {"visual", "text"})
    diffclip.save(converted, tmp_path)
    again, _, _ = diffclip.load(tmp_path)
    assert again.config == converted.config
    found = compare(converted, *encoders(again))
    assert max(found.image, found.text) == 0
    with pytest.raises(UserError, match="has differential attention already"):
        diffclip.convert(again)
    mirror = diffclip.convert(model)
    decaying = {id(p) for p in make_optimizer(mirror, load_recipe("quickstart").optimizer).param_groups[0]["params"]}
    decays = {
        name: id(p) in decaying
        for name, p in mirror.named_parameters()
        if ".second.weight" in name or "lambda_" in name
    }
    assert {name: "lambda_" not in name for name in decays} == decays


@pytest.mark.parametrize("family", FAMILIES)
def test_muon_turns_the_matrices_of_layers_alone(family):
    model = diffclip.convert(small(family), "differential_v2")
    groups = make_optimizer(model, Optimizer(kind="muon")).param_groups
    turned = {id(p) for group in groups if "ns_steps" in group for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in turned}
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    left = ("embed", "lambda_", "projection", "pooler", ".head.")  # SigLIP pools by a layer of its own
    assert names == {name for name in matrices if not any(word in name for word in left)}


@pytest.mark.parametrize("form", ["differential", "differential_v2", "no_second_map"])
@pytest.mark.parametrize("family", ["clip", "blip"])
def test_in_bfloat16_lambda_and_the_temperature_stay_exact(family, form, tmp_path):
    model = diffclip.convert(small(family), form, inexact=True)
    diffclip.save(model, tmp_path)
    half, _, _ = diffclip.load(tmp_path, dtype=torch.bfloat16)
    exact = {name for name, p in half.named_parameters() if p.dtype is torch.float32}
    assert exact == {name for name, _ in model.named_parameters() if "lambda_" in name or name == "logit_scale"}
    found = compare(model, *encoders(half))
    assert min(found.image_cosine, found.text_cosine) > 0.99


def encoders(model):
    return model.encode_image, model.encode_text


def test_a_run_and_one_that_starts_from_it_converted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = [f"vision_config.{n}=16" for n in ("hidden_size", "intermediate_size")]
    sizes += [f"text_config.{n}=16" for n in ("hidden_size", "intermediate_size")]
    common = ["--training.epochs", "0.0004", "--training.batch-size", "16", "--training.precision", "float32"]
    quick = ["train", "quickstart", "--model.preset", "", *common]
    made = ["--model.library", "transformers", "--model.architecture", "clip_quickstart"]
    overrides = [part for size in (*sizes, "attention=standard") for part in size.split("=")]
    cli.main([*quick, *made, "--model.overrides", *overrides, "--out", "before"])
    cli.main([*quick, "--model.start", "before", "--model.convert.attention", "no_second_map", "--out", "after"])
    after = diffclip.load("after")[0]
    assert after.config.attention == "no_second_map"
    assert after.config.architecture["vision_config"]["hidden_size"] == 16
    assert any("lambda_text" in line for line in (tmp_path / "after" / "metrics.jsonl").read_text().splitlines())
    cli.main(["info", "after"])
    assert "no_second_map" in capsys.readouterr().out
    cli.main(["convert", "before", "--attention", "differential_gated", "--out", "converted"])
    assert diffclip.load("converted")[0].config.attention == "differential_gated"
    with pytest.raises(SystemExit, match="another recipe"):
        cli.main([*quick, "--model.start", "before", "--out", "after", "--resume"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "clp_quickstart", "library": "transformers"}, "cannot be read"),
        ({"architecture": "clip_quickstart"}, "go together"),
        ({"library": "transformers"}, "go together"),
        ({"architecture": "clip_quickstart", "library": "transformers", "preset": "clip_vit_b16"}, "leave the preset"),
        ({"convert": {"attention": "differential_v2"}}, "needs model.start"),
        ({"overrides": {"atention": "standard"}}, "did you mean attention"),
        ({"overrides": {"vision_config.hiden_size": 3}}, "does not state"),
        ({"overrides": {"vision_confg.hidden_size": 3}}, "has no 'vision_confg'"),
        ({"overrides": {"image_size": 32}}, "vision_config.image_size is 64: state it there"),
        ({"overrides": {"text_config.vocab_size": 100}}, "49408"),
        ({"overrides": {"context_length": 77}}, "max_position_embeddings"),
        ({"overrides": {"model_type": "owlvit"}}, "'owlvit'"),
        ({"overrides": {"lambda_init": 0.5}}, "other than standard"),
    ],
)
def test_what_a_recipe_may_not_say_of_the_model(options, said):
    given = {"preset": ""} | (
        {"library": "transformers", "architecture": "clip_quickstart"} if "overrides" in options else {}
    )
    with pytest.raises(UserError, match=said):
        diffclip.config.validate({"model": given | options}, "test")


@pytest.mark.parametrize(
    "part", [{"training": {"compile": True}}, {"training": {"layout": "fsdp"}}, {"optimizer": {"kind": "adamw_8bit"}}]
)
def test_what_a_recipe_may_not_ask_of_transformers_models(part):
    model = {"preset": "", "library": "transformers", "architecture": "clip_quickstart"}
    with pytest.raises(UserError, match="is for models of ours"):
        diffclip.config.validate({"model": model} | part, "test")


def test_what_cannot_be_built(tmp_path):
    with pytest.raises(UserError, match="EfficientNet: it has no attention"):
        small("align", attention="differential", attention_towers="vision")
    config = library_config("clip_quickstart", {"vision_config.num_attention_heads": 3})
    with pytest.raises(UserError, match="builds no clip of this architecture"):
        LibraryModel(config)
    (tmp_path / "config.json").write_text(json.dumps(config.architecture))
    assert library_config(str(tmp_path), {}) == config
    assert dataclasses.replace(config, attention="differential").is_differential

"""Folders of open_clip, OpenAI and transformers on random weights: the features, pixels and ids of those libraries."""

import json

import open_clip
import pytest
import torch
from other_libraries import (
    PROCESSOR,
    SIZES,
    TEXTS,
    clip_config,
    clip_tokenizer,
    equal,
    images,
    shaken,
    transformers_folder,
)
from safetensors.torch import load_file, save_file

import diffclip
from diffclip import cli
from diffclip.models.clip import CLIP
from diffclip.models.wrapped import Wrapped

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
OPEN_CLIP = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


def open_clip_folder(folder, changes=(), vision=(), text=(), pixels=None):
    """A folder as open_clip writes it, and its own model, transform and tokenizer."""
    model = OPEN_CLIP | dict(changes)
    model |= {"vision_cfg": VISION | dict(vision), "text_cfg": TEXT | dict(text)}
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": model, "preprocess_cfg": pixels or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    theirs = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False))
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", pretrained_text=False)
    return theirs.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def same_as_open_clip(source, theirs, transform, tokenizer):
    model, preprocess, tokenize = diffclip.load(source)
    pixels = torch.stack([transform(image) for image in images()])
    equal(torch.stack([preprocess(image) for image in images()]), pixels)
    tokens = tokenizer(TEXTS)
    assert torch.equal(tokenize(TEXTS), tokens)
    with torch.no_grad():
        equal(model.encode_image(pixels, normalize=True), theirs.encode_image(pixels, normalize=True))
        equal(model.encode_text(tokens, normalize=True), theirs.encode_text(tokens, normalize=True))
    torch.testing.assert_close(model.logit_scale, theirs.logit_scale.float())
    return model


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({}, CLIP),
        ({"changes": {"quick_gelu": True}}, CLIP),
        ({"changes": {"custom_text": True}}, CLIP),
        ({"changes": {"init_logit_bias": -10.0}}, CLIP),
        ({"vision": {"mlp_ratio": 3.0}, "text": {"mlp_ratio": 2.0, "heads": 4}}, CLIP),
        ({"vision": {"head_width": 16}, "pixels": {"mean": 0.5, "std": [0.2, 0.3, 0.4]}}, CLIP),
        ({"pixels": {"resize_mode": "squash", "interpolation": "bilinear"}}, CLIP),
        ({"pixels": {"resize_mode": "longest", "fill_color": 7, "size": 32}}, CLIP),
        ({"vision": {"ls_init_value": 0.5}}, Wrapped),
        ({"vision": {"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}}, Wrapped),
        ({"text": {"no_causal_mask": True}}, Wrapped),
        ({"text": {"pool_type": "last"}}, Wrapped),
        ({"text": {"tokenizer_kwargs": {"clean": "whitespace"}}}, Wrapped),
        ({"vision": {"attentional_pool": True, "attn_pooler_queries": 4}}, Wrapped),
        ({"vision": {"norm_kwargs": {"eps": 0.01}}}, Wrapped),
        (
            {
                "changes": {"multimodal_cfg": TEXT | {"layers": 1}, "custom_text": True},
                "vision": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
                "text": {"embed_cls": True, "context_length": 76, "output_tokens": True},
            },
            Wrapped,
        ),
        ({"vision": {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}, Wrapped),
        ({"changes": {"custom_text": True}, "vision": {"timm_model_name": "test_vit", "image_size": 160}}, Wrapped),
    ],
)
def test_an_open_clip_folder_is_obeyed_in_full(parts, kind, tmp_path):
    theirs = open_clip_folder(tmp_path / "laion", **parts)
    model = same_as_open_clip(f"local-dir:{tmp_path / 'laion'}", *theirs)
    assert type(model) is kind


def test_a_text_tower_of_hugging_face_in_open_clips_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    words, folder = str(tmp_path / "words"), tmp_path / "laion"
    transformers.BertConfig(**SIZES, vocab_size=49408, max_position_embeddings=77).save_pretrained(words)
    clip_tokenizer(transformers, folder)
    text = {"hf_model_name": words, "hf_tokenizer_name": words, "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    model = same_as_open_clip(folder, *open_clip_folder(folder, {"custom_text": True}, text=text))
    assert (model.describe()["model"], model.describe()["tokenizer"]) == ("open_clip's CustomTextCLIP", "HFTokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model_cfg"]["vision_cfg"].update(rope=True), "knows no such setting: 'rope'"),
        (lambda c: c["model_cfg"].pop("text_cfg"), "must be objects"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(image_size=[32, 48]), "not square"),
        (
            lambda c: c["model_cfg"]["vision_cfg"].update(layers=3),
            "configuration: missing: visual.blo",
        ),
        (lambda c: c["model_cfg"]["vision_cfg"].update(layers=3, ls_init_value=0.1), "does not fit its configuration"),
        (lambda c: c["preprocess_cfg"].update(size=48), "size 48"),
        (lambda c: c["preprocess_cfg"].update(resize_mode="stretch"), "resize"),
        (lambda c: c["preprocess_cfg"].update(sharpen=2), "states sharpen"),
    ],
)
def test_what_an_open_clip_folder_states_and_nothing_obeys_is_named(change, message, tmp_path):
    open_clip_folder(tmp_path / "laion")
    file = tmp_path / "laion" / "open_clip_config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(diffclip.UserError, match=message) as caught:
        diffclip.load(tmp_path / "laion")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("resnet", [False, True])
def test_openais_archive_is_read_without_its_code(resnet, tmp_path, caplog):
    vision = {"head_width": 64} | ({"layers": [1, 1, 1, 1], "patch_size": None} if resnet else {})
    theirs = open_clip.model.CLIP(24, VISION | vision, TEXT | {"heads": 1, "width": 64}, quick_gelu=True)
    theirs = shaken(theirs).half().float()
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        vars(theirs).pop(name, None)
        theirs.register_buffer(name, torch.tensor(value))
    theirs.output_dict = False
    torch.jit.script(theirs.half()).save(tmp_path / "ViT-B-32.pt")
    transform = open_clip.image_transform(32, is_train=False)
    model = same_as_open_clip(tmp_path / "ViT-B-32.pt", theirs.float(), transform, open_clip.SimpleTokenizer())
    assert type(model) is (Wrapped if resnet else CLIP)
    assert "activation" not in caplog.text


def test_an_archive_that_asks_for_more_than_tensors_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", b"")
        archive.writestr("a/data.pkl", b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(diffclip.UserError, match=r"asks for (os|posix)\.system"):
        diffclip.load(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.model."])
def test_prefixes_of_frameworks(prefix, tmp_path):
    theirs, *others = open_clip_folder(tmp_path / "laion")
    tensors = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "laion" / "open_clip_model.safetensors")
    same_as_open_clip(tmp_path / "laion", theirs, *others)


def test_shards_are_put_together(tmp_path):
    theirs, *others = open_clip_folder(tmp_path / "laion")
    file = tmp_path / "laion" / "open_clip_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    of = {name: f"model-{i}.safetensors" for i, half in enumerate(halves) for name in half}
    for i, half in enumerate(halves):
        save_file(half, tmp_path / "laion" / f"model-{i}.safetensors")
    index = tmp_path / "laion" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": of}))
    same_as_open_clip(tmp_path / "laion", theirs, *others)
    for wrong, message in (
        (of | {"absent": "model-0.safetensors"}, "lists tensors that its files lack: absent"),
        (of | {"text_projection": "model-2.safetensors"}, "not beside it: model-2"),
        (of | {"text_projection": "../model-0.safetensors"}, "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(diffclip.UserError, match=message):
            diffclip.load(tmp_path / "laion")


# transformers


def same_as_transformers(source, theirs, processor, tokenizer, length=77, **asked):
    model, preprocess, tokenize = diffclip.load(source)
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images()])
    equal(torch.stack([preprocess(image) for image in images()]), pixels)
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids = tokenize(TEXTS)
    assert torch.equal(ids, tokens["input_ids"][:, : ids.shape[1]])
    assert set(tokens["input_ids"][:, ids.shape[1] :].flatten().tolist()) <= {tokenizer.pad_token_id}
    with torch.no_grad():
        image = theirs.get_image_features(pixels).pooler_output
        text = theirs.get_text_features(**tokens).pooler_output
        equal(model.encode_image(pixels), image)
        equal(model.encode_text(ids), text)
    return model


@pytest.mark.parametrize(
    ("text", "options", "kind"),
    [
        ({}, {}, CLIP),
        ({}, {"max_shard_size": "1MB"}, CLIP),
        ({"hidden_act": "gelu", "eos_token_id": 2}, {}, CLIP),
        ({"hidden_act": "relu"}, {}, Wrapped),
    ],
)
def test_a_clip_of_transformers(text, options, kind, tmp_path):
    theirs = transformers_folder(tmp_path / "hf", clip_config(**text), **options)
    model = same_as_transformers(tmp_path / "hf", *theirs)
    assert type(model) is kind


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 40}},
        {"size": {"height": 40, "width": 40}, "resample": 2},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2},
    ],
)
def test_preprocessor_config_is_obeyed(settings, tmp_path):
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(**PROCESSOR | settings)
    same_as_transformers(tmp_path / "hf", *transformers_folder(tmp_path / "hf", clip_config(), processor))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_resize": False},
        {"rescale_factor": 0.5},
        {"resample": 0},
        {"crop_size": {"height": 24, "width": 32}},
    ],
)
def test_a_preprocessor_that_cannot_be_obeyed_is_refused(settings, tmp_path):
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(**PROCESSOR | settings)
    transformers_folder(tmp_path / "hf", clip_config(), processor)
    with pytest.raises(diffclip.UserError, match=r"preprocessor_config\.json"):
        diffclip.load(tmp_path / "hf")


EFFICIENT = {"image_size": 32, "in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3]}
EFFICIENT |= {"strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 1], "hidden_dim": 40}
WORDS = SIZES | {"vocab_size": 49408, "pad_token_id": 49407, "bos_token_id": 49406, "eos_token_id": 49407}
LONG, SHORT = {"max_position_embeddings": 512}, {"max_position_embeddings": 64}
FAMILIES = {
    "Siglip": (SHORT, {}),
    "MetaClip2": (LONG | {"max_position_embeddings": 77, "projection_dim": 24}, {"projection_dim": 24}),
    "AltCLIP": (LONG | {"project_dim": 24, "pad_token_id": 1}, {"projection_dim": 24}),
    "ChineseCLIP": (LONG, {"projection_dim": 24}),
    "Blip": (LONG | {"is_decoder": False}, {"projection_dim": 24}),
    "Align": (LONG, {"projection_dim": 32}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_transformers_is_used_as_it_is(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    text, joint = FAMILIES[family]
    vision = EFFICIENT if family == "Align" else SIZES | {"image_size": 32, "patch_size": 16} | joint
    kind = getattr(transformers, f"{family}Config")
    config = kind(vision_config=vision, text_config=WORDS | text, **joint)
    squashed = {"height": 36, "width": 36}
    processors = {
        "Siglip": transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        "Align": transformers.EfficientNetImageProcessor(
            size=squashed, crop_size={"height": 32, "width": 32}, do_center_crop=True, include_top=False, resample=2
        ),
    }
    length = min(77, text["max_position_embeddings"])
    theirs = transformers_folder(tmp_path / "hf", config, processors.get(family))
    model = same_as_transformers(tmp_path / "hf", *theirs, length=length)
    assert f"transformers' {family}Model" == model.describe()["model"]
    if family == "Siglip":
        assert torch.equal(model.logit_scale, theirs[0].logit_scale)
        assert torch.equal(model.logit_bias, theirs[0].logit_bias)
    if family == "Align":
        torch.testing.assert_close(model.logit_scale.exp(), 1 / theirs[0].temperature)
    with torch.no_grad():  # as long as they are, alone and without padding
        together = model.encode_text(model.tokenizer(TEXTS[:2]))
        for row, words in enumerate(TEXTS[:2] if family not in ("Siglip", "MetaClip2") else ()):
            ids = theirs[2](words, return_tensors="pt")["input_ids"]
            equal(together[row : row + 1], theirs[0].get_text_features(ids).pooler_output)


def test_blips_retrieval_model_scores_as_transformers_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    vision = SIZES | {"image_size": 32, "patch_size": 16}
    text = WORDS | LONG | {"is_decoder": False}
    config = transformers.BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=24)
    theirs, processor, tokenizer = transformers_folder(tmp_path / "hf", config, kind="BlipForImageTextRetrieval")
    model, preprocess, tokenize = diffclip.load(tmp_path / "hf")
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images()])
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = torch.cat([theirs(pixel_values=p[None], use_itm_head=False, **tokens).itm_score for p in pixels])
        found = model(torch.stack([preprocess(image) for image in images()]), tokenize(TEXTS))
    equal(found["image_features"] @ found["text_features"].T, expected)


def test_a_folder_of_another_kind_or_half_of_one_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers_folder(tmp_path / "hf", clip_config())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for change, message in (({"model_type": "bert"}, "transformers' bert"), ({"projection_dim": 8}, "wrong shape")):
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(diffclip.UserError, match=message):
            diffclip.load(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    with pytest.raises(diffclip.UserError, match="AutoImageProcessor"):
        diffclip.load(tmp_path / "hf")
    del transformers


def test_a_wrapped_model_is_evaluated_and_not_changed(tmp_path, capsys, caplog):
    open_clip_folder(tmp_path / "laion", vision={"ls_init_value": 0.5})
    caplog.clear()
    data = "scenes=scenes:test?size=32&length=16"
    tasks = ("zero_shot", "retrieval", "corruptions", "robustness")
    laion, out = str(tmp_path / "laion"), str(tmp_path / "out")
    arguments = ["eval", laion, "--data", data, "--out", out, "--workers", "0", "--sample", "4"]
    cli.main([*arguments, "--tasks", *tasks])
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(tasks)
    assert {line["model"] for line in lines} == {"clip"}
    assert "randomly" not in caplog.text  # as open_clip says before its weights are there
    with pytest.raises(SystemExit, match="noise"):
        cli.main([*arguments, "--tasks", "noise"])
    assert "noise needs a CLIP of ours: open_clip's CLIP is used as it is (no CLIP of ours has ls_init" in (
        capsys.readouterr().out
    )
    for options in ({"compile": True}, {"lambda_init": 0.5}):
        with pytest.raises(diffclip.UserError, match="is used as it is"):
            diffclip.load(laion, **options)


def test_info_says_what_it_is(tmp_path, capsys):
    torch.manual_seed(0)
    diffclip.save(diffclip.create_model("diffclip_vit_quickstart"), tmp_path / "ours")
    cli.main(["info", str(tmp_path / "ours")])
    said = capsys.readouterr().out
    for words in ("model: DiffCLIP", "differential attention", "λ, visual: 0.", "64 × 64", "SHA-256 of", "at most 77"):
        assert words in said
    open_clip_folder(tmp_path / "laion", text={"no_causal_mask": True}, pixels={"resize_mode": "squash"})
    cli.main(["info", str(tmp_path / "laion")])
    said = capsys.readouterr().out
    for words in ("open_clip's CLIP", "no_causal_mask = True", "resized: squash", "SimpleTokenizer", "parameters: "):
        assert words in said

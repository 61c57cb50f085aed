"""A vision-language model: what is learned, what stays as it is, answers, stopping and going on, transformers' own."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlamaForCausalLM, LlavaForConditionalGeneration

import diffclip
from diffclip import cli
from diffclip.errors import Stopped, UserError
from diffclip.training import loop
from diffclip.vlm import answer, answer_about, conversation, load, loading, state, training
from diffclip.vlm import model as models
from diffclip.vlm.answering import first_token_map
from diffclip.vlm.conversation import Turn
from diffclip.vlm.recipe import validate, with_settings
from small_language import CHAT, save_language, tokenizer
from small_models import small_model

TURNS = (Turn("Is there a red star?", "Yes"), Turn("What color is the ring?", "Blue"))


@pytest.fixture(scope="module")
def parts_of_a_model(tmp_path_factory):
    """Folders of an encoder and a language model."""
    folder = tmp_path_factory.mktemp("parts")
    diffclip.save(small_model("diffclip", vision_depth=3, image_size=32), folder / "encoder")
    save_language(folder / "language")
    return folder


def recipe(folder, *, kind="mlp2x_gelu", shuffle=1, stages=None, **others):
    align = {"name": "align", "data": "scenes:captions", "form": "caption", "length": 24, "lr": 0.01}
    ask = {"name": "ask", "data": "scenes:questions", "length": 24, "train": ["connector", "language"], "lr": 0.01}
    usual = {"batch_size": 4, "log_every": 1, "measure_every": 3, "checkpoint_every": 2, "epochs": 0.7}
    return validate(
        {
            "encoder": {"path": str(folder / "encoder")},
            "language": {"path": str(folder / "language")},
            "connector": {"kind": kind, "shuffle": shuffle},
            "stage": [usual | stage for stage in stages or (align, ask)],
            **others,
        },
        "test",
    )


def prepared(template="chat", chat=CHAT):
    words = tokenizer(chat)
    conversation.prepare_tokenizer(words, template)
    return words


@pytest.mark.parametrize("template", ["chat", "vicuna", "plain"])
def test_the_labels_are_the_answers_and_what_ends_them(template):
    words = prepared(template)
    made = conversation.conversation(words, TURNS, image_tokens=4)
    learned = [token for token, label in zip(made.ids, made.labels, strict=True) if label != -100]
    assert learned == [label for label in made.labels if label != -100]
    assert words.decode(learned).replace("<|end|>", "|").replace(" ", "") == "Yes|Blue|"
    assert made.ids.count(words.convert_tokens_to_ids("<image>")) == 4
    asked = conversation.prompt(words, TURNS[0].question, image_tokens=4)
    assert made.ids[: len(asked)] == asked, "training and answering write conversations alike"
    whole = words.apply_chat_template(
        [{"role": "user", "content": "<image>\n" + TURNS[0].question}, {"role": "assistant", "content": "Yes"}],
        tokenize=False,
    )
    parts = [{"type": "image"}, {"type": "text", "text": TURNS[0].question}]
    as_list = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes"}]
    assert words.apply_chat_template(as_list, tokenize=False) == whole


def test_a_caption_is_learned_after_its_image():
    words = prepared()
    made = conversation.caption(words, "a red star", image_tokens=3)
    assert made.labels[:3] == [-100] * 3
    assert words.decode(made.labels[3:]) == "a red star\n"


@pytest.mark.parametrize(
    ("chat", "told"),
    [
        (None, "has no chat template"),
        (CHAT.replace("<|end|>", ""), "ends no answer with its end-of-text token"),
        ("{{ messages | length }}" + CHAT, "rewrites earlier turns"),
    ],
)
def test_templates_that_cannot_be_learned_from(chat, told):
    with pytest.raises(UserError, match=told):
        prepared(chat=chat)


@pytest.mark.parametrize(("kind", "shuffle"), [("linear", 1), ("mlp2x_gelu", 2)])
def test_what_is_not_trained_stays_as_it_is_and_transformers_opens_the_rest(parts_of_a_model, tmp_path, kind, shuffle):
    made = recipe(parts_of_a_model, kind=kind, shuffle=shuffle)
    run = training.train(made, tmp_path / "run")
    fresh, _ = models.build(made)
    trained, _words = models.load_folder(run)
    before, after = fresh.state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "vision_tower" in name} <= same
    assert not [
        name for name in same if "language_model.layers.0.mlp" in name or name.endswith("projector.linear_1.weight")
    ]
    if kind == "linear":
        assert {name for name in before if "linear_2" in name} <= same, "the identity stays it"
    lines = [json.loads(line) for line in (run / "ask" / "metrics.jsonl").read_text().splitlines()]
    measured = next(line for line in lines if "loss_other_image" in line)
    assert {"loss_own_image", "yes_ratio", "unparsed", "yes_no_accuracy"} <= measured.keys()
    checkpoint = sorted((run / "align" / "checkpoints").iterdir())[-1]
    assert set(load_file(checkpoint / "trained.safetensors")) == {
        f"model.multi_modal_projector.{name}"
        for name in (
            ("linear_1.weight", "linear_1.bias")
            if kind == "linear"
            else ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
        )
    }
    theirs = LlavaForConditionalGeneration.from_pretrained(run)
    processor = AutoProcessor.from_pretrained(run)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a red star?"}]}],
        add_generation_prompt=True,
    )
    given = processor(images=picture, text=text, return_tensors="pt")
    ours = load(run)
    ids, mask = ours.prompts(["Is there a red star?"])
    assert given["input_ids"].tolist() == ids.tolist()
    pixels = ours.pixels([picture])
    assert (given["pixel_values"] - pixels).abs().max() < 1e-4
    with torch.no_grad():
        expected = trained.lm_head(models.hidden_states(trained, ids, mask, models.image_features(trained, pixels)))
        found = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    assert torch.equal(found, expected)
    assert not list(run.rglob("*.bin")) + list(run.rglob("*.pt"))


def test_a_language_model_learns_to_read_once_and_serves_every_run(parts_of_a_model, tmp_path):
    read = {"name": "read", "data": "scenes:text", "length": 24, "train": ["language"], "lr": 0.01}
    run = training.train(recipe(parts_of_a_model, stages=[read]), tmp_path / "read")
    first, _ = models.build(recipe(parts_of_a_model))
    learned, _ = models.load_folder(run)
    again, words = models.build(with_settings(recipe(parts_of_a_model), [f"language.path={run}"]))
    for name, value in again.state_dict().items():
        same = first if "multi_modal_projector" in name or "vision_tower" in name else learned
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(again.lm_head.weight, first.lm_head.weight)
    assert conversation.conversation(words, TURNS, image_tokens=2).learned


def test_the_first_layers_of_a_language_model(parts_of_a_model, tmp_path):
    made = with_settings(recipe(parts_of_a_model), ["language.layers=1"])
    cut, _ = models.build(made)
    whole, _ = models.build(recipe(parts_of_a_model))
    assert len(cut.model.language_model.layers) == 1 < len(whole.model.language_model.layers)
    seen = {name: value for name, value in whole.state_dict().items() if "layers.1." not in name}
    assert {name for name in cut.state_dict() if "language_model" in name} == {n for n in seen if "language_model" in n}
    vlm = load(training.train(made, tmp_path / "run"))
    assert vlm.model.config.text_config.num_hidden_layers == 1
    with pytest.raises(UserError, match=r"language.layers = 9: this language model has 2 blocks"):
        models.build(with_settings(made, ["language.layers=9"]))


def test_batched_answers_equal_single_ones(parts_of_a_model, tmp_path):
    run = training.train(recipe(parts_of_a_model), tmp_path / "run")
    vlm = load(run)
    pictures = [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 90, 200)]
    questions = ["Is there a red star in the image?", "What?", "What color is the ring, and is there a star?"]
    together = answer(vlm, pictures, questions, batch_size=3, max_new_tokens=6)
    streamed = []
    single = [
        answer(vlm, [p], [q], batch_size=1, max_new_tokens=6, on_text=streamed.append)[0]
        for p, q in zip(pictures, questions, strict=True)
    ]
    assert together == single
    for blind in (False, True):  # one reading of what the prompts share gives what each gives by itself
        alone = [answer(vlm, pictures[1:2], [q], blind=blind, max_new_tokens=6)[0] for q in [*questions, "Why?"]]
        assert alone == answer_about(
            vlm, pictures[1], [*questions, "Why?"], blind=blind, max_new_tokens=6, batch_size=3
        )
    assert "".join(streamed).replace("\n", "").replace(" ", "") == "".join(single).replace("\n", "").replace(" ", "")
    blind = answer(vlm, pictures, questions[:1] * 3, blind=True, max_new_tokens=6)
    assert len(set(blind)) == 1, "without images the same question has the same answer"
    attention, _ = first_token_map(vlm, pictures[0], questions[0])
    assert attention.shape == (4, 4)
    assert attention.sum() == pytest.approx(1)


def tensors_of(run):
    return load_file(run / "model.safetensors")


@pytest.mark.parametrize("stopped_at", [2, 6])  # in the first stage, and in the second
def test_a_stopped_run_goes_on_to_the_same_bits(parts_of_a_model, tmp_path, monkeypatch, stopped_at):
    made = recipe(parts_of_a_model)
    whole = training.train(made, tmp_path / "whole")
    steps, real = [], state.VlmState.step

    def step(self, number, batch):
        steps.append(number)
        if len(steps) == stopped_at:
            stop.requested = True
        return real(self, number, batch)

    stop = loop.StopSignal()
    with monkeypatch.context() as patch:
        patch.setattr(state.VlmState, "step", step)
        patch.setattr(loop, "StopSignal", lambda: stop)
        with pytest.raises(Stopped):
            training.train(made, tmp_path / "halves")
    with pytest.raises(UserError, match="holds a run already"):
        training.train(made, tmp_path / "halves")
    with pytest.raises(UserError, match="another recipe"):
        training.train(with_settings(made, ["stage.ask.lr=0.5"]), tmp_path / "halves", resume=True)
    halves = training.train(made, tmp_path / "halves", resume=True)
    one, other = tensors_of(whole), tensors_of(halves)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_another_encoder_is_refused(parts_of_a_model, tmp_path, monkeypatch):
    shutil.copytree(parts_of_a_model, tmp_path / "parts")
    made = recipe(tmp_path / "parts")
    run = training.train(made, tmp_path / "run")
    (run / "ask" / "trained.safetensors").unlink()
    diffclip.save(small_model("diffclip", seed=1, vision_depth=3, image_size=32), tmp_path / "parts" / "encoder")
    with pytest.raises(UserError, match="the encoder or the language model has changed"):
        training.train(made, run, resume=True)


def test_checkpoints_of_another_recipe_are_refused_though_theirs_is_gone(parts_of_a_model, tmp_path):
    run = training.train(recipe(parts_of_a_model), tmp_path / "run")
    (run / "recipe.toml").unlink()
    with pytest.raises(UserError, match=r"is of another model .*: resume with its recipe"):
        training.train(recipe(parts_of_a_model, shuffle=2), run, resume=True)


def test_neither_micro_batches_nor_padding_change_the_gradient(parts_of_a_model):
    made = recipe(parts_of_a_model)
    model, words = models.build(made)
    stage = made.stage[1]
    reader = training.reader_of(made, stage, model, words)
    batch = next(loading.ConversationLoader(reader, 6, seed=0).epoch(0))
    found = []
    for micro_batch in (0, 1, 4):
        model, words = models.build(made)
        settings = with_settings(made, [f"stage.ask.micro_batch={micro_batch}", 'stage.ask.precision="float32"'])
        run = state.VlmState(model, words, settings, settings.stage[1], training.schedule_of(stage, reader.samples))
        loss, _ = run.step(0, batch)
        weight = model.model.multi_modal_projector.linear_1.weight
        found.append((loss, weight.grad.clone()))
    reference = torch.nn.functional.cross_entropy  # the mean over all learned tokens, one conversation at a time
    model, words = models.build(made)
    losses = []
    for part in batch.split(1):
        real = int(part.mask.sum())
        pixels = diffclip.data.transforms.normalise(
            part.pixels, models.image_settings(model).image_mean, models.image_settings(model).image_std
        )
        logits = model(input_ids=part.ids[:, :real], pixel_values=pixels).logits[0, :-1]
        labels = part.labels[0, 1:real]
        losses += reference(logits[labels != -100], labels[labels != -100], reduction="none").tolist()
    assert found[0][0] == pytest.approx(np.mean(losses), rel=1e-5)
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-6)


def test_adapters_are_trained_and_become_weights(parts_of_a_model, tmp_path):
    pytest.importorskip("peft")
    stage = {"name": "ask", "data": "scenes:questions", "length": 12, "lora_rank": 2, "lr": 0.02}
    made = recipe(parts_of_a_model, stages=[stage])
    run = training.train(made, tmp_path / "run")
    names = tensors_of(run)
    assert not [name for name in names if "lora" in name]
    before = models.build(made)[0].state_dict()
    after = models.load_folder(run)[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.language_model.embed_tokens.weight" not in changed


def test_the_last_blocks_of_the_encoder_alone(parts_of_a_model):
    made = recipe(parts_of_a_model)
    model, _ = models.build(made)
    models.set_trained(model, made, ["encoder"], encoder_blocks=1)
    names = {name for name, _ in models.trainable(model)}
    assert names
    assert all(name.startswith("model.vision_tower.visual.blocks.1.") for name in names), "block 3 is behind layer −2"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["encoder.image_size=64"], "takes images of 32 pixels, but the recipe says encoder.image_size = 64"),
        (["encoder.layer=-9"], "encoder.layer = -9: this encoder has 3 blocks"),
        (["connector.shuffle=3"], "connector.shuffle = 3: 4 patches a side cannot be divided by it"),
        (["stage.ask.batch_size=99"], "has 24 conversations, fewer than one batch of 99"),
        (["stage.ask.max_length=8"], "24 of 24 conversations looked at cannot be learned from, .* nothing_to_learn"),
        (["stage.nope.lr=1"], "the stages are align, ask: give stage.align.KEY=VALUE"),
        (["language.path=/nowhere/at/all"], "no such folder"),
        (["language.path=smollm2"], "is not here yet: get it with `diffclip vlm fetch smollm2`"),
    ],
)
def test_what_cannot_be_trained_is_one_line(parts_of_a_model, tmp_path, monkeypatch, settings, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=told) as caught:
        training.train(with_settings(recipe(parts_of_a_model), settings), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.safetensors"))


def test_the_command_says_what_a_recipe_would_do(parts_of_a_model, capsys):
    paths = [f"encoder.path={parts_of_a_model / 'encoder'}", f"language.path={parts_of_a_model / 'language'}"]
    for recipe_, stages, more in (
        ("reader", ("read", "recognise"), ["language.layers=2"]),
        ("scenes", ("words", "answer"), []),
    ):
        lengths = [f"stage.{name}.length=64" for name in stages]
        cli.main(["vlm", "train", recipe_, "--dry-run", "--set", *paths, *more, *lengths])
        said = capsys.readouterr().out
        assert all(f"stage {name}" in said for name in stages)
    assert "trains connector, language" in said
    assert "tokens an image" in said


def test_the_command_says_what_came_of_a_recipe(parts_of_a_model, tmp_path, capsys):
    paths = [f"encoder.path={parts_of_a_model / 'encoder'}", f"language.path={parts_of_a_model / 'language'}"]
    sizes = [f"stage.{stage}.{key}=8" for stage in ("read", "recognise") for key in ("length", "batch_size")]
    run = tmp_path / "reader"
    cli.main(["vlm", "train", "reader", "--set", *paths, *sizes, "language.layers=2", "--out", str(run)])
    said = capsys.readouterr().out
    assert f"--set language.path={run}" in said
    assert "vlm answer" not in said, "its connector has learned nothing"


def test_a_language_model_from_scratch(parts_of_a_model, tmp_path):
    stage = {"name": "ask", "data": "scenes:questions", "length": 12, "train": ["connector", "language"]}
    made = with_settings(recipe(parts_of_a_model, stages=[stage]), ["language.path=scratch"])
    first, words = models.build(made)
    again, _ = models.build(made)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    asked = conversation.conversation(words, TURNS, image_tokens=16)
    assert len(asked.ids) < 16 + 40, "a short vocabulary for short texts"
    run = training.train(made, tmp_path / "run")
    assert answer(load(run), [np.zeros((32, 32, 3), np.uint8)], ["Is there a red star?"], max_new_tokens=3)


def test_a_frozen_language_model_stays_in_its_precision(parts_of_a_model, tmp_path):
    """bfloat16 where the processor multiplies it; what is written has the same values either way."""
    shutil.copytree(parts_of_a_model / "encoder", tmp_path / "encoder")
    save_language(tmp_path / "language")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "language").bfloat16()
    model.save_pretrained(tmp_path / "language")
    made = recipe(tmp_path)
    built, words = models.build(made)
    first, second = made.stage
    schedule = training.schedule_of(first, [0] * 24)
    weight = built.model.language_model.layers[0].mlp.up_proj.weight
    with_bf16 = state.VlmState(built, words, made, first, schedule).dtype is not None
    assert weight.dtype == (torch.bfloat16 if with_bf16 else torch.float32)
    assert built.model.vision_tower.visual.norm.weight.dtype == torch.float32
    state.VlmState(built, words, made, second, schedule)
    assert weight.dtype == torch.float32
    run = training.train(recipe(tmp_path, stages=[vars(first)]), tmp_path / "run")
    written = models.load_folder(run)[0].model.language_model.layers[0].mlp.up_proj.weight
    assert torch.equal(written, model.model.layers[0].mlp.up_proj.weight.float())

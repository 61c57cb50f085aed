"""Words at an image's tokens: the loss by probabilities, which words, and a stage that trains a connector so."""

import json
import math

import pytest
import torch
from test_vlm import parts_of_a_model, recipe  # noqa: F401

from diffclip.errors import UserError
from diffclip.vlm import model as models
from diffclip.vlm import training
from diffclip.vlm.loading import collate
from diffclip.vlm.recipe import with_settings
from diffclip.vlm.words import SHARPNESS, answers_have, word_losses, word_tokens, words_of

WORDS = {"name": "words", "data": "scenes:lists", "form": "words", "length": 24, "epochs": 6.0, "lr": 0.01}

SPOKEN = {"id": "a", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A red star."}]}


def test_the_losses_are_those_of_the_probability_that_a_word_is_somewhere():
    generator = torch.Generator().manual_seed(0)
    tokens, embeddings = (torch.randn(*size, generator=generator) / 3 for size in ((2, 3, 5), (4, 5)))
    have = torch.tensor([[True, False, False, True], [False, True, False, False]])
    found = word_losses(tokens, embeddings, have)
    mean = [sum(float(row[i]) for row in embeddings) / 4 for i in range(5)]
    words = [[float(row[i]) - mean[i] for i in range(5)] for row in embeddings]
    size = sum(x * x for word in words for x in word) / 4
    for image in range(2):
        for number, word in enumerate(words):
            nowhere = 1.0
            for token in tokens[image].double().tolist():
                logit = SHARPNESS * (sum(a * b for a, b in zip(token, word, strict=True)) - size / 2)
                nowhere *= 1 - 1 / (1 + math.exp(-logit))
            expected = -math.log(1 - nowhere if have[image, number] else nowhere)
            assert float(found[image, number]) == pytest.approx(expected, rel=1e-5)
    sure = word_losses(1000 * embeddings.expand(2, 4, 5), embeddings, torch.zeros(2, 4, dtype=torch.bool))
    assert torch.isfinite(sure).all()


def test_words_stand_at_the_tokens_where_things_are(parts_of_a_model):  # noqa: F811
    embeddings = torch.arange(12.0).reshape(4, 3)
    made = word_tokens(embeddings, torch.tensor([[[1, 3], [-1, -1], [2, -1]]]))
    assert made.tolist() == [[[12.0, 14.0, 16.0], [4.5, 5.5, 6.5], [6.0, 7.0, 8.0]]]
    model, tokenizer = models.build(recipe(parts_of_a_model))
    symbols = recipe(
        parts_of_a_model, stages=[WORDS | {"data": "scenes:symbols", "form": "conversation", "train": ["language"]}]
    )
    reader = training.reader_of(symbols, symbols.stage[0], model, tokenizer)
    assert reader.image_tokens == 16
    batch = collate([reader.read(index) for index in range(12)])
    assert batch.symbols is not None
    assert batch.pixels is None
    for row in range(12):
        things = reader.samples[row].symbols
        drawn = [[] for _ in range(16)]
        for x, y, words in things:
            drawn[4 * min(int(4 * y), 3) + min(int(4 * x), 3)].append(words)
        for at, words in zip(batch.symbols[row].tolist(), drawn, strict=True):
            assert tokenizer.decode([word for word in at if word >= 0]) == "".join(words)
    halves = [part.symbols for part in batch.split(5)]
    assert [len(half) for half in halves] == [5, 5, 2]
    assert torch.equal(torch.cat(halves), batch.symbols)


def test_a_language_model_learns_from_symbols(parts_of_a_model, tmp_path):  # noqa: F811
    stage = WORDS | {"data": "scenes:symbols", "form": "conversation", "train": ["language"], "epochs": 1.0}
    run = training.train(recipe(parts_of_a_model, stages=[stage]), tmp_path / "run")
    lines = [json.loads(line) for line in (run / "words" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert any(line.get("loss_other_image", 0) != line.get("loss_own_image", 0) for line in lines)


def test_which_words_an_answer_has():
    labels = torch.tensor([[-100, 7, 3, -100], [9, 9, -100, 7]])
    assert answers_have(labels, torch.tensor([3, 7, 8])).tolist() == [[True, True, False], [False, True, False]]


def test_a_connector_learns_words_while_nothing_else_changes(parts_of_a_model, tmp_path):  # noqa: F811
    made = recipe(parts_of_a_model, stages=[WORDS])
    run = training.train(made, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "words" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(line["loss_own_image"] > 0 for line in lines if "loss_other_image" in line)
    assert any("loss_other_image" in line for line in lines)
    fresh, words = models.build(made)
    trained, _ = models.load_folder(run)
    changed = {name for name, value in fresh.state_dict().items() if not torch.equal(value, trained.state_dict()[name])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
    learned = words.decode(words_of(training.reader_of(made, made.stage[0], fresh, words)))
    assert "star" in learned


def test_micro_batches_change_no_loss(parts_of_a_model, tmp_path):  # noqa: F811
    losses = []
    for micro in (0, 2):
        made = with_settings(recipe(parts_of_a_model, stages=[WORDS]), [f"stage.words.micro_batch={micro}"])
        run = training.train(made, tmp_path / f"micro{micro}")
        lines = [json.loads(line) for line in (run / "words" / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_learn_words_is_refused(parts_of_a_model, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"stage words: form = .words. does not run the language model"):
        recipe(parts_of_a_model, stages=[WORDS | {"train": ["connector", "language"]}])
    for data in ("scenes:text", "scenes:symbols"):
        with pytest.raises(UserError, match=rf"stage words: {data} has no image for a connector"):
            recipe(parts_of_a_model, stages=[WORDS | {"data": data}])
    (tmp_path / "text.json").write_text(json.dumps(8 * [SPOKEN]))
    with pytest.raises(UserError, match=r"8 of 8 conversations .* 8 no_image"):
        training.train(recipe(parts_of_a_model, stages=[WORDS | {"data": f"{tmp_path}/text.json"}]), tmp_path / "text")
    with pytest.raises(UserError, match=r"answers that share words"):
        training.train(recipe(parts_of_a_model, stages=[WORDS | {"length": 4}]), tmp_path / "few")

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
from diffclip.vlm.words import SHARPNESS, Words, answers_have, word_losses, word_tokens, words_of

WORDS = {"name": "words", "data": "scenes:lists", "form": "words", "length": 24, "epochs": 6.0, "lr": 0.01}

SPOKEN = {"id": "a", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A red star."}]}


def test_the_losses_are_those_of_the_probability_that_a_word_is_somewhere():
    """Tokens are built from the mean, known amounts of known words, and a rest at right angles to the words."""
    table = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    words, mean = torch.tensor([2, 5, 7]), table.mean(0)
    pairs = [(0, 2), (2, 1)]
    have = torch.tensor([[True, False, True], [False, True, True]])
    have_pairs = torch.tensor([[True, False], [True, True]])
    amounts = [[[1.0, 0.1, 0.0], [0.2, -0.1, 1.2]], [[0.0, 0.0, 0.0], [0.4, 0.9, 0.1]]]
    rest = [[0.0, 0.5], [2.0, 0.0]]
    across = torch.linalg.svd(table[words]).Vh[-1]  # of length 1
    tokens = torch.zeros(2, 2, 6, dtype=torch.float64)
    for image in range(2):
        for place in range(2):
            for amount, word in zip(amounts[image][place], words.tolist(), strict=True):
                tokens[image, place] += amount * table[word]
            tokens[image, place] += mean + rest[image][place] * across
    learned = Words(words, torch.tensor(pairs))
    found, found_pairs, left = word_losses(tokens.float(), table.float(), learned, have, have_pairs)

    def there(amount):
        return 1 / (1 + math.exp(-SHARPNESS * (amount - 0.5)))

    def loss(nowhere, has):
        return -math.log(1 - nowhere if has else nowhere)

    size = sum(float(table[word].pow(2).sum()) for word in words) / 3
    for image in range(2):
        for number in range(3):
            nowhere = math.prod(1 - there(amounts[image][place][number]) for place in range(2))
            assert float(found[image, number]) == pytest.approx(loss(nowhere, have[image, number]), rel=1e-3)
        for number, (one, other) in enumerate(pairs):
            nowhere = math.prod(1 - there(at[one]) * there(at[other]) for at in amounts[image])
            assert float(found_pairs[image, number]) == pytest.approx(
                loss(nowhere, have_pairs[image, number]), rel=1e-3
            )
        for place in range(2):
            too_much = [amount - there(amount) for amount in amounts[image][place]]
            differs = sum(x * table[word] for x, word in zip(too_much, words.tolist(), strict=True))
            expected = (float(differs.square().sum()) + rest[image][place] ** 2) / size
            assert float(left[image, place]) == pytest.approx(expected, rel=1e-3)
    sure = word_losses(1000 * tokens.float(), table.float(), learned, have & False, have_pairs & False)
    assert all(torch.isfinite(losses).all() for losses in sure)


def test_what_words_look_like_is_what_a_connector_is_to_make():
    """Hardly a loss is left of tokens that were made of words."""
    table = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    amounts = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    made = word_tokens(table, torch.tensor([[[2, 5], [0, 0]], [[7, 0], [2, 0]]]), amounts)
    have = torch.tensor([[True, True, False], [True, False, True]])
    pairs, have_pairs = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[True, False], [False, False]])
    losses = word_losses(made, table, Words(torch.tensor([2, 5, 7]), pairs), have, have_pairs)
    assert all(float(part.max()) < 0.03 for part in losses)


def test_words_stand_at_the_tokens_where_things_are(parts_of_a_model):  # noqa: F811
    embeddings = torch.arange(12.0).reshape(4, 3)
    amounts = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [0.5, 0.0]]])
    made = word_tokens(embeddings, torch.tensor([[[1, 3], [0, 0], [2, 0]]]), amounts)
    assert made.tolist() == [[[16.5, 19.5, 22.5], [4.5, 5.5, 6.5], [7.5, 9.0, 10.5]]]
    model, tokenizer = models.build(recipe(parts_of_a_model))
    symbols = recipe(
        parts_of_a_model, stages=[WORDS | {"data": "scenes:symbols", "form": "conversation", "train": ["language"]}]
    )
    reader = training.reader_of(symbols, symbols.stage[0], model, tokenizer)
    assert reader.image_tokens == 16
    batch = collate([reader.read(index) for index in range(12)])
    assert batch.symbols is not None
    assert batch.amounts is not None
    assert batch.pixels is None
    for row in range(12):
        things = reader.samples[row].symbols
        drawn = [[] for _ in range(16)]
        for thing in things:
            drawn[4 * min(int(4 * thing.y), 3) + min(int(4 * thing.x), 3)].append(thing)
        for ids, held, here in zip(batch.symbols[row], batch.amounts[row].tolist(), drawn, strict=True):
            said = [(token, thing.amount) for thing in here for token in tokenizer(thing.words)["input_ids"]]
            assert ids[: len(said)].tolist() == [token for token, _ in said]
            assert held == pytest.approx([amount for _, amount in said] + [0.0] * (len(held) - len(said)))
    halves = list(batch.split(5))
    assert [len(half.symbols) for half in halves] == [5, 5, 2]
    assert torch.equal(torch.cat([half.symbols for half in halves]), batch.symbols)
    assert torch.equal(torch.cat([half.amounts for half in halves]), batch.amounts)


def test_a_language_model_learns_from_symbols(parts_of_a_model, tmp_path):  # noqa: F811
    stage = WORDS | {"data": "scenes:symbols", "form": "conversation", "train": ["language"], "epochs": 1.0}
    run = training.train(recipe(parts_of_a_model, stages=[stage]), tmp_path / "run")
    lines = [json.loads(line) for line in (run / "words" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert any(line.get("loss_other_image", 0) != line.get("loss_own_image", 0) for line in lines)


def test_which_words_an_answer_has():
    labels = torch.tensor([[-100, 7, 3, -100], [9, 9, -100, 7]])
    words, pairs = answers_have(labels, Words(torch.tensor([3, 7, 8]), torch.tensor([[1, 0], [0, 1]])))
    assert words.tolist() == [[True, True, False], [False, True, False]]
    assert pairs.tolist() == [[True, False], [False, False]]  # 7 then 3, never 3 then 7


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
    learned = words_of(training.reader_of(made, made.stage[0], fresh, words), 64)
    assert "star" in words.decode(learned.ids)
    assert learned.pairs.shape[1] == 2
    few = words_of(training.reader_of(made, made.stage[0], fresh, words), 8)
    assert len(few.ids) == 4, "no more than amounts can be told apart of"
    assert set(few.ids.tolist()) < set(learned.ids.tolist())


def test_the_losses_are_worked_out_in_float32_where_matrices_are_multiplied_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    tokens, table = torch.randn(2, 4, 16, generator=generator), torch.randn(9, 16, generator=generator)
    words = Words(torch.tensor([2, 5, 7]), torch.tensor([[0, 1]]))
    have = torch.tensor([[True, False, True], [False, True, True]]), torch.tensor([[True], [False]])
    expected = word_losses(tokens, table, words, *have)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = word_losses(tokens, table, words, *have)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_micro_batches_change_no_loss(parts_of_a_model, tmp_path):  # noqa: F811
    losses = []
    for micro in (0, 2):
        # In bfloat16, where a processor has it, the parts' roundings differ.
        settings = [f"stage.words.micro_batch={micro}", "stage.words.precision=float32"]
        made = with_settings(recipe(parts_of_a_model, stages=[WORDS]), settings)
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

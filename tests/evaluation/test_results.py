import dataclasses
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diffclip import durable
from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.results import ImagesRead, PerExampleScores, Result
from diffclip.models.weights.store import fingerprint


def result(dataset="cifar10", acc1=0.5, **changes):
    fields = {"model": "clip_vit_b16", "pretrained": "runs/a", "task": "zeroshot_classification"} | changes
    return Result(dataset=dataset, metrics={"acc1": acc1}, **fields)


def test_a_line_has_exactly_the_benchmark_s_keys(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    results.append(path, result("Übung"))
    results.append(path, result("second"))
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {
        "dataset": "Übung",
        "model": "clip_vit_b16",
        "pretrained": "runs/a",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5},
        "language": "en",
    }
    assert second["dataset"] == "second"
    assert results.read(path) == [result("Übung"), result("second")]


def test_a_line_may_say_how_many_images_were_read(tmp_path):
    path = tmp_path / "results.jsonl"
    read = ImagesRead(n=54, n_expected=60, skipped={"missing": 6})
    learned = {"train": {"n": 3, "n_expected": 4, "skipped": {"empty": 1}}}
    results.append(path, result("a", n=54, n_expected=60, skipped={"missing": 6}, learned_from=learned))
    results.append(path, result("b"))
    full, old = results.read(path)
    assert (full.images["test"], full.images["train"].share_skipped) == (read, 0.25)
    assert str(read) == "6 of 60 (6 missing)"
    assert (old.n, old.images) == (None, {})


@pytest.mark.parametrize(
    "counts",
    [{"n": -1}, {"n": "54"}, {"n": True}, {"skipped": {"missing": "6"}}, {"learned_from": {"train": {"n": 1}}}],
)
def test_counts_of_another_form_are_refused(tmp_path, counts):
    path = tmp_path / "results.jsonl"
    line = {"dataset": "a", "model": "m", "pretrained": "p", "task": "t", "metrics": {}, "language": "en"}
    path.write_text(json.dumps(line | counts) + "\n")
    with pytest.raises(UserError, match="line 1: expected whole numbers as n and n_expected"):
        results.read(path)


def test_later_lines_win_and_the_order_stays(tmp_path):
    path = tmp_path / "results.jsonl"
    for item in (result("a", 0.1), result("b", 0.2), result("a", 0.3), result("a", 0.4, pretrained="runs/b")):
        results.append(path, item)
    assert results.read(path) == [result("a", 0.3), result("b", 0.2), result("a", 0.4, pretrained="runs/b")]


def test_a_line_cut_short_by_a_crash_harms_no_other(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    results.append(path, result("a"))
    with path.open("a") as file:
        file.write('{"dataset": "b", "mod')
    results.append(path, result("c"))
    with caplog.at_level(logging.WARNING):
        assert results.read(path) == [result("a"), result("c")]
    assert "results.jsonl line 2 is not JSON" in caplog.text


def test_many_writers_lose_no_line(tmp_path):
    path = tmp_path / "results.jsonl"
    results.append(path, result("first"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: results.append(path, result(f"d{i}")), range(200)))
    assert len(results.read(path)) == 201


def test_missing_file_is_empty_and_wrong_keys_are_named(tmp_path):
    path = tmp_path / "results.jsonl"
    assert results.read(path) == []
    path.write_text('{"dataset": "a", "score": 1}\n')
    with pytest.raises(
        UserError, match=r"results.jsonl line 1: expected the keys dataset, model, .* found dataset, score"
    ):
        results.read(path)


@pytest.mark.parametrize("name", ["a\u2028b\x85c", "nul\0", "two\nlines\r", "\ud800", "😀 λ"])
def test_any_name_comes_out_as_it_went_in(tmp_path, caplog, name):
    written = [dataclasses.replace(result(acc1=0.5), dataset=name, model=name, task=str(i)) for i in range(3)]
    for one in written:
        results.append(tmp_path / "results.jsonl", one)
    assert results.read(tmp_path / "results.jsonl") == written
    assert not caplog.messages


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_neither_written_nor_read(tmp_path, value):
    with pytest.raises(ValueError, match="finite"):
        results.append(tmp_path / "results.jsonl", result(acc1=value))
    assert not (tmp_path / "results.jsonl").exists()
    (tmp_path / "results.jsonl").write_bytes(
        durable.json_line(dataclasses.asdict(result(acc1=0.5)) | {"metrics": {"acc1": value}})
    )
    with pytest.raises(UserError, match="line 1: expected metrics as finite numbers"):
        results.read(tmp_path / "results.jsonl")


def test_examples_round_trip_beside_the_results(tmp_path):
    path = tmp_path / "results.jsonl"
    examples = PerExampleScores(torch.tensor([0, 2, 3]), {"acc1": torch.tensor([1.0, 0.0, 1.0])}, {"acc1": 0.1})
    key = ("data/set: 1", "clip", "runs/a", "zeroshot_classification")
    assert results.load_examples(path, key) is None
    assert results.stored_fingerprint(path, key) is None
    results.save_examples(path, key, examples, "print")
    assert results.stored_fingerprint(path, key) == "print"
    found = results.load_examples(path, key)
    assert found.indices.tolist() == [0, 2, 3]
    assert found.values["acc1"].tolist() == [1.0, 0.0, 1.0]
    assert found.chance == {"acc1": 0.1}
    assert found.metrics == pytest.approx({"acc1": 2 / 3})
    assert [p.name for p in (tmp_path / "examples").iterdir()] == [results.examples_path(path, key).name]
    # names that read alike stay apart
    assert results.examples_path(path, ("data set: 1", *key[1:])) != results.examples_path(path, key)
    results.examples_path(path, key).write_bytes(b"damaged")
    for read in (results.load_examples, results.stored_fingerprint):
        with pytest.raises(UserError, match="is damaged"):
            read(path, key)


def test_an_example_without_part_in_a_metric_is_left_out_of_it():
    examples = PerExampleScores(torch.arange(3), {"a": torch.tensor([1.0, torch.nan, 0.0])}, {})
    assert examples.metrics == {"a": 0.5}


def test_fingerprint_follows_the_weights():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = fingerprint(model)
    assert before == fingerprint(model)
    with torch.no_grad():
        model[0].bias[0] += 1e-7
    assert before != fingerprint(model)

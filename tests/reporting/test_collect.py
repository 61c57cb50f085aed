import csv
import json
import logging
import os

import pytest
from made_results import make_run, put, put_examples, scene_results

from diffclip.errors import UserError
from diffclip.reporting.collect import collect
from diffclip.reporting.report import Options, report


def test_folders_files_and_the_benchmark_s_own_are_one_table(tmp_path):
    put(tmp_path / "a" / "results.jsonl", "cifar10", "clip_vit_b16", "x", "linear_probe", acc1=0.5)
    put(tmp_path / "b.jsonl", "cifar10", "clip_vit_b16", "x", "linear_probe", acc1=0.6)
    laion = {"dataset": "wds/cifar10", "model": "ViT-B-16", "pretrained": "openai", "task": "linear_probe"}
    (tmp_path / "one.json").write_text(
        json.dumps(laion | {"metrics": {"lp_acc1": 0.7, "files": ["x"]}, "language": "en"})
    )
    with (tmp_path / "two.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*laion, "acc1", "lp_acc1", "model_fullname"])
        writer.writeheader()
        writer.writerow(
            laion | {"task": "zeroshot_classification", "acc1": "0.8", "lp_acc1": "", "model_fullname": "m"}
        )
    found = collect([tmp_path / "a", tmp_path / "b.jsonl", tmp_path / "one.json", tmp_path / "two.csv"])
    assert [(r.task, dict(r.metrics)) for r in found.results] == [
        ("linear_probe", {"acc1": 0.6}),  # the later of two
        ("linear_probe", {"acc1": 0.7}),
        ("zeroshot_classification", {"acc1": 0.8}),
    ]
    assert found.origin[found.results[0].key] == tmp_path / "b.jsonl"


def test_runs_below_a_folder_are_found_but_not_their_checkpoints(tmp_path):
    scene_results(tmp_path, seeds=1)
    copy = tmp_path / "clip_vit_quickstart-seed0" / "checkpoints" / "step_1"
    copy.mkdir(parents=True)
    (copy / "results.jsonl").write_text('{"broken": 1}\n')
    found = collect([tmp_path])
    assert sorted(run.path.name for run in found.runs) == [
        "clip_vit_quickstart-seed0",
        "diffclip_vit_quickstart-seed0",
        "diffclip_vit_quickstart_vision-seed0",
    ]
    assert {run.seed for run in found.runs} == {0}


def test_a_run_is_found_by_a_path_from_elsewhere(tmp_path):
    run = make_run(tmp_path / "scenes" / "clip-seed0", seed=0, preset="clip_vit_quickstart")
    make_run(tmp_path / "cifar10" / "clip-seed0", seed=0, preset="clip_vit_quickstart")
    found = collect([tmp_path])
    assert found.run_of("runs/scenes/clip-seed0").path == run.resolve()
    assert found.run_of("clip-seed0") is None  # either could be meant
    assert found.run_of("openai") is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.json", "{", "is not JSON"),
        ("r.json", '{"dataset": 1}', "expected the keys dataset, model"),
        ("r.csv", "a,b\n1,2\n", "expected the columns dataset"),
        ("r.txt", "x", "expected a run directory, results.jsonl"),
    ],
)
def test_what_is_no_result_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        collect([tmp_path / name])
    assert "\n" not in str(raised.value)


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"no results in .*: expected results.jsonl"):
        collect([tmp_path])


def test_a_damaged_line_is_a_warning(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    put(path, "cifar10", "clip_vit_b16", "x", "linear_probe", acc1=0.5)
    with path.open("a") as file:
        file.write('{"dataset": "cif')
    with caplog.at_level(logging.WARNING):
        assert len(collect([path]).results) == 1
    assert "line 2 is not JSON and was skipped" in caplog.text


def two_sizes(folder):
    """Zero-shot on one name, of 4 test images in one file and 6 in another."""
    for name, count in (("a", 4), ("b", 6)):
        for model in ("clip_vit_b16", "diffclip_vit_b16"):
            right = [float((place + model.startswith("diff")) % 2) for place in range(count)]
            put_examples(
                folder / name / "results.jsonl", "scenes/test", model, "runs/x", "zeroshot_classification", right
            )
    return folder / "a", folder / "b"


def test_data_sets_of_one_name_and_two_sizes_are_never_one(tmp_path):
    first, second = two_sizes(tmp_path)
    found = collect([first, second])
    assert sorted({r.dataset for r in found.results}) == ["scenes/test", "scenes/test (4)"]
    counts = {r.dataset: len(found.examples(r.key).indices) for r in found.results}
    assert counts == {"scenes/test": 6, "scenes/test (4)": 4}
    assert found.notes == (
        "scenes/test, zero-shot classification: results of 4 and of 6 test examples are not compared with each other; "
        "those of fewer stand as scenes/test (4)",
    )


def test_the_order_of_the_inputs_decides_nothing(tmp_path):
    """The numbers, the headline and the files are the same, whichever input is given first."""
    first, second = two_sizes(tmp_path)
    put(first / "results.jsonl", "cifar10", "clip_vit_b16", "runs/x", "linear_probe", acc1=0.5)
    put(second / "results.jsonl", "cifar10", "clip_vit_b16", "runs/x", "linear_probe", acc1=0.6)
    os.utime(first / "results.jsonl", (2e9, 2e9))
    pages = []
    for name, inputs in (("one", (first, second)), ("two", (second, first))):
        files = report(inputs, tmp_path / name, Options(scenes=0))
        text = files.page.read_text(encoding="utf-8")
        pages.append(text[: text.index("diffclip report")])
        assert any("has other numbers in" in note and "which is newer" in note for note in files.notes)
    assert pages[0] == pages[1]
    found = {r.task: r for r in collect([second, first]).results}
    assert found["linear_probe"].metrics == {"acc1": 0.5}  # of the newer file

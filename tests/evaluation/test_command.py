"""`diffclip eval` as a person runs it: what it says, skips, survives, and how it ends."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from diffclip import cli
from diffclip.evaluation import plan, progress, results
from diffclip.evaluation.command import data_set, run_suite
from diffclip.evaluation.plan import Job, NamedModel, Plan
from diffclip.evaluation.splits import Task
from diffclip.evaluation.suite import DataSet
from diffclip.models.clip import create_model
from diffclip.models.weights import save

SMALL = {"image_size": 16, "patch_size": 8, "vision_width": 32, "vision_depth": 1, "vision_heads": 2, "embed_dim": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in ("clip", "diffclip"):
        torch.manual_seed(0)
        text = {"text_width": 16, "text_depth": 1, "text_heads": 2}
        save(create_model(f"{kind}_vit_t16", **SMALL, **text), folder / kind)
    return [str(folder / "clip"), str(folder / "diffclip")]


def pictures(folder, splits=("train", "test"), count=6):
    for split in splits:
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng((number, i)).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def run(capsys, *arguments):
    """What the command prints, as lines, and what it ends with: None, or the message."""
    try:
        cli.main(["eval", "--workers", "0", *map(str, arguments)])
        message = None
    except SystemExit as ended:
        message = ended.code
    return capsys.readouterr().out.splitlines(), message


def test_it_says_what_it_does_skips_what_is_done_and_redoes_it_by_force(capsys, tmp_path, models):
    data = pictures(tmp_path / "pets of mine")
    arguments = (*models, "--data", f"mine={data}", "--tasks", "zero_shot", "retrieval", "--out", tmp_path / "out")
    lines, message = run(capsys, *arguments)
    assert message is None
    assert lines[0] == "2 results to compute, 0 known already; 24 images to encode"
    assert lines[1] == "  mine: zero_shot; images: test 12"
    assert lines[2] == "  mine cannot serve retrieval: it needs captions"
    assert f"mine test with {models[0]}: encoding 12 of 12 images" in lines
    assert sum(line.startswith(models[1]) and "acc1" in line for line in lines) == 1
    assert any("not significant" in line for line in lines)  # two models are compared
    assert lines[-1] == f"Written to {tmp_path / 'out' / 'results.jsonl'}"

    lines, message = run(capsys, *arguments)
    assert message is None
    assert lines[0] == "0 results to compute, 2 known already (--force computes them anew)"
    assert not any("encoding" in line for line in lines)
    assert sum(line.endswith("(known)") for line in lines) == 2

    lines, message = run(capsys, *arguments, "--force")
    assert message is None
    assert lines[0] == "2 results to compute, 0 known already; 0 images to encode, 24 features known already"
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4
    assert len(results.read(tmp_path / "out" / "results.jsonl")) == 2


def test_a_failure_is_listed_at_the_end_and_the_rest_is_done(capsys, tmp_path, models):
    data = pictures(tmp_path / "good")
    lines, message = run(
        capsys,
        models[0],
        *("--data", f"absent={tmp_path}/nowhere", f"good={data}", "--out", tmp_path / "out"),
        *("--cache", tmp_path / "elsewhere"),
    )
    assert message.startswith("diffclip: 1 could not be done, everything else is:\n  absent: there is no ")
    assert any(line.startswith("failed: absent: ") for line in lines)
    assert [r.dataset for r in results.read(tmp_path / "out" / "results.jsonl")] == ["good"]
    assert list((tmp_path / "elsewhere").glob("*/index.json"))
    assert not (tmp_path / "out" / "features").exists()


def test_every_task_on_scenes_out_of_the_box(capsys, tmp_path, models, monkeypatch):
    monkeypatch.setattr("diffclip.evaluation.command.SCENES_TO_LEARN_FROM", 400)
    lines, message = run(
        capsys,
        models[1],
        *("--data", "scenes=scenes:test?length=60&size=32", "--out", tmp_path, "--sample", "4"),
        *("--tasks", *Task.__args__),
    )
    assert message is None
    assert not [line for line in lines if "cannot serve" in line]
    found = {result.task: result for result in results.read(tmp_path / "results.jsonl")}
    assert len(found) == len(Task.__args__)
    for result in found.values():
        kept = results.load_examples(tmp_path / "results.jsonl", result.key)
        scores = {name: value for name, value in result.metrics.items() if name not in results.NOT_SCORES}
        assert kept.metrics == pytest.approx(scores)
    assert found["few_shot"].metrics["std"] > 0
    assert found["linear_probe"].metrics["C"] > 0


def test_a_stopped_evaluation_says_how_to_go_on(capsys, tmp_path, models, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffclip.evaluation.subject.image_features", interrupted)
    _, status = run(capsys, models[0], "--data", f"mine={pictures(tmp_path / 'x')}", "--out", tmp_path / "out")
    assert status == 130


def test_the_tasks_of_the_command_line_are_those_of_the_suite():
    assert set(cli.Task.__args__) == set(Task.__args__)


def test_a_wrong_form_is_told_at_once(capsys, tmp_path, models):
    _, message = run(capsys, models[0], "--data", "cifar10", "--out", tmp_path)
    assert message == (
        "diffclip: --data cifar10: expected NAME=PATH, such as cifar10=data/cifar10 or scenes=scenes:test"
    )
    _, message = run(capsys, models[0], "--data", "a=b", "a=c", "--out", tmp_path)
    assert message == "diffclip: --data names a twice: results would replace each other, so give each its own name"
    _, message = run(capsys, "--data", "a=b", "--out", tmp_path)
    assert message.startswith("diffclip: no model to evaluate")


@pytest.mark.parametrize(
    ("splits", "test", "others"),
    [
        (("train", "test"), "test", {"train"}),
        (("train", "val", "test"), "test", {"train", "val"}),
        (("train", "validation"), "validation", {"train"}),
        (("training", "testing"), "testing", {"train"}),
        (("test",), "test", set()),
    ],
)
def test_splits_are_found_by_the_names_of_folders(tmp_path, splits, test, others):
    found = data_set(f"x={pictures(tmp_path / 'x', splits, count=1)}", ("zero_shot",))
    assert found.test.name == f"x:{test}"
    assert set(found.others) == others
    for split in others:
        assert len(found.split(split)) == 2


def test_a_folder_without_splits_and_a_data_set_of_the_registry(tmp_path):
    plain = data_set(f"x={pictures(tmp_path, ('all',), count=3) / 'all'}", ("zero_shot",))
    assert (len(plain.test), set(plain.others), plain.mean_per_class) == (6, set(), False)
    pets = data_set(f"pets={pictures(tmp_path / 'any name', ('trainval', 'test'), count=2)}", ("zero_shot",))
    assert (len(pets.test), set(pets.others), pets.mean_per_class) == (4, {"train"}, True)
    assert pets.test.templates == ("a photo of a {c}, a type of pet.",)
    assert len(pets.split("train")) == 4


def test_imagenet_a_among_its_own_classes_or_all_of_imagenet(tmp_path):
    for wnid in ("n01498041", "n01531178"):  # 6, stingray, and 11, goldfinch, in ImageNet
        (tmp_path / wnid).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / wnid / "0.png")
    own = data_set(f"imagenet-a={tmp_path}", ("zero_shot",))
    assert (own.name, own.test.classnames, own.test[1].label) == ("imagenet-a", ("stingray", "goldfinch"), 1)
    whole = data_set(f"imagenet-a={tmp_path}", ("zero_shot",), all_classes=True)
    assert (whole.name, len(whole.test.classnames), whole.test[1].label) == ("imagenet-a@1000", 1000, 11)
    assert data_set(f"pets={tmp_path}", ("zero_shot",), all_classes=True).name == "pets"


def test_a_terminal_gets_a_bar_and_the_same_results(tmp_path, models):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    torch.manual_seed(0)
    text = {"text_width": 16, "text_depth": 1, "text_heads": 2}
    named = NamedModel("tiny", "runs/a", create_model("clip_vit_t16", **SMALL, **text))
    data = data_set(f"mine={pictures(tmp_path / 'x')}", ("zero_shot",))
    assert run_suite([named], [data], tmp_path / "results.jsonl", console) == []
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert "mine zero_shot" in plain
    assert "100%" in plain
    assert "runs/a  mine  zeroshot_classification:  acc1" in plain


def test_the_time_left_is_weighted_with_what_is_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    rate = progress.Rate()
    rate.start(0.0)
    assert rate.remaining(100.0) is None
    clock[0] = 6.0
    rate.at(30.0)
    assert rate.due()
    assert not rate.due()
    assert rate.remaining(100.0) == pytest.approx(70 * 6 / 30)
    clock[0] = 1000.0  # other work, which is not counted
    rate.start(60.0)  # and a step that was not needed after all
    clock[0] = 1002.0
    rate.at(70.0)
    assert rate.remaining(100.0) == pytest.approx(30 * 8 / 40)


def test_durations():
    assert [progress.duration(s) for s in (0.2, 40, 120, 3600, 12_000)] == [
        "1 s",
        "40 s",
        "2 min",
        "60 min",
        "3 h 20 min",
    ]


def test_a_log_is_told_the_time_left(monkeypatch):
    clock, screen = [0.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    torch.manual_seed(0)
    model = NamedModel("tiny", "runs/a", create_model("clip_vit_t16", **SMALL))
    data = DataSet("mine", lambda: None, ())
    texts = {"zero_shot": 400, "robustness": 0}
    job = Job(model, data, "", {}, {}, ("zero_shot", "robustness"), {"test": 800}, {"test": 1000}, 2, texts)
    passes = progress.SPECS["robustness"].passes
    prompts = 400 * plan.text_work(model.model) / plan.image_work(model.model)
    reporter = progress.Reporter(Console(file=screen, width=100))
    reporter.planned(Plan([job]))
    reporter.encoding(job, "test")
    reporter.encoded(job, "test", 200)  # from the cache
    clock[0] = 10.0
    reporter.encoded(job, "test", 300)
    left = 700 + prompts + 2 * passes
    assert screen.getvalue().splitlines()[-1] == (
        f"  300 of 1,000 images; about {progress.duration(left / 10)} left in all"
    )

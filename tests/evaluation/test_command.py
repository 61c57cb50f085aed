"""`diffclip eval` as a person runs it: what it says, skips, survives, and how it ends."""

import io
import re

import pytest
import torch
from dataset_files import jpeg, write
from pictures import pictures
from rich.console import Console

from diffclip import cli
from diffclip.evaluation import results
from diffclip.evaluation.datasets.named import by_name, data_set, papers
from diffclip.evaluation.run import named_model, progress
from diffclip.evaluation.run.plan import Job, JobList, NamedModel
from diffclip.evaluation.run.progress import run_suite
from diffclip.evaluation.run.suite import DataSet
from diffclip.evaluation.task import TASKS, get_task
from diffclip.models.clip import CLIP
from diffclip.models.weights.store import save
from small_models import small_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in ("clip", "diffclip"):
        save(small_model(kind), folder / kind)
    return [str(folder / "clip"), str(folder / "diffclip")]


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
    assert "over test images of this one pair" in " ".join(lines)  # two models are compared
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


def test_images_that_are_missing_are_counted_and_above_a_share_end_it_with_a_message(capsys, tmp_path, models):
    for number in range(10):
        write(tmp_path / "data" / f"{number}.jpg", jpeg())
    rows = [f"{number}.jpg,{'cat' if number % 2 else 'dog'}" for number in range(12)]
    write(tmp_path / "data" / "labels.csv", "\n".join(["filepath,label", *rows]).encode())
    arguments = (models[0], "--data", f"mine={tmp_path / 'data'}", "--out", tmp_path / "out", "--tasks")
    for tasks, option in ((("zero_shot",), ()), (("zero_shot", "noise"), ()), (("robustness",), ("--sample", "0"))):
        lines, message = run(capsys, *arguments, *tasks, *option)
        assert message.startswith("diffclip: 1 of a part of the images:\n  mine with "), tasks
        assert ": skipped 2 of 12 (2 " in message
        assert any(line.startswith("mine: skipped images: 2 of 12 (2 ") for line in lines)
    for result in results.read(tmp_path / "out" / "results.jsonl"):
        assert (result.n, result.n_expected, sum(result.skipped.values())) == (10, 12, 2)
    assert run(capsys, *arguments, "zero_shot", "--max-skipped", "0.2")[1] is None
    assert run(capsys, *arguments, "zero_shot", "--max-skipped", "2")[1].endswith("give a share from 0 to 1")


def test_without_tasks_data_get_what_they_can_serve_and_nothing_served_is_an_error(capsys, tmp_path, models):
    lines, message = run(capsys, models[0], "--data", "mine=scenes:test?length=12&size=16", "--out", tmp_path / "a")
    assert message is None
    assert any(line.startswith("  mine: zero_shot, retrieval, fine_grained, sugarcrepe, winoground;") for line in lines)
    data = (models[0], "--data", f"bare={pictures(tmp_path / 'bare')}")
    lines, message = run(capsys, *data, "--out", tmp_path / "b", "--tasks", "retrieval", "sugarcrepe")
    assert message.startswith("diffclip: 1 could not be done")
    assert "bare: it can serve none of the tasks that are asked of it: retrieval needs captions; sugar" in message
    assert not (tmp_path / "b" / "results.jsonl").exists()


def test_what_is_not_computed_in_float32_is_named_so(capsys, tmp_path, models):
    arguments = (models[1], "--data", f"mine={pictures(tmp_path / 'mine')}", "--out", tmp_path, "--tasks", "zero_shot")
    run(capsys, *arguments)
    lines, message = run(capsys, *arguments, "--dtype", "bfloat16")
    assert message is None
    assert lines[0] == "1 results to compute, 0 known already; 12 images to encode"  # not by float32's features
    found = results.read(tmp_path / "results.jsonl")
    assert [result.pretrained for result in found] == [str(models[1]), f"{models[1]} in bfloat16"]


def test_tf32_is_named_so_encodes_by_itself_and_ends_with_the_encoding(capsys, tmp_path, models, monkeypatch):
    """No GPU: this processor is said to have it; what PyTorch is told while a tower runs is looked at."""
    arguments = (models[1], "--data", f"mine={pictures(tmp_path / 'mine')}", "--out", tmp_path, "--tasks", "zero_shot")
    _, message = run(capsys, *arguments, "--dtype", "tf32")
    assert message.startswith("diffclip: --dtype tf32: no GPU here multiplies in TF32")
    monkeypatch.setattr(named_model, "has_tf32", lambda device: True)
    seen, tower = [], CLIP.tower

    def told():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    monkeypatch.setattr(CLIP, "tower", lambda model, pixels: (seen.append(told()), tower(model, pixels))[1])
    run(capsys, *arguments)
    assert set(seen) == {("highest", False)}  # PyTorch's own choice for convolutions would be TF32
    seen.clear()
    lines, message = run(capsys, *arguments, "--dtype", "tf32")
    assert message is None
    assert lines[0] == "1 results to compute, 0 known already; 12 images to encode"  # not by float32's features
    assert set(seen) == {("high", True)}
    assert told() == ("highest", True)
    found = results.read(tmp_path / "results.jsonl")
    assert [result.pretrained for result in found] == [str(models[1]), f"{models[1]} in tf32"]


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cuda", (8, 0), True), ("cuda", (7, 5), False), ("cpu", (8, 0), False)],
)
def test_tf32_is_of_gpus_from_ampere_on(device, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert named_model.has_tf32(torch.device(device)) is expected


def test_two_models_are_compared_by_name_on_what_was_asked_for(capsys, tmp_path, models):
    data = pictures(tmp_path / "mine")
    for tasks in (("zero_shot", "noise"), ("zero_shot",)):
        lines, _ = run(capsys, *models, "--data", f"mine={data}", "--tasks", *tasks, "--out", tmp_path / "out")
    head = next(line for line in lines if line.split()[:1] == ["task"])
    assert head.split()[1:3] == ["clip", "diffclip"]
    assert lines.index(f"clip: {models[0]}") < lines.index(head)
    assert not any("noise" in line for line in lines)


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
    monkeypatch.setattr("diffclip.evaluation.datasets.named.SCENES_TO_LEARN_FROM", 400)
    lines, message = run(
        capsys,
        models[1],
        *("--data", "scenes=scenes:test?length=60&size=32", "--out", tmp_path, "--sample", "4"),
        *("--tasks", *TASKS),
    )
    assert message is None
    assert not [line for line in lines if "cannot serve" in line]
    found = {result.task: result for result in results.read(tmp_path / "results.jsonl")}
    assert len(found) == len(TASKS)
    for result in found.values():
        kept = results.load_examples(tmp_path / "results.jsonl", result.key)
        scores = {name: value for name, value in result.metrics.items() if name not in results.NOT_SCORES}
        assert kept.metrics == pytest.approx(scores)
    assert found["few_shot"].metrics["std"] > 0
    assert found["linear_probe"].metrics["C"] > 0


def test_a_stopped_evaluation_says_how_to_go_on(capsys, tmp_path, models, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffclip.evaluation.features.context.image_features", interrupted)
    _, status = run(capsys, models[0], "--data", f"mine={pictures(tmp_path / 'x')}", "--out", tmp_path / "out")
    assert status == 130


def test_a_wrong_form_is_told_at_once(capsys, tmp_path, models):
    for name in ("mine", "pope"):
        _, message = run(capsys, models[0], "--data", name, "--out", tmp_path)
        assert message == (
            f"diffclip: --data {name}: expected NAME=PATH, such as scenes=scenes:test, or paper, or one of the data "
            f"sets known by name: {', '.join(by_name())}"
        )
    _, message = run(capsys, models[0], "--data", "mine=", "--out", tmp_path)
    assert message == "diffclip: --data mine=: expected NAME=PATH, such as cifar10=data/cifar10 or scenes=scenes:test"
    _, message = run(capsys, models[0], "--data", "a=b", "a=c", "--out", tmp_path)
    assert message == "diffclip: --data names a twice: results would replace each other, so give each its own name"
    _, message = run(capsys, "--data", "a=b", "--out", tmp_path)
    assert message.startswith("diffclip: no model to evaluate")


def test_all_of_the_paper_below_one_folder(capsys, tmp_path, models):
    pictures(tmp_path / "root" / "dtd", ("train", "val", "test"))
    folder = tmp_path / "root" / "mmvp_vlm"
    write(folder / "Questions.csv", "Question ID,Type,Statement\n1,Color,red\n2,Color,blue\n")
    for i in (1, 2):
        write(folder / "MLLM_VLM Images" / "Color" / f"{i}.jpg", jpeg(i))
    lines, message = run(capsys, models[0], "--data", "paper", "--root", tmp_path / "root", "--out", tmp_path / "out")
    found = {(result.dataset, result.task) for result in results.read(tmp_path / "out" / "results.jsonl")}
    assert found == {("dtd", "linear_probe"), ("mmvp_vlm", "fine_grained")}
    missing = len(papers()) - 2
    assert [line.split(":")[1].strip() for line in lines[:missing]] == [
        name for name in papers() if name not in ("dtd", "mmvp_vlm")
    ]
    # Few-shot needs five classes.
    assert message.startswith(f"diffclip: {missing + 1} could not be done, everything else is:")
    assert f"\n  caltech101: not in {tmp_path}/root (--root); get it with: hf download clip-benchmark/" in message
    assert "dtd few_shot" in message


def test_a_terminal_gets_a_bar_and_the_same_results(tmp_path, models):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    named = NamedModel("tiny", "runs/a", small_model("clip"))
    data = data_set(f"mine={pictures(tmp_path / 'x')}", ("zero_shot",))
    assert run_suite([named], [data], tmp_path / "results.jsonl", console) == []
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert "mine zero_shot" in plain
    assert "100%" in plain
    assert "runs/a  mine  zeroshot_classification:  acc1" in plain


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
    model = NamedModel("tiny", "runs/a", small_model("clip"))
    data = DataSet("mine", lambda: None, ())
    texts = {"zero_shot": 400, "robustness": 0}
    tasks = (get_task("zero_shot"), get_task("robustness"))
    job = Job(model, data, "", {}, {}, tasks, {"test": 800}, {"test": 1000}, 2, texts)
    passes = tasks[1].passes
    image, text = model.model.work()
    prompts = 400 * text / image
    reporter = progress.Reporter(Console(file=screen, width=100))
    reporter.on_plan(JobList([job]))
    reporter.on_split(job, "test")
    reporter.on_images(job, "test", 200)  # from the cache
    clock[0] = 10.0
    reporter.on_images(job, "test", 300)
    left = 700 + prompts + 2 * passes
    assert screen.getvalue().splitlines()[-1] == (
        f"  300 of 1,000 images; about {progress.duration(left / 10)} left in all"
    )

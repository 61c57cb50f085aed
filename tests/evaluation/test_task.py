"""The contract of a benchmark, and that a new one takes a file and a line."""

import subprocess
import sys
import types

import pytest
import torch
from rich.console import Console

from diffclip.data.scenes import SceneSource
from diffclip.evaluation import results, task
from diffclip.evaluation.features.context import Settings
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.run import suite
from diffclip.evaluation.run.progress import run_suite
from diffclip.evaluation.run.suite import DataSet, NamedModel
from diffclip.evaluation.task import TASKS, Metric, Task, get_task
from diffclip.models.clip import create_model
from small_models import PICTURES


def run_python(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def test_the_list_of_tasks_and_the_command_line_import_no_torch():
    assert run_python("import sys, diffclip.evaluation.task as t; print(len(t.TASKS), 'torch' in sys.modules)") == (
        f"{len(TASKS)} False"
    )
    assert run_python(
        "import sys, diffclip.evaluation as e; print(sorted(e.__all__)[0], 'torch' in sys.modules, "
        "e.suite.measure.__name__, e.few_shot.few_shot.__name__)"
    ) == ("few_shot False measure few_shot")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_its_readers_need(name):
    found = get_task(name)
    assert found.name == name
    assert found.title
    assert found.result
    assert set(found.settings) <= {*Settings.__dataclass_fields__, None}
    assert not found.passes or {"sample", "seed"} <= set(found.settings)
    assert set(found.splits) <= {*found.requires, "test", "val"}
    keys = [metric.key for metric in found.metrics]
    assert len(set(keys)) == len(keys)
    assert not found.headline or found.headline in keys
    assert [other for other in TASKS if get_task(other).result == found.result] == [name]


def test_settings_enter_fingerprints_as_they_always_did():
    """A result on disk counts as known only while these stay."""
    names = ("linear_probe", "few_shot", "robustness", "corruptions", "grounding", "noise", "zero_shot", "fine_grained")
    found = [Settings(seed=4).values_of(get_task(name).settings) for name in names]
    assert found == [("tower", None), ("tower", 4), *[(500, 4)] * 4, (), ()]
    assert Settings(repeats=3).values_of(get_task("few_shot").settings) == ("tower", 0, 3)


def test_titles():
    title = task.metric_title
    assert title("zeroshot_classification", "acc1") == "top-1 accuracy"
    assert title("zeroshot_retrieval", "image_retrieval_recall@5") == "image recall@5"
    assert title("fine_grained", "pair_accuracy/state_and_condition") == "state and condition"
    assert title("corruptions", "acc1/gaussian_noise") == "acc1/gaussian noise"
    assert title("robustness", "acc1/pgd10/eps_0.25") == "acc1/pgd10/eps 0.25"
    assert title("winoground", "group_score/object") == "group score, object"
    assert title("noise", "a1_entropy/layer_01/noisy") == "a1 entropy/layer 01/noisy"
    assert title("another", "image_retrieval_some_metric") == "image some metric"
    assert task.title_of_task("fine_grained") == "fine-grained pairs"
    assert task.title_of_task("of_another_program") == "of another program"


def test_what_is_compared_speaks_of_quality():
    yes = [
        ("zeroshot_classification", "acc5"), ("zeroshot_retrieval", "text_retrieval_recall@10"),
        ("linear_probe", "acc1"),
        ("fine_grained", "pair_accuracy"), ("fine_grained", "pair_accuracy/text"), ("corruptions", "relative_acc1"),
        ("corruptions", "mce"), ("grounding", "average_precision_by_occlusion"), ("winoground", "text_score/both"),
        ("sugarcrepe", "accuracy/swap_att"),
    ]  # fmt: skip
    no = [
        ("linear_probe", "C"), ("few_shot", "std"), ("corruptions", "acc1/fog"), ("corruptions", "acc1/fog/3"),
        ("robustness", "acc1/fgsm/eps_1"), ("noise", "a1_entropy_clean"), ("pope", "f1"),
        ("fine_grained", "pair_accuracy/a/b"),
    ]  # fmt: skip
    assert all(task.is_compared(*names) for names in yes)
    assert not any(task.is_compared(*names) for names in no)
    assert task.metric_of("corruptions", "mce").better == "down"
    assert task.metric_of("grounding", "energy_in_mask").better == "up"


def test_what_a_recipe_may_measure():
    found = task.during_training()
    assert set(found) == {"zero_shot", "retrieval"}
    assert found["zero_shot"] == ("acc1", "acc5", "mean_per_class_recall")


def brightness(context):
    """A toy: how many images are brighter than grey."""
    scores = torch.tensor([float(context.data.test[index].image.mean() > 60) for index in range(4)])
    context.on_sample(4)
    return PerExampleScores(torch.arange(4), {"bright": scores, "bright/top_half": scores / 2}, {"bright": 0.5})


@pytest.fixture
def toy(monkeypatch):
    """A task of one module and one line of the list."""
    module = types.ModuleType("toy_task")
    module.TASK = Task(
        name="brightness",
        title="bright images",
        result="brightness",
        needs="images",
        requires=("images",),
        settings=("sample",),
        passes=2,
        metrics=(Metric("bright", "brighter than grey"), Metric("bright/*", "bright, {}", unit="", better=None)),
        measure=brightness,
        headline="bright",
    )
    monkeypatch.setitem(sys.modules, "toy_task", module)
    monkeypatch.setitem(TASKS, "brightness", "toy_task")
    yield module.TASK
    get_task.cache_clear()


def test_a_new_task_takes_one_file_and_one_line(toy, tmp_path, capsys):
    torch.manual_seed(0)
    model = NamedModel("tiny", "runs/a", create_model("clip_vit_t16", **PICTURES))
    data = [DataSet("scenes", SceneSource("test", 32, 6), ("zero_shot", "brightness"))]
    path = tmp_path / "results.jsonl"
    assert run_suite([model], data, path, Console(width=200), Settings(sample=4)) == []
    lines = capsys.readouterr().out.splitlines()
    assert "  scenes: zero_shot, brightness; images: test 6" in lines  # the plan
    assert "scenes brightness with runs/a: 4 images, 2 times" in lines  # its cost
    assert any(line.startswith("runs/a  scenes  brightness:  bright ") for line in lines)
    found = {result.task: result for result in results.read(path)}
    assert set(found["brightness"].metrics) == {"bright", "bright/top_half"}
    again = suite.evaluate([model], data, path, settings=Settings(sample=4, seed=1))  # a setting that it does not have
    assert [outcome.fresh for outcome in again] == [False, False]
    again = suite.evaluate([model], data, path, settings=Settings(sample=3))
    assert [outcome.fresh for outcome in again] == [False, True]
    assert task.title_of_task("brightness") == "bright images"
    assert task.metric_title("brightness", "bright/top_half") == "bright, top half"
    assert task.is_compared("brightness", "bright")
    assert not task.is_compared("brightness", "bright/top_half")


def test_the_command_line_and_sweeps_offer_what_the_list_has():
    """In a new process, since choices are read when the command is imported."""
    program = (
        "from diffclip.evaluation.task import TASKS; TASKS['brightness'] = 'toy_task'; import sys\n"
        "from diffclip.commands.eval import TaskName\n"
        "print(TaskName.__args__[-1], 'torch' in sys.modules)\n"
        "from diffclip.reporting.design import TaskName\n"
        "print(TaskName.__args__[-1])"
    )
    assert run_python(program).split() == ["brightness", "False", "brightness"]

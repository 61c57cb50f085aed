"""Whole runs in several processes: they learn what one learns, stop together, restart by themselves, evaluate alike."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_trainer import recipe as small_recipe

import diffclip
from diffclip import __main__ as entry
from diffclip.config import to_toml
from diffclip.data.scenes import SceneSource
from diffclip.distributed import get_world
from diffclip.errors import Stopped, UserError
from diffclip.evaluation.features import encode as features
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.encode import image_features
from diffclip.evaluation.run import hooks
from diffclip.evaluation.run.distributed import encode_distributed
from diffclip.evaluation.run.plan import NamedModel
from diffclip.evaluation.run.suite import DataSet, Settings, measure
from diffclip.training import checkpoint, step
from diffclip.training.logs import WALL_CLOCK
from diffclip.training.parallel import full_tensor
from diffclip.training.setup import new_state, train
from diffclip.training.step import Schedule, TrainState
from processes import together


def recipe(**training):
    return small_recipe(ema=0.9, **training)


def scenes():
    return DataSet("scenes", SceneSource("test", size=16, length=300), ("zero_shot", "retrieval"))


def runs(folder):
    """Replicated to the end; in shards, stopped by a signal to the second process alone, and gone on with."""
    evaluators = {"scenes": hooks.evaluator(scenes())}
    train(recipe(), folder / "replicated", evaluators=evaluators)
    train_step = TrainState.step

    def interrupted(self, number, batch):
        if number == 4 and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, number, batch)

    step.TrainState.step = interrupted
    with pytest.raises(Stopped, match="stopped at step 5 of 16"):
        train(recipe(layout="fsdp"), folder / "shards", evaluators=evaluators)
    step.TrainState.step = train_step
    get_world().barrier()
    if get_world().is_main:
        assert checkpoint.read(checkpoint.found(folder / "shards")[-1])[0]["step"] == 5
    train(recipe(layout="fsdp"), folder / "shards", resume=True, evaluators=evaluators)


def cached(folder):
    """Features for `diffclip eval` of a data set of less than one part, and what each process did for them."""
    model = diffclip.load(str(folder / "replicated"))[0]
    cache, data = FeatureCache(folder / "features"), DataSet("scenes", scenes().test, ("zero_shot",))
    encoded, counts = features._encode_batch, []

    def counted(model, batch):
        counts.append(len(batch))
        return encoded(model, batch)

    features._encode_batch = counted
    named = NamedModel("small", "here", model)
    encode_distributed([named], [data], folder / "results.jsonl", Settings(), cache, get_world())
    (folder / f"encoded_{get_world().rank}.json").write_text(json.dumps(counts))

    class Broken(SceneSource):
        """Of which one process alone cannot read an image."""

        def __getitem__(self, index):
            if index == 40 and get_world().rank == 1:
                raise UserError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(UserError, match="the disk is gone"):
        list(features.encode(model, Broken("test", 16, 100), [range(100)], 32, 0, world=get_world()))
    features._encode_batch = encoded


def restored(folder):
    """What two processes wrote, in the shards of four."""
    one = new_state(recipe(layout="fsdp"), Schedule.of(recipe(), 64))
    assert checkpoint.restore(folder / "shards", one.model, one.optimizer, one.average)["step"] == 16
    found = checkpoint.state_tensors(one.model, one.optimizer, one.average)
    written = checkpoint.read(checkpoint.found(folder / "shards")[-1])[1]
    assert {group: named.keys() for group, named in found.items()} == {g: n.keys() for g, n in written.items()}
    for group, named in found.items():
        for name, tensor in named.items():
            assert torch.equal(full_tensor(tensor), written[group][name]), name
    name = "exp_avg.visual.blocks.0.mlp.fc1.weight"
    assert 4 * found["optimizer"][name].to_local().numel() == written["optimizer"][name].numel()


def in_two(folder):
    runs(folder)
    cached(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    together(2, in_two, folder)
    together(4, restored, folder)
    return folder


def lines(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in WALL_CLOCK} for record in records]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(recipe(), tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("kind", ["replicated", "shards"])
def test_a_run_is_that_of_one_process(folder, alone, kind):
    together = lines(folder / kind)
    assert len(together) == len(lines(alone))
    for found, expected in zip(together, lines(alone), strict=True):
        assert found["step"] == expected["step"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert found["lambda_visual"] == pytest.approx(expected["lambda_visual"], abs=1e-4)


@pytest.mark.parametrize("kind", ["replicated", "shards"])
def test_evaluation_while_it_trains_has_the_numbers_of_one_process(folder, kind):
    model = diffclip.load(str(folder / kind))[0]
    measured, _ = measure(model, scenes())
    last = lines(folder / kind)[-1]
    for examples in measured.values():
        for name, value in examples.metrics.items():
            assert last[f"scenes/{name}"] == value


def test_shards_are_gone_on_with_alone(folder, alone, tmp_path):
    """Two processes wrote them, one reads them."""
    one = new_state(recipe(), Schedule.of(recipe(), 64))
    state = checkpoint.restore(folder / "shards", one.model, one.optimizer, one.average)
    assert state["step"] == 16
    final = load_file(folder / "shards" / "model.safetensors")
    for name, tensor in one.average.tensors.items():
        assert torch.equal(tensor, final[name])


def test_small_data_are_shared_out_and_the_features_are_those_of_one_process_to_the_bit(folder, tmp_path):
    assert [json.loads((folder / f"encoded_{rank}.json").read_text()) for rank in range(2)] == [
        [32] * 5,
        [32] * 4 + [12],
    ]
    model, source = diffclip.load(str(folder / "replicated"))[0], scenes().test
    alone = image_features(model, source, cache=FeatureCache(tmp_path))
    (part,) = tmp_path.glob("*/part-*")
    with safe_open(part, "pt") as ours, safe_open(folder / "features" / part.relative_to(tmp_path), "pt") as theirs:
        assert theirs.metadata() == ours.metadata()  # with a digest of all tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_encode_batch", lambda *_: pytest.fail("encoded an image"))
        found = image_features(model, source, cache=FeatureCache(folder / "features"))
    assert torch.equal(found.features, alone.features)
    assert torch.equal(found.labels, alone.labels)


def test_torchrun_restarts_what_broke_and_ends_in_the_same_bits(folder, tmp_path):
    """The one that breaks takes the other down with its traceback; with --max-restarts both come back."""
    (tmp_path / "recipe.toml").write_text(to_toml(recipe()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(Path(__file__).with_name("failing.py"))]
    command += ["train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MARKER": str(tmp_path / "marker")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "marker").exists()
    assert "Traceback" in ended.stderr
    assert "RuntimeError: the second process broke" in ended.stderr
    assert ended.stderr.count("run step 16/16") == 1
    assert ended.stdout.count("The model is in") == 1
    uninterrupted = load_file(folder / "replicated" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(tensor, uninterrupted[name]), name
    for found, expected in zip(lines(tmp_path / "run"), lines(folder / "replicated"), strict=True):
        assert found == {key: value for key, value in expected.items() if not key.startswith("scenes/")}


@pytest.mark.parametrize(("rank", "said"), [(0, "diffclip: no such"), (3, "diffclip: no such (in process 3)")])
def test_the_first_process_speaks_for_all(rank, said, monkeypatch):
    waited = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(sys, "argv", ["diffclip", "train", "x.toml"])
    monkeypatch.setattr(entry, "main", lambda: sys.exit("diffclip: no such"))
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        entry._member(rank)
    assert ended.value.code == said
    assert waited == ([] if rank == 0 else [entry.PATIENCE])


def test_other_commands_refuse_to_run_in_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["diffclip", "quickstart"])
    with pytest.raises(SystemExit) as ended:
        entry._member(0)
    assert ended.value.code == "diffclip: quickstart runs in one process: start it without torchrun"

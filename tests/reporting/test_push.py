"""push: the card says what the run and the results say, and the hub's stand-in gets the files, or nothing."""

import json
import os

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi, constants
from made_results import put, put_examples

import diffclip
from diffclip import cli
from diffclip.evaluation.stats.bootstrap import mean_interval
from diffclip.reporting.card import public
from hub_stand_in import hub
from small_models import small_model

RIGHT = [1.0] * 30 + [0.0] * 10


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diffclip.save(small_model("diffclip"), "run", step=7)
    (tmp_path / "run/recipe.toml").write_text(
        'seed = 3\n[data.train]\npath = "/home/somebody/cc12m/{00000..01242}.tar"\n[model]\nstart = "/secret/clip"\n'
    )
    put_examples(tmp_path / "eval/results.jsonl", "pets", "diffclip", "run", "zeroshot_classification", RIGHT)
    put(tmp_path / "eval/results.jsonl", "birds*", "diffclip", "run", "zeroshot_classification", acc1=0.5)
    put(tmp_path / "eval/results.jsonl", "pets", "clip", "other", "zeroshot_classification", acc1=0.125)
    return tmp_path / "run"


@pytest.fixture
def stand_in(monkeypatch):
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=server.address))
        yield server


def push(*options):
    cli.main(["push", "run", "me/pets", "--license", "mit", *options])


def test_a_dry_run_shows_all_and_asks_nothing(run, monkeypatch, capsys, caplog):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    push("--results", "eval", "--dry-run")
    assert "older" not in caplog.text
    said = capsys.readouterr().out
    _, head, text = said.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert (metadata["license"], metadata["library_name"]) == ("mit", "diffclip")
    (birds, pets) = metadata["model-index"][0]["results"]
    assert (birds["dataset"]["name"], birds["metrics"][0]["value"]) == ("birds*", 0.5)
    assert (pets["dataset"]["name"], pets["metrics"][0]["value"]) == ("pets", 0.75)
    interval = mean_interval(np.array(RIGHT))
    assert f"75.0 % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" in text
    assert "| birds\\* |" in text
    assert "50.0 %, no interval" in text
    assert "12.5" not in text  # another model's
    for words in ('diffclip.load("hf:me/pets")', "seed = 3", "cc12m/{00000..01242}.tar", "model.safetensors: "):
        assert words in text
    for secret in ("somebody", "/secret", str(run.parent)):
        assert secret not in said
    assert "Nothing was sent" in text
    os.utime("eval/results.jsonl", (1, 1))
    push("--results", "eval", "--dry-run")
    assert "results.jsonl is older than run/model.safetensors: are its results of these weights?" in caplog.text


def test_the_hub_gets_weights_configuration_and_card(run, stand_in, capsys):
    push("--results", "eval", "--private")
    assert f"Pushed: {stand_in.address}/me/pets" in capsys.readouterr().out
    files = stand_in.repositories["me/pets"]
    assert files.keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert stand_in.private == {"me/pets"}
    assert (len(files["model.safetensors"]), len(stand_in.commits)) == ((run / "model.safetensors").stat().st_size, 1)
    assert json.loads(files["config.json"])["model"]["vision_attention"] == "differential"
    with pytest.raises(SystemExit, match=r"me/pets on the hub holds README\.md, .* give --update"):
        push()
    push("--update", "--data", "a hundred drawings")
    assert b"a hundred drawings" in stand_in.repositories["me/pets"]["README.md"]
    assert b"None were given." in stand_in.repositories["me/pets"]["README.md"]
    for name, content in files.items():
        (run.parent / "fetched").mkdir(exist_ok=True)
        (run.parent / "fetched" / name).write_bytes(content)
    assert diffclip.load("fetched")[0].config == diffclip.load("run")[0].config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--license", "gpl-42"], 'does not take me/pets: Invalid metadata in README.md. - "license" must be one of'),
        (["--license", "My Licence"], "--license My Licence: give the hub's identifier"),
        (["--license", "mit", "--results", "other"], "no result is of run, but of elsewhere"),
    ],
)
def test_what_is_refused_says_so_in_one_line(options, said, run, stand_in):
    put(run.parent / "other/results.jsonl", "pets", "clip", "elsewhere", "zeroshot_classification", acc1=0.5)
    with pytest.raises(SystemExit) as caught:
        cli.main(["push", "run", "me/pets", *options])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stand_in.commits == []


def test_no_token_no_hub_no_data_no_name(run, stand_in, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match=r"does not take me/pets: .*401"):
        push()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(SystemExit, match=r"http://127\.0\.0\.1:9 does not take me/pets: "):
        push()
    with pytest.raises(SystemExit, match="a/b/c is no name of a model on the hub: expected OWNER/NAME"):
        cli.main(["push", "run", "a/b/c", "--license", "mit"])
    (run / "recipe.toml").unlink()
    with pytest.raises(SystemExit, match='no recipe beside run says what it was trained on: give --data "WORDS"'):
        push("--dry-run")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("scenes:train?size=64", "scenes:train?size=64"),
        ("~/data/cc3m?part=train", "cc3m?part=train"),
        ("pipe:curl -H 'Authorization: x' https://a/b.tar", "pipe:…"),
        ("https://me:secret@host/a/{0..9}.tar?key=secret", "https://host/a/{0..9}.tar"),
        ("../up/shards/*.tar", "shards/*.tar"),
        ("data/pets", "data/pets"),
    ],
)
def test_a_card_keeps_what_is_public_of_a_path(path, shown):
    assert public(path) == shown

import json

import pytest
from made_results import make_run, put

from diffclip.errors import UserError
from diffclip.reporting.collect import collect
from diffclip.reporting.families import _size, find_groups, kind_of
from diffclip.reporting.page import contents


def found(tmp_path, *models, labels=()):
    for model, pretrained in models:
        put(tmp_path / "results.jsonl", "cifar10", model, pretrained, "linear_probe", acc1=0.5)
    return find_groups(collect([tmp_path]), labels)


def shape(groups):
    return {
        one.name: {family.label: [member.seed for member in family.members] for family in one.families}
        for one in groups
    }


def test_kinds_by_name():
    assert [kind_of(name) for name in ("clip_vit_b16", "diffclip_vit_b16", "diffclip_vit_b16_dynamic")] == [
        "CLIP", "DiffCLIP", "DiffCLIP*",
    ]  # fmt: skip
    assert [kind_of(name) for name in ("diffclip_vit_b16_vision", "diffclip_vit_s16_text", "ViT-B-16")] == [
        "DiffCLIP†", "DiffCLIP text", "CLIP",
    ]  # fmt: skip


def test_pretrainings_are_apart_and_clip_comes_first(tmp_path):
    groups = found(
        tmp_path,
        ("diffclip_vit_b16_dynamic", "hub/x_cc12m"),
        ("diffclip_vit_b16", "hammh0a/DiffCLIP_ViTB16_CC12M"),
        ("clip_vit_b16", "ViTB16_CC12M"),
        ("clip_vit_b16", "ViTB16_CC3M"),
    )
    assert shape(groups) == {
        "CC3M": {"CLIP": [None]},
        "CC12M": {"CLIP": [None], "DiffCLIP": [None], "DiffCLIP*": [None]},
    }


def test_seeds_are_one_row_by_recipe_or_by_name(tmp_path):
    one = make_run(tmp_path / "alpha", seed=3, preset="clip_vit_quickstart")
    two = make_run(tmp_path / "beta", seed=1, preset="clip_vit_quickstart")
    groups = found(
        tmp_path,
        ("clip_vit_quickstart", str(one)),
        ("clip_vit_quickstart", str(two)),
        ("diffclip_vit_quickstart", "runs/scenes/d-seed1"),
        ("diffclip_vit_quickstart", "runs/scenes/d-seed12"),
    )
    assert shape(groups) == {"scenes": {"CLIP": [1, 3], "DiffCLIP": [1, 12]}}


def test_runs_of_one_seed_are_not_mixed(tmp_path):
    groups = found(
        tmp_path,
        ("diffclip_vit_b16", "runs/cc3m/half-seed0"),
        ("diffclip_vit_b16", "runs/cc3m/half-seed1"),
        ("diffclip_vit_b16", "runs/cc3m/full-seed0"),
        ("clip_vit_b16", "runs/cc3m/a"),
        ("clip_vit_b16", "runs/cc3m/b"),
    )
    labels = shape(groups)["CC3M"]
    assert list(labels.values()) == [[None], [None], [0, 1], [0]]
    assert list(labels)[:2] == ["CLIP (a)", "CLIP (b)"]
    assert list(labels)[2:] == ["DiffCLIP (half)", "DiffCLIP (full)"]


def test_sizes_are_compared_apart(tmp_path):
    groups = found(tmp_path, ("clip_vit_b16", "x/cc3m"), ("clip_vit_s16", "y/cc3m"), ("diffclip_vit_s16", "z/cc3m"))
    assert shape(groups) == {"CC3M ViT-b16": {"CLIP": [None]}, "CC3M ViT-s16": {"CLIP": [None], "DiffCLIP": [None]}}


def test_own_labels(tmp_path):
    models = (("clip_vit_b16", "x/cc3m"), ("diffclip_vit_b16", "y/cc3m"))
    groups = found(tmp_path, *models, labels=[("Ours", "diff*"), ("Base", "x/*")])
    assert shape(groups) == {"CC3M": {"Base": [None], "Ours": [None]}}
    assert groups[0].baseline.label == "Base"
    with pytest.raises(UserError, match=r"--label A=nothing matches no model; there are clip_vit_b16, diffclip"):
        find_groups(collect([tmp_path]), [("A", "nothing")])


def test_the_config_of_a_run_says_more_than_a_name(tmp_path):
    make_run(tmp_path / "r", seed=0, preset="diffclip_vit_quickstart_dynamic")
    groups = found(tmp_path, ("diffclip_128x4_patch4", str(tmp_path / "r")))
    assert shape(groups) == {"scenes": {"DiffCLIP*": [0]}}


def test_other_kinds_of_attention_are_told_by_name_and_by_config(tmp_path):
    assert kind_of("gated_vit_b16") == "gated CLIP"
    assert kind_of("siglipmodel") == "CLIP"
    assert kind_of("siglipmodel_differential") == "DiffCLIP"
    assert kind_of("blipmodel_no_second_map") == "CLIP, no second map"
    groups = {"siglip": "transformers' siglip", "clip": "transformers' clip"}
    for family, attention, expected in (
        ("siglip", {"attention": "differential"}, "DiffCLIP"),
        ("siglip", {"attention": "differential_v2", "attention_towers": "text"}, "DiffCLIP v2"),
        ("clip", {"attention": "differential", "attention_towers": "vision"}, "DiffCLIP†"),
    ):
        folder = tmp_path / expected
        run = make_run(folder / "r", seed=0, preset="clip_vit_quickstart")
        (run / "config.json").write_text(json.dumps({"library": "diffclip", "model": attention}))
        (group,) = found(folder, (f"{family}model_differential", str(run)))
        assert [one.label for one in group.families] == [expected]
        assert _size(group.families[0].members[0]) == groups[family]


def test_a_run_that_has_no_results_yet_joins_its_family(tmp_path):
    done = make_run(tmp_path / "a-seed0", seed=0, preset="clip_vit_quickstart")
    make_run(tmp_path / "a-seed1", seed=1, preset="clip_vit_quickstart")
    for run in (done, tmp_path / "a-seed1"):
        with (run / "recipe.toml").open("a") as file:
            file.write("[model.overrides]\npatch_size = 4\n")
    # Results name a config that is no preset's by its numbers.
    assert shape(found(tmp_path, ("clip_128x4_patch4", str(done)))) == {"scenes": {"CLIP": [0, 1]}}


def test_an_unfinished_run_is_what_its_recipe_makes_of_the_preset(tmp_path):
    run = make_run(tmp_path / "a-seed0", seed=0, preset="diffclip_vit_quickstart")
    (run / "config.json").unlink()
    with (run / "recipe.toml").open("a") as file:
        file.write('[model.overrides]\nvision_attention = "standard"\ntext_attention = "standard"\n')
    assert shape(find_groups(collect([tmp_path]))) == {"scenes": {"CLIP": [0]}}


def test_captions_speak_of_bands_only_where_there_are_several_seeds(tmp_path):
    make_run(tmp_path / "a-seed0", seed=0, preset="clip_vit_quickstart")
    (one,) = find_groups(collect([tmp_path]))
    assert contents._bands(one) == ""
    make_run(tmp_path / "a-seed1", seed=1, preset="clip_vit_quickstart")
    (two,) = find_groups(collect([tmp_path]))
    assert contents._bands(two) == " Bands: one sd over seeds."

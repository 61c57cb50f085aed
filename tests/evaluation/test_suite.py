"""Features and the suite, on small image sources and tiny models."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from diffclip.data.images import BadImage
from diffclip.data.sources import Example
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.datasets.dataset import LOOKED_AT, offers
from diffclip.evaluation.datasets.pairs import FilePair, PairImages
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.encode import image_features, text_features
from diffclip.evaluation.features.pixels import sample_indices
from diffclip.evaluation.run import suite
from diffclip.evaluation.run.hooks import evaluator
from diffclip.evaluation.run.suite import DataSet, NamedModel, Settings
from diffclip.evaluation.task import TASKS, missing
from diffclip.evaluation.tasks import few_shot, linear_probe
from small_models import small_model as tiny

NAMES = ("red", "green", "blue", "white", "black", "grey")


class Squares:
    """Noisy images with a label and one to three captions; some cannot be read. Counts its readings."""

    name, classnames, templates = "squares", NAMES, ("a {c} square", "{c}")

    def __init__(self, count=20, bad=(), captions=True):
        self.count, self.bad, self.captions, self.read = count, bad, captions, Counter()

    def __len__(self):
        return self.count

    def image(self, index):
        return np.random.default_rng(index).integers(0, 255, (20, 16 + index % 9, 3), dtype=np.uint8)

    def __getitem__(self, index):
        self.read[index] += 1
        if index in self.bad:
            raise BadImage("truncated")
        captions = (
            tuple(f"{NAMES[index % 6]} number {index} {n}" for n in range(1 + index % 3)) if self.captions else ()
        )
        return Example(self.image(index), captions, index % 6)


class Pairs:
    name = "pairs"

    def __len__(self):
        return 6

    def __getitem__(self, index):
        images = []
        for i in range(2):
            file = io.BytesIO()
            Image.fromarray(Squares().image(2 * index + i)).save(file, "PNG")
            images.append(file.getvalue())
        return FilePair(("Color", "Count")[index % 2], tuple(images), (f"{index} one", f"{index} other"))


@pytest.mark.parametrize("workers", [0, 2])
def test_image_features_are_those_of_one_image_at_a_time(workers):
    model, source = tiny().train(), Squares(bad=(3, 11))
    progress = []
    found = image_features(model, source, batch_size=7, num_workers=workers, on_progress=progress.append)
    assert model.training
    assert progress == [0, 7, 14, 20]
    assert found.skipped == {"truncated": 2}
    assert found.indices.tolist() == [i for i in range(20) if i not in (3, 11)]
    assert found.labels.tolist() == [i % 6 for i in found.indices.tolist()]
    assert found.captions[1] == ("green number 1 0", "green number 1 1")
    assert found.features.dtype == torch.float32
    model.eval()
    for row, index in enumerate(found.indices.tolist()):
        pixels = EvalTransform(16)(source.image(index))[None]
        with torch.no_grad():
            feature = model.encode_image(normalise(pixels, model.config.image_mean, model.config.image_std))[0]
        torch.testing.assert_close(found.features[row], feature / feature.norm(), rtol=1e-4, atol=1e-5)


def test_the_config_decides_how_images_are_resized():
    source = Squares()
    squashed = image_features(tiny(resize="squash"), source).features
    assert not torch.allclose(squashed, image_features(tiny(), source).features, atol=1e-3)


def test_text_features_keep_the_order_and_encode_each_text_once(monkeypatch):
    model, tokenizer = tiny(), get_tokenizer()
    encode, rows = model.encode_text, []
    monkeypatch.setattr(model, "encode_text", lambda t, normalize=False: rows.append(len(t)) or encode(t, normalize))
    texts = ["a red square", "x", "a much longer text about a red square", "x", "blue", "a red square"]
    found = text_features(model, tokenizer, texts, batch_size=2)
    assert rows == [2, 2]
    assert torch.equal(found[1], found[3])
    assert torch.equal(found[0], found[5])
    for row, text in zip(found, texts, strict=True):
        with torch.no_grad():
            feature = model.encode_text(tokenizer([text]))[0]
        torch.testing.assert_close(row, feature / feature.norm(), rtol=1e-4, atol=1e-5)


def test_texts_of_as_many_tokens_share_a_batch(monkeypatch):
    model, lengths = tiny(), []
    read = model.text.token_features
    monkeypatch.setattr(model.text, "token_features", lambda tokens: lengths.append(tokens.shape[1]) or read(tokens))
    texts = ["a b c d", "photographs photographs", "! ! ! !", "encyclopedia watercolours"]
    text_features(model, get_tokenizer(), texts, batch_size=2)
    assert lengths == [5, 6]


def test_a_broken_model_and_unreadable_data_are_told():
    with pytest.raises(UserError, match=r"squares: no image could be read: 20 truncated"):
        image_features(tiny(), Squares(bad=range(20)))
    model = tiny()
    with torch.no_grad():
        model.image_projection.fill_(torch.nan)
    with pytest.raises(UserError, match="20 of 20 image features of squares are not finite"):
        image_features(model, Squares())


def by_hand(model, source, indices):
    """Every metric with plain loops, from features one at a time, in float64."""
    model = model.double().eval()
    tokenizer = get_tokenizer()

    def unit(vector):
        return vector / np.linalg.norm(vector)

    def text(words):
        return unit(model.encode_text(tokenizer([words]))[0].numpy())

    with torch.no_grad():
        pixels = [
            normalise(EvalTransform(16)(source.image(i))[None], model.config.image_mean, model.config.image_std)
            for i in indices
        ]
        images = [unit(model.encode_image(p.double())[0].numpy()) for p in pixels]
        classes = [unit(sum(text(t.format(c=name)) for t in source.templates)) for name in NAMES]
        captions = [(row, text(c)) for row, i in enumerate(indices) for c in source[i].captions]
    ranked = [sorted(range(6), key=lambda c: -(image @ classes[c])) for image in images]
    hits = {k: [i % 6 in order[:k] for i, order in zip(indices, ranked, strict=True)] for k in (1, 5)}
    recalls = [np.mean([h for i, h in zip(indices, hits[1], strict=True) if i % 6 == c]) for c in range(6)]
    found = {"acc1": np.mean(hits[1]), "acc5": np.mean(hits[5]), "mean_per_class_recall": np.mean(recalls)}
    for k in (1, 5, 10):
        by_text = [row in sorted(range(len(images)), key=lambda r: -(images[r] @ t))[:k] for row, t in captions]
        by_image = []
        for row, image in enumerate(images):
            order = sorted(captions, key=lambda caption: -(caption[1] @ image))
            by_image.append(row in [owner for owner, _ in order[:k]])
        found[f"image_retrieval_recall@{k}"] = np.mean(by_text)
        found[f"text_retrieval_recall@{k}"] = np.mean(by_image)
    return found


def run(models, data, path, **options):
    return list(suite.evaluate(models, data, path, settings=Settings(batch_size=8), **options))


def test_every_number_by_hand_and_one_line_a_result(tmp_path):
    model, source, path = tiny(seed=3), Squares(30, bad=(4, 7)), tmp_path / "results.jsonl"
    data = [
        DataSet("my squares", source, ("zero_shot", "retrieval")),
        DataSet("my pairs", PairImages(Pairs()), ("fine_grained",)),
    ]
    outcomes = run([NamedModel("tiny", "runs/a", model)], data, path)
    assert [o.fresh for o in outcomes] == [True] * 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    counts = [(line["n"], line["n_expected"], line["skipped"]) for line in lines]
    assert counts == [(28, 30, {"truncated": 2})] * 2 + [(12, 12, {})]
    again = run([NamedModel("tiny", "runs/a", model)], data, path)
    assert [o.result.images["test"].share_skipped for o in again] == pytest.approx([1 / 15, 1 / 15, 0])
    assert [(line["dataset"], line["task"], line["model"], line["pretrained"], line["language"]) for line in lines] == [
        ("my squares", "zeroshot_classification", "tiny", "runs/a", "en"),
        ("my squares", "zeroshot_retrieval", "tiny", "runs/a", "en"),
        ("my pairs", "fine_grained", "tiny", "runs/a", "en"),
    ]
    expected = by_hand(tiny(seed=3), source, [i for i in range(30) if i not in (4, 7)])
    assert lines[0]["metrics"] | lines[1]["metrics"] == pytest.approx(expected)
    assert set(lines[2]["metrics"]) == {"pair_accuracy", "pair_accuracy/color", "pair_accuracy/count"}
    for outcome in outcomes:  # what is kept of each example adds up to the metrics
        kept = results.load_examples(path, outcome.result.key)
        assert kept.metrics == pytest.approx(dict(outcome.result.metrics))
        assert set(kept.chance) == set(kept.values)


def test_images_are_read_once_for_all_tasks_and_not_at_all_when_nothing_changed(tmp_path):
    path, source = tmp_path / "results.jsonl", Squares(2 * LOOKED_AT)
    data = [DataSet("squares", source, ("zero_shot", "retrieval"))]
    first = run([NamedModel("tiny", "runs/a", tiny())], data, path)
    assert max(source.read[i] for i in range(LOOKED_AT, len(source))) == 1
    source.read.clear()
    again = run([NamedModel("tiny", "runs/a", tiny())], data, path)
    assert [o.fresh for o in again] == [False, False]
    assert [o.result for o in again] == [o.result for o in first]
    assert set(source.read) <= set(range(LOOKED_AT))  # the first ones tell what the examples have
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("change", ["weights", "data", "force"])
def test_a_result_is_redone_when_it_is_out_of_date(tmp_path, change):
    path = tmp_path / "results.jsonl"
    run([NamedModel("tiny", "runs/a", tiny())], [DataSet("squares", Squares(), ("zero_shot",))], path)
    model = tiny(seed=1 if change == "weights" else 0)
    source = Squares(24 if change == "data" else 20)
    (outcome,) = run(
        [NamedModel("tiny", "runs/a", model)],
        [DataSet("squares", source, ("zero_shot",))],
        path,
        force=change == "force",
    )
    assert outcome.fresh
    assert results.read(path) == [outcome.result]


class Plans(suite.ValidationHook):
    """Keeps the plan and what is encoded."""

    def __init__(self):
        self.encoding_of = []

    def on_plan(self, plan):
        self.plan = plan

    def on_split(self, job, split):
        self.encoding_of.append((job.model.pretrained, job.data.name, split))


def missing_file():
    raise UserError("there is no such file")


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path, caplog):
    path, hook = tmp_path / "results.jsonl", Plans()
    broken = tiny(seed=1)
    with torch.no_grad():
        broken.image_projection.fill_(torch.nan)
    data = [
        DataSet("absent", missing_file, ("zero_shot",)),
        DataSet("unreadable", Squares(bad=range(20)), ("zero_shot",)),
        DataSet("good", Squares(captions=False), ("zero_shot", "retrieval")),
    ]
    models = [NamedModel("tiny", "runs/a", tiny()), NamedModel("tiny", "runs/broken", broken)]
    found = run(models, data, path, hook=hook)
    failures = [str(one) for one in found if isinstance(one, suite.Failure)]
    assert failures == [
        "absent: there is no such file",
        "unreadable zero_shot with runs/a: data set squares: no image could be read: 20 truncated",
        "unreadable zero_shot with runs/broken: data set squares: no image could be read: 20 truncated",
        "good zero_shot with runs/broken: 20 of 20 image features of squares are not finite: "
        "the model's weights are broken",
    ]
    assert [(r.dataset, r.pretrained) for r in results.read(path)] == [("good", "runs/a")]
    assert hook.plan.unable == {"good": {"retrieval": "captions"}}
    assert not caplog.records  # only what is unexpected is logged with a traceback


def test_an_unexpected_error_is_logged_with_its_traceback_and_the_rest_goes_on(tmp_path, caplog):
    class Strange(Squares):
        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError("a bug\nin two lines")
            return super().__getitem__(index)

    data = [DataSet("strange", Strange(), ("zero_shot",)), DataSet("good", Squares(), ("zero_shot",))]
    failure, outcome = run([NamedModel("tiny", "runs/a", tiny())], data, tmp_path / "results.jsonl")
    assert failure.reason == "RuntimeError: a bug in two lines"
    assert "Traceback" in caplog.text
    assert outcome.result.dataset == "good"


@pytest.mark.parametrize("task", ["zero_shot", "corruptions"])
def test_what_is_wrong_with_a_data_set_is_one_line_from_workers_too(tmp_path, task):
    class Damaged(Squares):
        def __getitem__(self, index):
            if index == 3:
                raise UserError("part 3 is damaged: download it again")
            return super().__getitem__(index)

    settings = Settings(num_workers=1)
    data = [DataSet("squares", Damaged(), (task,))]
    (failure,) = suite.evaluate([NamedModel("tiny", "a", tiny())], data, tmp_path / "r.jsonl", settings=settings)
    assert failure.reason == "part 3 is damaged: download it again"


def test_measure_refuses_what_the_data_cannot_serve():
    with pytest.raises(UserError, match=r"squares cannot serve retrieval: it needs captions; it can serve zero_shot"):
        suite.measure(tiny(), DataSet("squares", Squares(captions=False), ("retrieval",)))


def test_which_tasks_a_data_set_can_serve():
    def served(source, **others):
        return set(TASKS) - set(missing(TASKS, offers(DataSet("any", source, (), others))))

    labels = {"zero_shot", "robustness", "corruptions", "noise"}
    assert served(Squares()) == labels | {"retrieval"}
    assert served(Squares(captions=False, bad=(0, 1))) == labels
    assert served(Squares(), train=missing_file) == labels | {"retrieval", "linear_probe", "few_shot"}
    assert served(PairImages(Pairs())) == {"fine_grained"}
    assert served(PairImages(Pairs(), "swaps")) == {"winoground"}
    assert offers(DataSet("any", Squares(bad=range(20)), ())) == set()


def test_a_crash_between_line_and_examples_leaves_no_stale_result(tmp_path, monkeypatch):
    path, data = tmp_path / "results.jsonl", [DataSet("squares", Squares(), ("zero_shot",))]
    run([NamedModel("tiny", "runs/a", tiny())], data, path)

    class Crash(KeyboardInterrupt):
        pass

    def crash(*arguments):
        raise Crash

    retrained = [NamedModel("tiny", "runs/a", tiny(seed=1))]
    for step in ("append", "save_examples"):
        with monkeypatch.context() as patch:
            patch.setattr(results, step, crash)
            with pytest.raises(Crash):
                run(retrained, data, path)
    assert [outcome.fresh for outcome in run(retrained, data, path)] == [True]


def test_four_tasks_cost_one_pass_over_each_split(tmp_path):
    test, train = Squares(60), Squares(90)
    data = DataSet("squares", test, ("zero_shot", "retrieval", "linear_probe", "few_shot"), {"train": lambda: train})
    hook = Plans()
    cache = FeatureCache(tmp_path / "cache")
    found = run([NamedModel("tiny", "runs/a", tiny())], [data], tmp_path / "results.jsonl", hook=hook)
    assert len(found) == 4
    assert hook.encoding_of == [("runs/a", "squares", "test"), ("runs/a", "squares", "train")]
    assert max(test.read[i] for i in range(LOOKED_AT, 60)) == max(train.read[i] for i in range(90)) == 1
    for force in (False, True):  # the second time from disk
        cached = run([NamedModel("tiny", "runs/a", tiny())], [data], tmp_path / "c.jsonl", cache=cache, force=force)
        assert [o.result.metrics for o in cached] == [o.result.metrics for o in found]


@pytest.mark.parametrize("kind", ["tower", "joint"])
@pytest.mark.parametrize("with_val", [True, False])
def test_what_is_learned_is_learned_from_the_asked_for_features_and_splits(tmp_path, kind, with_val):
    splits = {"train": Squares(90), "val": Squares(40, bad=(3,))}
    openers = {name: (lambda one=one: one) for name, one in splits.items() if name == "train" or with_val}
    data = DataSet("squares", Squares(50), ("linear_probe", "few_shot"), openers, mean_per_class=True)
    settings = Settings(features=kind, seed=3)
    probe, shots = suite.evaluate(
        [NamedModel("tiny", "runs/a", tiny())], [data], tmp_path / "results.jsonl", settings=settings
    )
    model, x, y = tiny(), {}, {}
    for name, source in {**splits, "test": Squares(50)}.items():
        images = image_features(model, source)
        x[name], y[name] = images.tower if kind == "tower" else images.features, images.labels
    val = (x["val"], y["val"]) if with_val else (None, None)
    expected = linear_probe.linear_probe(x["train"], y["train"], *val, x["test"], y["test"], mean_per_class=True)
    assert probe.result.metrics == pytest.approx(expected)
    expected = few_shot.few_shot(x["train"], y["train"], x["test"], y["test"], seed=3)
    assert shots.result.metrics == pytest.approx(expected)


def test_few_shot_repeated_is_the_mean_of_its_seeds_and_their_deviation(tmp_path):
    data = DataSet("squares", Squares(50), ("few_shot",), {"train": lambda: Squares(90)})
    model = NamedModel("tiny", "runs/a", tiny())

    def measured(**settings):
        path = tmp_path / f"{settings}.jsonl"
        (found,) = suite.evaluate([model], [data], path, settings=Settings(**settings))
        return found.result.metrics

    one_by_one = [measured(seed=seed)["acc1"] for seed in (4, 5, 6)]
    assert len(set(one_by_one)) == 3
    repeated = measured(seed=4, repeats=3)
    assert repeated["acc1"] == pytest.approx(np.mean(one_by_one))
    assert repeated["acc1_sd"] == pytest.approx(np.std(one_by_one, ddof=1))
    assert "acc1_sd" not in measured(seed=4)


def test_settings_redo_only_the_tasks_that_they_change(tmp_path):
    path, train = tmp_path / "results.jsonl", Squares(90)
    tasks = ("zero_shot", "few_shot", "corruptions")
    data = DataSet("squares", Squares(30), tasks, {"train": lambda: train})
    model = NamedModel("tiny", "runs/a", tiny())

    def fresh(**settings):
        found = suite.evaluate([model], [data], path, settings=Settings(**settings))
        return [one.result.task for one in found if one.fresh]

    assert len(fresh(sample=2)) == 3
    assert fresh(sample=2) == []
    assert fresh(sample=2, batch_size=4) == []
    assert fresh(sample=3) == ["corruptions"]
    assert fresh(sample=3, features="joint") == ["few_shot"]
    assert fresh(sample=3, features="joint", seed=1) == ["few_shot", "corruptions"]
    assert fresh(sample=3, features="joint", seed=1, repeats=2) == ["few_shot"]


def test_a_missing_split_fails_only_what_needs_it(tmp_path, caplog):
    other = Squares(90)
    other.classnames = NAMES[::-1]
    sets = [
        DataSet("a", Squares(), ("zero_shot", "few_shot"), {"train": missing_file}),
        DataSet("b", Squares(), ("few_shot",), {"train": lambda: other}),
        DataSet("c", Squares(60), ("linear_probe",), {"train": lambda: Squares(90), "val": missing_file}),
        DataSet("d", Squares(), ("linear_probe", "zero_shot")),
    ]
    hook = Plans()
    found = run([NamedModel("tiny", "runs/a", tiny())], sets, tmp_path / "results.jsonl", hook=hook)
    failures = [str(one) for one in found if isinstance(one, suite.Failure)]
    assert failures == [
        "a few_shot: there is no such file",
        "b few_shot with runs/a: squares has other classes than squares: the same folders are needed",
    ]
    done = [(one.result.dataset, one.result.task) for one in found if isinstance(one, suite.Outcome)]
    assert done == [
        ("a", "zeroshot_classification"), ("c", "linear_probe"), ("d", "zeroshot_classification")
    ]  # fmt: skip
    assert "c has no validation split (there is no such file)" in caplog.text
    assert hook.plan.unable == {"d": {"linear_probe": "labels and a train split"}}


def test_classes_without_names_can_be_learned_but_not_named(tmp_path):
    def nameless(count=60):
        source = Squares(count)
        source.classnames = None
        return source

    sets = [
        DataSet("a", nameless(), ("linear_probe", "zero_shot"), {"train": lambda: nameless(90)}),
        DataSet("b", nameless(), ("zero_shot",)),
    ]
    found = run([NamedModel("tiny", "runs/a", tiny())], sets, tmp_path / "results.jsonl")
    done = [(one.result.dataset, one.result.task) for one in found if isinstance(one, suite.Outcome)]
    assert done == [("a", "linear_probe")]
    assert [str(one)[:22] for one in found if isinstance(one, suite.Failure)] == ["b: it can serve none o"]


def test_noise_is_measured_on_drawn_images_whose_places_are_told(tmp_path):
    data = DataSet("squares", Squares(40, bad=(3,)), ("noise",))
    (outcome,) = suite.evaluate(
        [NamedModel("tiny", "runs/a", tiny())], [data], tmp_path / "results.jsonl", settings=Settings(sample=12, seed=1)
    )
    kept = results.load_examples(tmp_path / "results.jsonl", outcome.result.key)
    drawn = sample_indices(Squares(40), 12, 1)
    assert kept.indices.tolist() == [index for index in drawn if index != 3]
    assert drawn != list(range(12))


class Shifted(Squares):
    """Labels from 1 to 5, and some images without any."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return Example(example.image, (), None if index % 10 == 9 else 1 + index % 5)


def test_labels_that_do_not_fit_are_told(tmp_path, caplog):
    data = DataSet("shifted", Shifted(20), ("zero_shot",))
    run([NamedModel("tiny", "runs/a", tiny())], [data], tmp_path / "results.jsonl")
    assert "squares: 2 of 20 images have no label, and are left out" in caplog.text
    assert "no image has the label 0: do its labels count from 1?" in caplog.text
    caplog.clear()
    run([NamedModel("tiny", "runs/a", tiny())], [DataSet("few", Shifted(3), ("zero_shot",))], tmp_path / "few.jsonl")
    assert "count from 1" not in caplog.text, "of few images a class is missing by chance"
    caplog.clear()
    run([NamedModel("tiny", "runs/a", tiny())], [DataSet("s", Squares(20), ("zero_shot",))], tmp_path / "more.jsonl")
    assert not caplog.text


def test_an_evaluation_during_training_tells_once_what_it_lacks(caplog):
    evaluate = evaluator(DataSet("mine", Squares(20, bad=(3, 11)), ("zero_shot",)))
    for _ in range(2):
        evaluate(tiny())
    assert caplog.text.count("mine: skipped images: 2 truncated; its numbers are of the others") == 1


class Captioned(Squares):
    """Some images without a caption, the first one too."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return Example(example.image, (f"square {index}",) if index % 3 and len(self) > 3 else (), None)


def test_images_without_a_caption_are_told(tmp_path, caplog):
    data = DataSet("captioned", Captioned(20), ("retrieval",))
    (found,) = run([NamedModel("tiny", "runs/a", tiny())], [data], tmp_path / "results.jsonl")
    assert found.result.n == 20
    assert "squares: 7 of 20 images have no caption: they are only candidates" in caplog.text
    nothing = DataSet("none", Captioned(3), ("retrieval",))
    (failed,) = run([NamedModel("tiny", "runs/a", tiny())], [nothing], tmp_path / "results.jsonl")
    assert "it can serve none of" in str(failed)

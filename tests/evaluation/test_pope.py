"""The rule for an answer, the scores against scikit-learn, and every way in which the files may be laid out."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from diffclip import cli
from diffclip.errors import UserError
from diffclip.evaluation import pope, results
from diffclip.evaluation.pope import score
from diffclip.evaluation.stats.bootstrap import mean_interval


@pytest.mark.parametrize(
    ("answer", "yes", "unparsed"),
    [
        ("Yes", True, False),
        ("yes, there is.", True, False),
        ("No", False, False),
        ("No, there is no dog", False, False),
        ("There is not. Yes.", False, False),
        ("Yes. There is no cat, though", True, False),  # only the first sentence counts
        ("There is, no doubt", False, False),  # commas are left out, so "no" is a word
        ("NO", True, True),  # the rule knows No, no and not
        ("No!", True, True),
        ("nothing", True, True),
        ("", True, True),
        ("I see a dog", True, True),
        ("Not", True, True),
        ("YES!", True, False),
    ],
)
def test_how_an_answer_is_read(answer, yes, unparsed):
    assert (pope.says_yes(answer), pope.is_unparsed(answer)) == (yes, unparsed)


def drawn(seed=0, images=40):
    generator = np.random.default_rng(seed)
    counts = generator.integers(3, 7, images)
    questions, answers = [], []
    for image, count in enumerate(counts):
        for _ in range(count):
            label = bool(generator.random() < 0.5)
            questions.append(pope.Question(str(len(questions)), f"{image}.jpg", label))
            answers.append("Yes" if generator.random() < (0.8 if label else 0.3) else "no")
    return questions, answers


def test_scores_equal_scikit_learn():
    questions, answers = drawn()
    truth, said = [q.yes for q in questions], [a == "Yes" for a in answers]
    assert pope.evaluate(questions, answers).metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, said),
            "precision": sk.precision_score(truth, said),
            "recall": sk.recall_score(truth, said),
            "f1": sk.f1_score(truth, said),
            "yes_ratio": np.mean(said),
            "unparsed": 0,
        },
        abs=1e-12,
    )


def test_intervals_are_those_of_a_bootstrap_over_images():
    questions, answers = drawn(images=400)
    truth = np.array([q.yes for q in questions])
    said = np.array([a == "Yes" for a in answers])
    owner = np.array([int(q.image.removesuffix(".jpg")) for q in questions])
    generator = np.random.default_rng(1)
    drawn_scores = []
    for _ in range(1000):
        times = np.bincount(generator.integers(0, 400, 400), minlength=400)[owner]
        drawn_scores.append(
            (times[truth & said].sum() / times[said].sum(), (times * (truth == said)).sum() / times.sum())
        )
    expected = np.quantile(drawn_scores, [0.025, 0.975], axis=0)
    found = pope.evaluate(questions, answers)
    for column, name in enumerate(("precision", "accuracy")):
        interval = mean_interval(found.values[name])
        assert (interval.low, interval.high) == pytest.approx(expected[:, column], abs=0.004)


def test_a_model_that_only_says_yes_or_only_says_no():
    questions = [pope.Question(str(i), f"{i // 6}.jpg", i % 2 == 0) for i in range(12)]
    always = pope.evaluate(questions, ["Yes"] * 12)
    assert always.metrics == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_ratio": 1, "unparsed": 0}
    )
    never = pope.evaluate(questions, ["No"] * 12)
    assert never.metrics == pytest.approx(
        {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0, "unparsed": 0}
    )
    assert torch.equal(never.indices, torch.arange(2))
    assert always.chance == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5}


# Files


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions_of(count=6):
    return [
        {
            "question_id": i + 1,
            "image": f"COCO_{i // 6}.jpg",
            "text": f"Is there a thing {i} in the image?",
            "label": ["yes", "no"][i % 2],
        }
        for i in range(count)
    ]


@pytest.fixture
def labels(tmp_path):
    for split, count in (("random", 6), ("popular", 12), ("adversarial", 12)):
        lines(tmp_path / "POPE" / "output" / "coco" / f"coco_pope_{split}.json", questions_of(count))
    return tmp_path / "POPE"


def right(count, **more):
    return [{"question_id": i + 1, "text": ["Yes.", "No, it is not."][i % 2], **more} for i in range(count)]


def accuracies(scored):
    return [(one.split, one.questions, one.examples.metrics["accuracy"]) for one in scored]


def test_a_file_for_each_split_in_any_order_of_lines(tmp_path, labels):
    files = [lines(tmp_path / "mine_popular.jsonl", right(12)[::-1]), lines(tmp_path / "mine_random.jsonl", right(6))]
    assert accuracies(score(files, labels)) == [("random", 6, 1), ("popular", 12, 1)]


def test_the_benchmark_s_own_form_of_answers_goes_by_order(tmp_path, labels):
    rows = [{"question": "Is there …?", "answer": row["text"]} for row in right(6)]
    file = lines(tmp_path / "answers.json", rows)
    assert accuracies(score([file], labels / "output" / "coco" / "coco_pope_random.json")) == [("random", 6, 1)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert accuracies(score([tmp_path / "list.json"], labels / "output/coco/coco_pope_random.json"))[0][2] == 1


def test_all_splits_in_one_file(tmp_path, labels):
    rows = [row for split, count in (("adversarial", 12), ("random", 6)) for row in right(count, category=split)]
    assert accuracies(score([lines(tmp_path / "a.jsonl", rows)], labels)) == [("random", 6, 1), ("adversarial", 12, 1)]
    # As LLaVA does it: ids that go on through the splits, and a file that says which split each belongs to.
    order = [("adversarial", i) for i in range(12)] + [("random", i) for i in range(6)]
    categories = lines(
        tmp_path / "llava_pope_test.jsonl",
        [{"question_id": n, "image": "x", "text": "y", "category": split} for n, (split, _) in enumerate(order)],
    )
    answers = [{"question_id": n, "text": ["Yes", "No"][i % 2]} for n, (_, i) in enumerate(order)]
    file = lines(tmp_path / "b.jsonl", answers[::-1])
    assert accuracies(score([file], labels, categories)) == [("random", 6, 1), ("adversarial", 12, 1)]
    with pytest.raises(UserError, match="question 99 is not in"):
        score([lines(tmp_path / "c.jsonl", [{"question_id": 99, "text": "no"}])], labels, categories)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (right(5), "has 5 answers to 6 questions"),
        ([*right(5), right(1)[0]], "answers question 1 more than once"),
        ([*right(5), {"question_id": 77, "text": "no"}], r"has no answer to question 6 \(1 are missing\)"),
        ([{"question_id": 1}], "entry 1: expected the answer as `answer` or `text`, found question_id"),
        ([], "expected JSON objects, one a line, found none"),
        ([3], "expected JSON objects, one a line, found other values"),
    ],
)
def test_answers_that_do_not_fit(tmp_path, labels, rows, message):
    with pytest.raises(UserError, match=message):
        score([lines(tmp_path / "random.jsonl", rows)], labels)


def test_other_mistakes(tmp_path, labels):
    file = lines(tmp_path / "random.jsonl", right(6))
    with pytest.raises(UserError, match="which split does it answer"):
        score([lines(tmp_path / "answers.jsonl", right(6))], labels)
    with pytest.raises(UserError, match="both answer the random split"):
        score([file, lines(tmp_path / "random2.jsonl", right(6))], labels)
    with pytest.raises(UserError, match=r"holds no coco_pope_random.json"):
        score([file], tmp_path)
    with pytest.raises(UserError, match="no answers to score"):
        score([], labels)
    with pytest.raises(UserError, match=r"cannot read .*none_random.jsonl: No such file"):
        score([tmp_path / "none_random.jsonl"], labels)
    (tmp_path / "random3.jsonl").write_text("{oh")
    with pytest.raises(UserError, match=r"random3.jsonl is not JSON lines"):
        score([tmp_path / "random3.jsonl"], labels)
    with pytest.raises(UserError, match=r"entry 1: expected question_id, image, text and a label yes or no"):
        score([file], lines(tmp_path / "labels.json", [{"label": "maybe", "image": "x"}]))


def test_the_two_versions_are_told_apart(tmp_path):
    asked = [pope.Question(str(i), "x", True) for i in range(3000)]
    with pytest.raises(UserError, match="had 2,910 questions before October 2023 and has 3,000 since"):
        pope.match_answers(asked, [pope.Answer(str(i), "Yes") for i in range(2910)], "answers")
    assert pope.dataset_name("random", 3000) == "pope_random"
    assert pope.dataset_name("random", 2910) == "pope_random_2910"


def test_the_command_prints_a_table_and_adds_results(tmp_path, labels, capsys):
    files = [
        lines(tmp_path / f"llava_{split}.jsonl", right(count)) for split, count in (("random", 6), ("popular", 12))
    ]
    files[1].write_text(files[1].read_text().replace("Yes.", "Maybe", 1))
    out = tmp_path / "out"
    for _ in range(2):
        cli.main(["pope", *map(str, files), "--labels", str(labels), "--out", str(out)])
    text = capsys.readouterr().out
    assert "random" in text
    assert "popular" in text
    assert "mean" in text
    assert "100.00" in text
    assert "Not a published version" in " ".join(text.split())
    assert "unparsed: answers that say neither" in text
    found = results.read(out / "results.jsonl")
    assert [(r.dataset, r.model, r.task) for r in found] == [
        ("pope_random_6", "llava", "pope"), ("pope_popular_12", "llava", "pope")
    ]  # fmt: skip
    assert found[0].metrics == {
        "accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5, "unparsed": 0
    }  # fmt: skip
    assert results.load_examples(out / "results.jsonl", found[0].key).metrics["accuracy"] == 1

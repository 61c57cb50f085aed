import pytest
import torch
from open_clip import build_zero_shot_classifier
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.evaluation.tasks import zero_shot
from small_models import small_model


def unit(*shape, seed=0):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, dim=-1)


@pytest.mark.parametrize(("images", "classes"), [(11, 3), (97, 7), (500, 30), (20, 30)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_equals_scikit_learn_and_brute_force(images, classes, monkeypatch):
    monkeypatch.setattr(zero_shot, "BLOCK", 10 * classes)  # several blocks, the last one shorter
    embeddings = unit(classes, 16, seed=1)
    labels = torch.randint(classes, (images,), generator=torch.Generator().manual_seed(2))
    features = torch.nn.functional.normalize(embeddings[labels] + 1.5 * unit(images, 16), dim=-1)
    found = zero_shot.metrics(features, labels, embeddings)

    scores = (features.double() @ embeddings.double().T).numpy()
    truth = labels.numpy()
    assert found["acc1"] == pytest.approx(top_k_accuracy_score(truth, scores, k=1, labels=range(classes)))
    assert found["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(truth, scores.argmax(1)))
    if classes >= 5:
        assert found["acc5"] == pytest.approx(top_k_accuracy_score(truth, scores, k=5, labels=range(classes)))

    right, by_class = [0, 0], {}
    for row, label in zip(scores.tolist(), truth.tolist(), strict=True):
        order = sorted(range(classes), key=lambda c: -row[c])
        right[0] += order[0] == label
        right[1] += label in order[:5]
        by_class.setdefault(label, []).append(order[0] == label)
    assert found["acc1"] == pytest.approx(right[0] / images)
    assert found.get("acc5", right[1] / images) == pytest.approx(right[1] / images)
    recalls = [sum(hits) / len(hits) for hits in by_class.values()]
    assert found["mean_per_class_recall"] == pytest.approx(sum(recalls) / len(recalls))


def test_acc5_needs_five_classes():
    labels = torch.tensor([0, 1, 2, 3])
    assert set(zero_shot.metrics(unit(4, 8), labels, unit(4, 8))) == {"acc1", "mean_per_class_recall"}
    assert "acc5" not in zero_shot.chance(4)
    assert zero_shot.metrics(unit(4, 8), labels, unit(5, 8))["acc5"] == 1.0
    assert zero_shot.chance(20) == {"acc1": 0.05, "mean_per_class_recall": 0.05, "acc5": 0.25}


def test_a_model_that_sees_nothing_is_at_chance():
    labels = torch.arange(40) % 8
    found = zero_shot.metrics(unit(1, 16).expand(40, 16), labels, unit(8, 16, seed=1))
    assert found["acc1"] == pytest.approx(1 / 8)


def test_wrong_labels_and_broken_features_are_refused():
    with pytest.raises(ValueError, match=r"labels run from 0 to 9, but there are 9 classes"):
        zero_shot.metrics(unit(10, 8), torch.arange(10), unit(9, 8))
    with pytest.raises(ValueError, match="labels run from -1"):
        zero_shot.metrics(unit(2, 8), torch.tensor([-1, 0]), unit(9, 8))
    broken = unit(10, 8)
    broken[3, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 10 image features are not finite"):
        zero_shot.metrics(broken, torch.arange(10), unit(10, 8))


class WordModel(torch.nn.Module):
    """A text encoder whose feature of a text is a fixed, unnormalised vector drawn from its letters."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(256, 8, generator=torch.Generator().manual_seed(5)))
        self.batches = []

    def encode_text(self, tokens, normalize=False):
        self.batches.append(tuple(tokens.shape))
        features = self.weight[tokens].sum(1)
        return torch.nn.functional.normalize(features, dim=-1) if normalize else features


def letters(texts):
    longest = max(map(len, texts))
    return torch.tensor([[ord(c) for c in text.ljust(longest, "\0")] for text in texts])


def test_class_embedding_is_the_normalised_mean_of_normalised_prompts():
    model = WordModel()
    model.weight.data[0] = 0  # padding adds nothing
    names, templates = ("cat", "hippopotamus", "ox"), ("a {c}.", "{c}", "one {c} and one {c}")
    found = zero_shot.class_embeddings(model, letters, names, templates)
    for row, name in zip(found, names, strict=True):
        total = torch.zeros(8, dtype=torch.float64)
        for template in templates:
            prompt = template.replace("{c}", name)
            feature = sum(model.weight.data[ord(c)].double() for c in prompt)
            total += feature / feature.norm()
        torch.testing.assert_close(row.double(), total / total.norm(), rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_class_embeddings_equal_open_clip_s():
    model = small_model(text_width=32, text_depth=2).eval()
    names, templates = ("cat", "polar bear", "ox"), ("a photo of a {c}.", "{c}", "one {c}, seen from far away")
    found = zero_shot.class_embeddings(model, get_tokenizer(), names, templates)
    functions = [lambda name, template=template: template.format(c=name) for template in templates]
    with torch.no_grad():
        expected = build_zero_shot_classifier(model, get_tokenizer(), names, functions)
    torch.testing.assert_close(found, expected.T, rtol=1e-4, atol=1e-5)


def test_templates_must_hold_the_class_name_and_nothing_else():
    for template in ("a photo", "a {x} {c}", "a {c", "{} {c}"):
        with pytest.raises(UserError, match=r"must have \{c\} where the class name goes"):
            zero_shot.class_embeddings(WordModel(), letters, ["cat"], [template])
    with pytest.raises(UserError, match="found 1 and 0"):
        zero_shot.class_embeddings(WordModel(), letters, ["cat"], [])

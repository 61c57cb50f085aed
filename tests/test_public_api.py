"""The names that users rely on, and that importing them costs nothing until they are used."""

import subprocess
import sys

import torch

import diffclip


def test_importing_does_not_load_torch():
    program = "import sys, diffclip; print('torch' in sys.modules, diffclip.list_models()[0], 'torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
    assert output == "False clip_vit_t16 False\n"


def test_every_public_name_is_there():
    for name in diffclip.__all__:
        assert getattr(diffclip, name) is not None
    assert set(dir(diffclip)) == set(diffclip.__all__)


def test_packages_are_reached_by_attribute():
    program = (
        "import diffclip; print(diffclip.evaluation.tasks.zero_shot.class_embeddings.__name__, "
        "diffclip.evaluation.tasks.retrieval.recall.__name__, diffclip.analysis.relevance.__name__)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120).stdout
    assert output == "class_embeddings recall relevance\n"


def test_a_batch_through_the_documented_calls():
    model = diffclip.create_model("diffclip_vit_quickstart").eval()
    tokens = diffclip.get_tokenizer()(["a dog", "two red stars"], context_length=77)
    assert tokens.shape == (2, 77)
    assert tokens.dtype == torch.int64
    pixels = torch.randn(2, 3, 64, 64)
    output = model(image=pixels, text=tokens)
    assert set(output) == {"image_features", "text_features", "logit_scale"}
    assert model.encode_image(pixels).shape == model.encode_text(tokens).shape == (2, model.config.embed_dim)
    torch.testing.assert_close(output["image_features"].norm(dim=-1), torch.ones(2))
    relevance = diffclip.analysis.relevance(model, pixels, tokens)
    assert relevance.shape == (2, 8, 8)
    assert (relevance >= 0).all()

"""The names that users rely on, and that importing them costs nothing until they are used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffclip


def test_importing_does_not_load_torch():
    program = "import sys, diffclip; print('torch' in sys.modules, diffclip.list_models()[0], 'torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
    assert output == "False clip_vit_t16 False\n"


def declared():
    """Public name → the module that a type checker takes it from, as the package's `if TYPE_CHECKING` says."""
    tree = ast.parse(Path(diffclip.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_type_checkers_and_users_see_the_same_names():
    assert set(declared()) == set(diffclip.__all__) == set(dir(diffclip))
    for name, module in declared().items():
        value = getattr(diffclip, name)
        if inspect.ismodule(value):
            assert value.__name__ == f"{module}.{name}"
        else:
            assert value is getattr(sys.modules[module], name)
            assert value.__module__ == module, "where it is defined, not where it passes through"


@pytest.mark.parametrize("name", diffclip.__all__)
def test_every_public_name_is_documented_and_typed(name):
    value = getattr(diffclip, name)
    assert len(value.__doc__ or "") > 20
    if inspect.isfunction(value):
        signatures = [value]
    elif inspect.isclass(value):  # its own methods, not those of torch
        own = {key: member for key, member in vars(value).items() if inspect.isfunction(member)}
        signatures = [member for key, member in own.items() if key == "__init__" or not key.startswith("_")]
    else:
        return
    for function in signatures:
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, function
        for parameter in list(signature.parameters.values()):
            assert parameter.name == "self" or parameter.annotation is not inspect.Parameter.empty, function


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        diffclip.create_modle  # noqa: B018


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

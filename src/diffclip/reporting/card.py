"""The model card of a model: what it is, what it learned from, what was measured, from its run and its results.

What of a path or an address tells only of the machine or its user is left out: a card is public.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import tomli_w
from huggingface_hub import EvalResult, ModelCardData

from diffclip.errors import UserError
from diffclip.evaluation.results import NOT_SCORES, Result
from diffclip.evaluation.stats.bootstrap import Interval, mean_interval
from diffclip.evaluation.task import metric_of, metric_title, title_of_task
from diffclip.models.clip import CLIP, count_parameters
from diffclip.models.weights.files import WEIGHTS_NAME
from diffclip.recipe_files import read_toml
from diffclip.reporting.collect import Collection, collect
from diffclip.reporting.tables.formats import plain

log = logging.getLogger(__name__)

PAPER = "2503.06626"
INTERVAL = "the test images resampled (bootstrap, 95 %); it says nothing about other training runs"


@dataclass(frozen=True)
class Number:
    """One metric of one result."""

    result: Result
    metric: str
    interval: Interval | None
    """None where the values of single test examples are not kept."""

    @property
    def unit(self) -> str:
        """`%`, or nothing where the metric is no share."""
        known = metric_of(self.result.task, self.metric)
        return "%" if known is None else known.unit

    @property
    def text(self) -> str:
        """ "61.2 % [57.0, 65.4]" """
        scale, digits = (100, 1) if self.unit else (1, 3)
        value = f"{scale * self.result.metrics[self.metric]:.{digits}f}{' %' if self.unit else ''}"
        if self.interval is None:
            return f"{value}, no interval: the values of single images are not kept"
        return f"{value} [{scale * self.interval.low:.{digits}f}, {scale * self.interval.high:.{digits}f}]"


def card(model: CLIP, source: str, name: str, *, license: str, data: str, results: Sequence[Path]) -> str:
    """README.md of a model on the hub, in Markdown with the hub's metadata before it.

    Args:
        model: what is described.
        source: where it lies: a run's folder has its recipe and maybe results.
        name: of the hub's repository, OWNER/NAME.
        license: of the weights, by the hub's identifier.
        data: what it was trained on, in Markdown; may be empty where a recipe says it.
        results: what `diffclip eval` wrote, of this model among others.

    Raises UserError where nothing says what it was trained on, or where results are given and none is of this model.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    recipe = read_toml(folder / "recipe.toml", "recipe") if (folder / "recipe.toml").is_file() else {}
    learned = data or _trained_on(recipe)
    if not learned:
        raise UserError(f'no recipe beside {source} says what it was trained on: give --data "WORDS"')
    numbers = list(_numbers(source, folder, results))
    return "\n".join(
        [
            f"---\n{_metadata(name, license, numbers)}\n---\n",
            f"# {name.partition('/')[2]}\n",
            *_what_it_is(model),
            *_how_to_use(name),
            f"## Training data\n\n{learned}\n",
            *_training(recipe),
            *_measured(numbers),
            "## Limits\n",
            "What the table does not show was not measured, bias and safety among it. The model repeats what its",
            "training data say of people. Measure it on your own data before anything depends on it.\n",
        ]
    )


def _trained_on(recipe: Mapping[str, Any]) -> str:
    path = recipe.get("data", {}).get("train", {}).get("path", "")
    return plain(public(path))


def _metadata(name: str, license: str, numbers: Sequence[Number]) -> str:
    results = [
        EvalResult(
            task_type=number.result.task,
            task_name=title_of_task(number.result.task),
            dataset_type=number.result.dataset,
            dataset_name=number.result.dataset,
            metric_type=number.metric,
            metric_name=metric_title(number.result.task, number.metric),
            metric_value=round(number.result.metrics[number.metric], 5),
        )
        for number in numbers
    ]
    data = ModelCardData(
        license=license,
        library_name="diffclip",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "diffclip", f"arxiv:{PAPER}"],
        model_name=name.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _what_it_is(model: CLIP) -> Iterator[str]:
    yield from (f"- {fact}: {plain(value)}" for fact, value in model.describe().items())
    counts = count_parameters(model)
    added = {name: counts[name] for name in ("lambda", "head_norm", "second_query") if counts[name]}
    words = ", ".join(f"{number:,} of {name.replace('_', ' ')}" for name, number in added.items())
    yield f"- parameters: {counts['total']:,}" + (f"; differential attention adds {words}" if words else "")
    size = model.config.image_size
    yield f"- images: {size} × {size}, resized: {model.config.resize}, {model.config.interpolation}"
    if model.config.is_differential:
        yield f"- paper: DiffCLIP, [arXiv {PAPER}](https://arxiv.org/abs/{PAPER})"
    yield ""


def _how_to_use(name: str) -> Iterator[str]:
    yield f"""## How to use it

```python
import diffclip

model, preprocess, tokenizer = diffclip.load("hf:{name}")
images = model.encode_image(preprocess(image)[None], normalize=True)
texts = model.encode_text(tokenizer(["a photo of a dog", "a photo of a cat"]), normalize=True)
```

`diffclip info hf:{name}` says what it is, `diffclip eval hf:{name} --data …` measures it.
"""


def _training(recipe: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training\n"
    if not recipe:
        yield "No recipe came with the weights.\n"
        return
    yield f"diffclip {version('diffclip')} wrote this card from the run's recipe, which states every setting.\n"
    text = tomli_w.dumps(_public_table(recipe))
    yield f"<details><summary>recipe.toml</summary>\n\n```toml\n{text}```\n\n</details>\n"


def _measured(numbers: Sequence[Number]) -> Iterator[str]:
    yield "## Results\n"
    if not numbers:
        yield "None were given.\n"
        return
    yield f"In brackets: {INTERVAL}.\n"
    yield "| data | task | metric | this model | test images |\n|---|---|---|---|---:|"
    for number in numbers:
        result = number.result
        count = "not known" if result.n is None else f"{result.n:,}"
        if result.n is not None and result.n_expected and result.n < result.n_expected:
            count += f" of {result.n_expected:,}"
        titles = result.dataset, title_of_task(result.task), metric_title(result.task, number.metric)
        yield "| " + " | ".join((*map(plain, titles), number.text, count)) + " |"
    yield ""


def _numbers(source: str, folder: Path, given: Sequence[Path]) -> Iterator[Number]:
    inputs = list(given) or [path for path in [folder / "results.jsonl"] if path.is_file()]
    if not inputs:
        return
    collection = collect(inputs)
    found = [result for result in collection.results if _is_of(result, source, folder, collection)]
    if not found:
        others = ", ".join(sorted({result.pretrained for result in collection.results})) or "no model"
        raise UserError(f"{', '.join(map(str, inputs))}: no result is of {source}, but of {others}")
    weights = Path(source) if Path(source).is_file() else folder / WEIGHTS_NAME
    files = {collection.origin[result.key] for result in found} if weights.is_file() else set()
    for path in sorted(path for path in files if _written(path) < _written(weights)):
        log.warning("%s is older than %s: are its results of these weights?", path, weights)
    for result in sorted(found, key=lambda each: each.key):
        examples = collection.examples(result.key)
        for metric in result.metrics:
            known = metric_of(result.task, metric)
            if metric in NOT_SCORES or (known is not None and not (known.compared and known.better)):
                continue
            values = None if examples is None else examples.values.get(metric)
            kept = None if values is None else values[~values.isnan()].double().numpy()
            yield Number(result, metric, None if kept is None or not len(kept) else mean_interval(kept))


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _is_of(result: Result, source: str, folder: Path, collection: Collection) -> bool:
    if result.pretrained == source or Path(result.pretrained).absolute() == Path(source).absolute():
        return True
    run = collection.run_of(result.pretrained)
    return run is not None and run.path == folder.resolve()


def public(text: str) -> str:
    """A path or an address without what is nobody else's business: its folders, its user and key, a command."""
    if text.startswith("pipe:"):
        return "pipe:…"
    if "://" in text:
        address = urlsplit(text)
        return urlunsplit((address.scheme, address.netloc.rpartition("@")[2], address.path, "", ""))
    if text.startswith(("/", "~", "./", "../")):
        path, _, options = text.partition("?")
        parts = Path(path).parts[-2:]
        named = parts if len(parts) > 1 and any(c in parts[-1] for c in "{*[") else parts[-1:]
        return "/".join(named) + (f"?{options}" if options else "")
    return text


def _public_table(value: Any) -> Any:
    if isinstance(value, str):
        return public(value)
    if isinstance(value, Mapping):
        return {key: _public_table(part) for key, part in value.items()}
    return [_public_table(part) for part in value] if isinstance(value, list) else value

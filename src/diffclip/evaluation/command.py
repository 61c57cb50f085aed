"""What `diffclip eval` does: models and data sets by their names, every result, a comparison, what failed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffclip.errors import Stopped, UserError
from diffclip.evaluation.feature_cache import FeatureCache
from diffclip.evaluation.progress import Reporter
from diffclip.evaluation.splits import DataSet
from diffclip.evaluation.suite import Failure, NamedModel, Outcome, Settings
from diffclip.evaluation.suite import evaluate as evaluate_suite
from diffclip.evaluation.together import encode_together
from diffclip.models.clip import CLIP
from diffclip.models.presets import list_models, model_config
from diffclip.models.weights import load
from diffclip.reporting import tables
from diffclip.reporting.tables import ModelName
from diffclip.training.distributed import default_device, joined


def evaluate(
    models: Sequence[str],
    data: Sequence[DataSet],
    out: Path,
    *,
    missing: Sequence[Failure] = (),
    cache: Path | None,
    force: bool,
    settings: Settings,
) -> None:
    """Evaluate models on data sets; prints the results, writes OUT/results.jsonl.

    Under torchrun all processes encode images, into a cache that all of them reach; the first does the rest.

    missing: data sets that are not there, told at the beginning and at the end. Two models are also compared, the
    second with the first, with paired intervals. Raises UserError, once all else is done, for whatever could not be;
    Stopped on an interrupt.
    """
    if not models:
        raise UserError("no model to evaluate: give run directories, .safetensors files, checkpoints or hub ids")
    twice = next((name for name, count in Counter(one.name for one in data).items() if count > 1), None)
    if twice:
        raise UserError(f"--data names {twice} twice: results would replace each other, so give each its own name")
    path, features = out / "results.jsonl", FeatureCache(cache or out / "features")
    with joined() as world:
        named = [named_model(source) for source in models]
        if world.size > 1:
            encode_together(named, data, path, settings, features, world, force=force)
    if not world.main:
        return
    console = Console()
    for failure in missing:
        console.print(f"Missing: {failure}", highlight=False, soft_wrap=True)
    try:
        failures = run_suite(named, data, path, console, settings, cache=features, force=force)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on from here") from None
    if len(named) == 2 and path.exists():
        letters = [ModelName(letter, one.name, one.pretrained) for letter, one in zip("AB", named, strict=True)]
        console.print(tables.to_rich(tables.compare(path, *letters)))
        console.print(*(f"{one.label}: {one.pretrained}" for one in letters), highlight=False, soft_wrap=True)
    if path.exists():
        console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    raise_failures([*missing, *failures])


def run_suite(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    console: Console,
    settings: Settings = Settings(),  # noqa: B008  it is frozen
    *,
    cache: FeatureCache | None = None,
    force: bool = False,
) -> list[Failure]:
    """Every task of every data set with every model, told on the console; returns what failed."""
    failures = []
    with Reporter(console) as reporter:
        for outcome in evaluate_suite(
            models, data, path, settings=settings, cache=cache, force=force, monitor=reporter
        ):
            if isinstance(outcome, Outcome):
                reporter.told(outcome)
            else:
                reporter.failed(outcome)
                failures.append(outcome)
    return failures


def raise_failures(failures: Sequence[Failure]) -> None:
    """Raises UserError with the list, if there is any."""
    if failures:
        raise UserError(f"{len(failures)} could not be done, everything else is:", *map(str, failures))


def named_model(source: str) -> NamedModel:
    """A model by where it lies, and its preset."""
    model = load(source, device=default_device())[0]
    return NamedModel(_preset_of(model), source, model)


def _preset_of(model: CLIP) -> str:
    """The preset that has the model's config; for a config of its own, what it is."""
    for name in list_models():
        if model_config(name) == model.config:
            return name
    kind = "diffclip" if "differential" in (model.config.vision_attention, model.config.text_attention) else "clip"
    return f"{kind}_{model.config.vision_width}x{model.config.vision_depth}_patch{model.config.patch_size}"

"""The `diffclip` command: parse and call, nothing else."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagConversionOff, Positional, UseAppendAction, arg

from diffclip.config import Recipe, load_recipe, revalidate
from diffclip.data import command as data_command
from diffclip.errors import Stopped, UserError
from diffclip.plan.command import plan

# As diffclip.evaluation.splits has them, which takes seconds to import.
Task = Literal[
    "zero_shot",
    "retrieval",
    "linear_probe",
    "few_shot",
    "fine_grained",
    "robustness",
    "corruptions",
    "grounding",
    "noise",
]


def train_command(settings: Recipe) -> Callable[..., None]:
    """The `train` command whose settings default to those of a recipe that is already read."""

    def train(
        recipe: Positional[Path],
        /,
        *,
        out: Path | None = None,
        resume: bool = False,
        dry_run: bool = False,
        settings: Annotated[FlagConversionOff[Recipe], arg(name="")] = settings,
    ) -> None:
        """Train a model by a recipe. Any setting of the recipe can be replaced: --section.key value.

        Args:
            recipe: The recipe, a TOML file.
            out: The run directory; by default runs/NAME, NAME being the recipe's file name.
            resume: Go on from the newest good checkpoint of the run directory; begin where there is none.
            dry_run: Print shapes, parameters, steps, schedule and memory, and stop.
        """
        from diffclip import commands

        final = revalidate(settings)
        if dry_run:
            commands.print_dry_run(final)
        else:
            commands.train(final, out or Path("runs") / recipe.stem, resume=resume)

    return train


def evaluate(
    models: Positional[tuple[str, ...]],
    /,
    *,
    data: tuple[str, ...],
    out: Path,
    tasks: tuple[Task, ...] = (),
    root: Path | None = None,
    cache: Path | None = None,
    force: bool = False,
    features: Literal["tower", "joint"] = "tower",
    all_classes: bool = False,
    sample: int = 500,
    seed: int = 0,
    repeats: int = 1,
    batch_size: int = 256,
    workers: int = 2,
) -> None:
    """Evaluate models on data sets; results go to OUT/results.jsonl, a line each.

    What is done already is not done again. Exit status 1, with a list, where anything could not be done.

    Args:
        models: Run directories, .safetensors files, released checkpoints or hub ids.
        data: NAME=PATH of each data set, PATH being a folder, a file, shards, or scenes:SPLIT; the bare NAME of one of
            the paper's; or `paper`, for all of these.
        out: Where results.jsonl is written.
        tasks: What is measured, on each data set that can serve it; by default what the paper measures on data sets
            that are given by name alone, and zero_shot on others.
        root: The folder of the data sets that are given by name alone; by default $DIFFCLIP_DATA, or data.
        cache: Where image features are kept; by default OUT/features.
        force: Compute again what results.jsonl has already. Features are not: theirs cannot be out of date.
        features: What linear_probe and few_shot learn from: the image tower's features before the joint projection, or
            those after it.
        all_classes: Score ImageNet-A and -R among ImageNet's 1,000 classes instead of their own 200; results call them
            imagenet-a@1000 and imagenet-r@1000.
        sample: How many images robustness, corruptions, grounding and noise look at; 0: all.
        seed: Of that sample, of few-shot episodes, attacks, corruptions and noise.
        repeats: How often few_shot draws its episodes, with this seed and those after it; results have the mean, and
            the standard deviation between the repeats as acc1_sd.
        batch_size: Images encoded at a time.
        workers: Processes that decode images.
    """
    from diffclip.evaluation import command
    from diffclip.evaluation.datasets.opening import default_root
    from diffclip.evaluation.named_data import data_sets

    if repeats < 1:
        raise UserError(f"--repeats {repeats}: give a number of at least 1")
    settings = command.Settings(
        batch_size=batch_size,
        num_workers=workers,
        features=features,
        sample=sample or None,
        seed=seed,
        repeats=repeats,
    )
    found, missing = data_sets(data, tasks, default_root(root), all_classes=all_classes)
    command.evaluate(models, found, out, missing=missing, cache=cache, force=force, settings=settings)


def quickstart(*, out: Path = Path("runs/quickstart"), minutes: float = 9.0, seed: int = 0) -> None:
    """Train CLIP and DiffCLIP on drawn scenes, compare them, and write report.html.

    Args:
        out: Where both runs, results.jsonl and report.html go.
        minutes: The whole budget. Fewer minutes mean fewer training steps, the same number for both models.
        seed: Of the weights and of the order of the data, the same for both.
    """
    from diffclip.quickstart import run

    run(out, minutes, seed)


def sweep(
    recipes: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path | None = None,
    base: Path | None = None,
    seeds: tuple[int, ...] = (),
    variants: tuple[str, ...] = (),
    root: Path | None = None,
    settings: Annotated[tuple[str, ...], arg(name="set")] = (),
    dry_run: bool = False,
) -> None:
    """Train variants of a recipe with several seeds, measure all alike, and tabulate: mean ± sd, what is significant.

    The same command goes on where it was stopped. Exit status 1, with a list, where anything could not be done.

    Args:
        recipes: The sweep, a TOML file; what further files state replaces what it states.
        out: Where runs, results.jsonl and table.md go; by default runs/NAME, NAME being the files' names.
        base: Another base recipe.
        seeds: Other seeds than the sweep's.
        variants: Only these variants, by name; the table has all.
        root: The folder of the data sets that the sweep gives no path for; by default $DIFFCLIP_DATA, or data.
        settings: SECTION.KEY=VALUE of the base recipe, such as data.train.path=/data/cc12m.
        dry_run: Say what is left to do, how many steps and about how long, and stop.
    """
    from diffclip.sweep import command

    if not recipes:
        raise UserError("no sweep: give a TOML file, such as recipes/sweeps/figure5.toml")
    command(
        recipes,
        out or Path("runs") / "_".join(recipe.stem for recipe in recipes),
        base=base,
        seeds=seeds,
        variants=variants,
        root=root,
        settings=settings,
        dry_run=dry_run,
    )


def report(
    inputs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    label: tuple[str, ...] = (),
    with_paper: bool = False,
    image: tuple[str, ...] = (),
    scenes: int = 2,
) -> None:
    """Make tables, figures and one page, OUT/report.html, of any results.

    Args:
        inputs: Run directories, folders of them, results.jsonl files, or the LAION benchmark's .json and .csv.
        out: Where report.html, tables/ and figures/ go.
        label: NAME=PATTERN: call the models NAME whose name or weights match a shell pattern.
        with_paper: Show the paper's own numbers beside, marked as such.
        image: IMAGE=QUERY;QUERY: show where the models look in an image for each query; needs their run directories.
        scenes: The same on this many test scenes, for models that were trained on scenes.
    """
    from diffclip.reporting import command

    options = command.Options(labels=label, with_paper=with_paper, images=image, scenes=scenes)
    command.tell(command.report(inputs, out, options))


def models() -> None:
    """List the presets with their sizes."""
    from diffclip import commands

    commands.print_models()


def pope(
    answers: Positional[tuple[Path, ...]],
    /,
    *,
    labels: Path,
    categories: Path | None = None,
    model: str | None = None,
    out: Path | None = None,
) -> None:
    """Score a language model's answers to POPE: accuracy, precision, recall, F1, yes ratio.

    Args:
        answers: JSON lines with question_id and the answer as `text` or `answer`; a file a split, named so.
        labels: POPE's folder with coco_pope_random.json and its siblings, or one such file.
        categories: For answers to all splits in one file: which question_id belongs to which split.
        model: What results call the model; by default the name of the file of answers.
        out: Where results.jsonl is written; without it only the table is printed.
    """
    from diffclip.evaluation.pope_command import run

    run(answers, labels, categories, model, out)


def data() -> None:
    """Data sets: `list`, `verify`, `pack`, `show`; see diffclip data --help."""


def data_list(*, root: Path | None = None) -> None:
    """List the data sets of the paper: which are there, how many images they have, how to get the others.

    Args:
        root: The folder below which data sets lie; by default $DIFFCLIP_DATA, or else data/.
    """
    from diffclip.evaluation.datasets.listing import print_list

    print_list(root)


def attend(
    model: Positional[str],
    image: Positional[Path],
    /,
    *,
    beside: tuple[str, ...] = (),
    text: UseAppendAction[tuple[str, ...]] = (),
    out: Path,
    layers: Path | None = None,
    heads: Path | None = None,
    maps: Path | None = None,
) -> None:
    """Draw where a model looks in an image for each text, beside others if you like.

    Args:
        model: A run directory, a .safetensors file, a released checkpoint or a hub id.
        image: The image, a file.
        beside: Further models, a row of the figure each.
        text: What to look for; once for each text.
        out: The figure of relevance maps: .png, .pdf or .svg.
        layers: A second figure: A1, A2 and A1 − λA2 of every layer, signed, averaged over heads.
        heads: A third: the same of every head.
        maps: All maps as arrays: .safetensors or .npz.
    """
    from diffclip.reporting.attend import run

    run((model, *beside), image, text, out, layers=layers, heads=heads, maps=maps)


COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "train": train_command(Recipe()),
    "eval": evaluate,
    "sweep": sweep,
    "report": report,
    "attend": attend,
    "models": models,
    "data": data,
    "pope": pope,
    "plan": plan,
}
DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "list": data_list,
    "verify": data_command.verify,
    "pack": data_command.pack,
    "show": data_command.show,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 wrong input, 2 wrong arguments, 130 stopped and resumable."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        if arguments[:1] == ["data"]:
            given = arguments[1:] or ["--help"]
            tyro.extras.subcommand_cli_from_dict(DATA_COMMANDS, prog="diffclip data", args=given)
            return
        available = dict(COMMANDS)
        if arguments[:1] == ["train"]:
            arguments = [{"true": "True", "false": "False"}.get(a, a) for a in arguments]  # recipes write them so
            # The recipe gives the defaults of the options, so it is read before they are parsed.
            recipe = next((a for a in arguments[1:] if a.endswith(".toml")), None)
            if recipe is not None:
                available["train"] = train_command(load_recipe(recipe))
        tyro.extras.subcommand_cli_from_dict(available, prog="diffclip", args=arguments or ["--help"])
    except UserError as error:
        sys.exit(f"diffclip: {error}")
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # torchrun's other processes stop for the same reason
            print(f"diffclip: {stopped}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

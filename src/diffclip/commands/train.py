"""`diffclip train`: arguments, the run, what is printed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from diffclip.config import Recipe, revalidate
from diffclip.errors import UserError
from diffclip.recipe_files import run_name


def train_command(settings: Recipe, read: str | None = None, typed: Sequence[str] = ()) -> Callable[..., None]:
    """The `train` command whose settings default to those of a recipe that is already read, from the file `read`.

    typed: the words of the command line after the recipe.
    """

    def train(
        recipe: Positional[Path],
        /,
        *,
        out: Path | None = None,
        resume: bool = False,
        accept_changed_data: bool = False,
        allow_pipe: bool = False,
        dry_run: bool = False,
        settings: Annotated[FlagConversionOff[Recipe], arg(name="")] = settings,
    ) -> None:
        """Train a model by a recipe, whose settings are options: --section.key value.

        Args:
            recipe: The recipe: a TOML file, or the name of one that the package has, such as quickstart.
            out: The run directory; by default runs/NAME, NAME being the recipe's file name.
            resume: Go on from the newest good checkpoint of the run directory; begin where there is none.
            accept_changed_data: With --resume: go on though data have changed since the run began, and write that down.
            allow_pipe: Let the recipe file train on pipe:COMMAND. A path typed after --data.train.path needs no leave.
            dry_run: Print shapes, parameters, steps, schedule and memory, and stop.
        """

        from diffclip.evaluation.run.hooks import check_evaluations

        if read is None or recipe != Path(read):
            raise UserError(f"the recipe has to come before the options: diffclip train {recipe} …")
        final = revalidate(settings)
        check_evaluations(final)
        if dry_run:
            print_dry_run(final)
        else:
            path = final.data.train.path
            allowed = allow_pipe or path != settings.data.train.path or path in _values(typed)
            place = out or run_name(recipe)
            run(final, place, resume=resume, accept_changed_data=accept_changed_data, allow_pipe=allowed)

    return train


def _values(typed: Sequence[str]) -> list[str]:
    return [word.removeprefix("--data.train.path=") for word in typed]


def run(
    recipe: Recipe, directory: Path, *, resume: bool, accept_changed_data: bool = False, allow_pipe: bool = False
) -> None:
    """Train, evaluate as the recipe says, and write the run's results.jsonl; with the other processes of torchrun."""
    from diffclip.distributed import joined
    from diffclip.evaluation.run.hooks import evaluate_run, evaluators
    from diffclip.evaluation.run.progress import raise_failures
    from diffclip.terminal import Terminal
    from diffclip.training import setup

    console = Terminal()
    with joined() as world:
        watched = evaluators(recipe)
        setup.train(
            recipe,
            directory,
            resume=resume,
            accept_changed_data=accept_changed_data,
            allow_pipe=allow_pipe,
            evaluators=watched,
        )
        failures = evaluate_run(directory, world, console)
    if world.is_main:
        console.print(
            f"The model is in {directory}: diffclip.load({str(directory)!r})", highlight=False, soft_wrap=True
        )
        raise_failures(failures)


def print_dry_run(recipe: Recipe) -> None:
    """What a recipe would do, as rows."""
    from rich.table import Table

    from diffclip.terminal import Terminal
    from diffclip.training import dry_run

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, value in dry_run.describe(recipe):
        table.add_row(what, value)
    Terminal().print(table, highlight=False)

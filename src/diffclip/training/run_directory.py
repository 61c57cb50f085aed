"""The directory of a run: claim_directory by one process at a time, for one recipe."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffclip import durable
from diffclip.config import Recipe, load_recipe, parse_recipe, same_run
from diffclip.errors import UserError
from diffclip.reading import read_text
from diffclip.training import data_record
from diffclip.training.data_record import Facts

RECIPE, LOCK = "recipe.toml", ".lock"


def same_recipe(before: str, now: str, where: str) -> bool:
    """Whether two recipes of a CLIP compute the same. Raises UserError where the first is none."""
    return same_run(parse_recipe(before, where), parse_recipe(now, where))


@contextmanager
def claim_directory(
    run: Path,
    recipe: str,
    resume: bool,
    data: Facts | None = None,
    *,
    accept_changed_data: bool = False,
    same: Callable[[str, str, str], bool] = same_recipe,
) -> Iterator[bool]:
    """Make the run directory and keep other processes out of it; yields whether to go on from its checkpoints.

    recipe: as TOML. data: what it reads from outside. The directory keeps both. same: whether two recipes, as TOML,
    compute the same; the third text names where the first lies.

    A run is gone on with on `resume`, and where torchrun has restarted this process after it, or one beside it, died.
    Raises UserError where the directory cannot be written, another process trains in it, it holds another run,
    or its data have changed, unless `accept_changed_data`.
    """
    with ExitStack() as until:
        with _errors(run):
            run.mkdir(parents=True, exist_ok=True)
            busy = f"another process is training in {run}: wait for it, or give another --out"
            lock = until.enter_context(durable.locked(run / LOCK, busy))
        launch = _launch()
        if launch is not None:
            restarted = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0
            resume = resume or (restarted and os.pread(lock, 200, 0) == launch)
        held = _holds_this_run(run, recipe, resume, same)
        record: dict[str, Any] = {"data": data, "changed": []}
        if held and data is not None:
            record = data_record.check(run, data, accept=accept_changed_data)
        with _errors(run):
            if data is not None:
                data_record.write(run, record)
            durable.write_bytes(run / RECIPE, recipe.encode(errors="surrogateescape"))  # a path may be any bytes
            for folder in (run, run / "checkpoints", run / "tensorboard"):
                durable.remove_unfinished(folder)
        if launch is not None:
            os.ftruncate(lock, 0)
            os.pwrite(lock, launch, 0)
        yield resume


def holds(run: Path, recipe: Recipe) -> bool:
    """Whether the directory's run computes what `recipe` would. Raises UserError where it holds none."""
    return same_run(load_recipe(run / RECIPE, typed=False), recipe)


@contextmanager
def _errors(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to the run directory {run}: {error.strerror}") from None


def _launch() -> bytes | None:
    """What tells one start of torchrun from the next, the same for every restart of its workers."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    return f"torchrun {os.environ.get('TORCHELASTIC_RUN_ID')} {os.getppid()}".encode()


def _holds_this_run(run: Path, recipe: str, resume: bool, same: Callable[[str, str, str], bool]) -> bool:
    """Whether the directory holds the run already. Raises UserError where it may not go on."""
    path = run / RECIPE
    if not path.exists():
        return False
    if not resume:
        raise UserError(f"{run} holds a run already: give --resume to go on with it, or another --out")
    try:
        before = read_text(path, errors="surrogateescape")  # a path may be any bytes
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not same(before, recipe, str(path)):
        raise UserError(
            f"{run} holds a run of another recipe: resume with the settings of {path}, or put that file back, or "
            "delete it, where somebody has edited it"
        )
    return True

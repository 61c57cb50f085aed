"""A sweep on data of one's own: the pairs that are held out of training, and sizes that fit the number of pairs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffclip.config import SourceConfig
from diffclip.data.sources import Source, open_source
from diffclip.errors import UserError
from diffclip.recipe_files import merge_tables
from diffclip.sweep_config import Sweep, recipe_of

HOLDOUT = "holdout"
"""As the path of a data set of a sweep: what the training data leave out."""
SHARE, MOST = 10, 1000
"""One of so many pairs is held out, and at most so many."""
FEWEST_STEPS, LARGEST_BATCH = 8, 256
FEWEST = 20
"""Pairs below which nothing can be compared."""


def held_out(sweep: Sweep) -> Source:
    """The pairs that the training data of a sweep leave out."""
    return _open(replace(_training_data(sweep), part="holdout"))


def fit_sizes(sweep: Sweep) -> tuple[Sweep, str]:
    """A sweep that says `fit` with as many pairs held out, and batches as large, as their number allows; in words too.

    What the sweep sets itself stays, and another sweep as it is. Raises UserError where the pairs are not there, or too
    few, where no data set is the holdout, and where a sweep would train on what it holds out.
    """
    if not sweep.fit:
        if HOLDOUT in sweep.data.values():
            _check_kept_apart(sweep)
        return sweep, ""
    if HOLDOUT not in sweep.data.values():
        raise UserError(
            f'fit = true is for a sweep that measures on what it holds out: give [data] a NAME = "{HOLDOUT}"'
        )
    data = _training_data(sweep)
    if not data.path:
        raise UserError("the sweep trains on pairs of your own: say where they lie, --set data.train.path=DIR")
    pairs = len(_open(replace(data, part="all")))
    if pairs < FEWEST:
        raise UserError(f"{data.path} has {pairs} pairs: a comparison needs at least {FEWEST}")
    held = min(max(pairs // SHARE, 2), MOST)
    held = int(stated(sweep.set, "data", "train", "holdout") or held)
    batch = LARGEST_BATCH
    while batch > 2 and batch * FEWEST_STEPS > pairs - held:
        batch //= 2
    batch = int(stated(sweep.set, "training", "batch_size") or batch)
    sizes = {"data": {"train": {"holdout": held, "part": "train"}}, "training": {"batch_size": batch}}
    said = f"{pairs:,} pairs: {held:,} held out to measure on, {pairs - held:,} to train on in batches of {batch}"
    return replace(sweep, set=merge_tables(sweep.set, sizes)), said


def _check_kept_apart(sweep: Sweep) -> None:
    for variant in sweep.variant:
        data = recipe_of(sweep, variant, sweep.seeds[0]).data.train
        if not data.holdout or data.part != "train":
            raise UserError(
                f"{variant.name} would train on what the sweep measures on, or nothing is held out: set "
                'data.train.holdout and data.train.part = "train", or let fit = true choose how many'
            )


def _training_data(sweep: Sweep) -> SourceConfig:
    return recipe_of(sweep, sweep.variant[0], sweep.seeds[0]).data.train


def _open(config: SourceConfig) -> Source:
    return open_source(**vars(config))


def stated(table: Mapping[str, Any], *keys: str) -> Any:
    """What a nested table has at these keys; None for nothing."""
    for key in keys:
        table = table.get(key, {}) if isinstance(table, Mapping) else {}
    return table or None

"""Which data a run began with: written into its directory, and compared when it goes on."""

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from diffclip import durable, reading
from diffclip.config import Recipe
from diffclip.data.content import content_digest
from diffclip.data.formats.stamp import Stamped
from diffclip.data.formats.stream import is_stream
from diffclip.data.sources import Source, open_source
from diffclip.errors import UserError
from diffclip.models.weights.store import fingerprint, load_trainable

log = logging.getLogger(__name__)

DATA = "data.json"
ACCEPT = "--accept-changed-data"
START = "model.start"
SAMPLE = 64
"""Examples, spread over a data set, by which a copy is known as such."""

Facts = dict[str, dict[str, Any]]
"""Data set ("data.train", "evaluation NAME"), or "model.start" → what tells whether it is still the same."""


def facts_of(recipe: Recipe, train: Source) -> Facts:
    """What a recipe reads from outside, as it is now. An evaluation that cannot be opened is left to say so itself."""
    facts = {"data.train": _facts(train)}
    if recipe.model.start:
        facts[START] = {"stamp": fingerprint(load_trainable(recipe.model.start, what="training"))}
    for evaluation in recipe.evaluation:
        config = evaluation.source(recipe.data.train)
        if config.path and not is_stream(config.path):
            try:
                facts[f"evaluation {evaluation.name}"] = _facts(open_source(**vars(config)))
            except UserError:
                continue
    return facts


def _facts(source: Source) -> dict[str, Any]:
    texts = repr((source.classnames, source.templates)).encode(errors="surrogatepass")
    return {
        "examples": len(source),
        "classes": len(source.classnames or ()),
        "texts": hashlib.sha256(texts).hexdigest(),
        "stamp": source.stamp() if isinstance(source, Stamped) else None,
        "sample": content_digest(source, _spread(len(source))) if isinstance(source, Stamped) else None,
    }


def _spread(count: int) -> list[int]:
    """Up to `SAMPLE` places of `count`, evenly."""
    return [number * count // SAMPLE for number in range(SAMPLE)] if count > SAMPLE else list(range(count))


def differences(before: Facts, now: Facts) -> list[str]:
    """What has changed, in words: one text a data set."""
    texts = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            texts.append(f"{name} {'cannot be opened any more' if old else 'could not be opened before'}")
            continue
        found = []
        for key, unit in (("examples", "examples"), ("classes", "class names")):
            if old.get(key) != new.get(key):
                found.append(f"{old.get(key):,} {unit} before, {new[key]:,} now")
        if not found and old.get("texts") != new.get("texts"):
            found.append("other class names or templates")
        if not found and name == START and old.get("stamp") != new["stamp"]:
            found.append("other weights")
        elif not found and old.get("stamp") != new["stamp"] and not _same_sample(old, new):
            found.append("as many examples, but other images, captions or labels, or in another order")
        texts += [f"{name}: {', '.join(found)}"] if found else []
    return texts


def copies(before: Facts, now: Facts) -> list[str]:
    """The data sets whose files were moved, copied or touched, with the same content as far as the sample tells."""
    return [name for name, new in now.items() if before[name].get("stamp") != new["stamp"]]


def _same_sample(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return new["sample"] is not None and old.get("sample") == new["sample"]


def check(run: Path, facts: Facts, *, accept: bool = False) -> dict[str, Any]:
    """What the directory's record is to be, where a run that it holds goes on with these data.

    Warns where the record is missing, as in runs of earlier versions, where files are others but `SAMPLE` examples are
    the same, and where `accept` lets changed data pass, which the record then says. Raises UserError where data have
    changed, or the record cannot be read.
    """
    path = run / DATA
    if not path.exists():
        log.warning("%s does not say which data it began with: whether they are still the same is not known", run)
        return {"data": facts, "changed": []}
    try:
        record = reading.parse_json(reading.read_text(path))
        before = dict(record["data"])
        changed, found = list(record["changed"]), differences(before, facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} cannot be read: restore it, or delete it and resume without a comparison") from None
    unseen = [name for name, now in facts.items() if now["stamp"] is None]
    if unseen:
        log.warning("%s: whether its content has changed since the run began cannot be seen", ", ".join(unseen))
    if not found:
        if copied := copies(before, facts):
            log.warning(
                "%s: files of other places, sizes or times than when %s began. There are as many examples, and %s that "
                "were compared are the same: it counts as the same data",
                ", ".join(copied),
                run,
                f"{SAMPLE} spread over it" if max(facts[name]["examples"] for name in copied) > SAMPLE else "all",
            )
        return {"data": facts, "changed": changed}
    what = "; ".join(found)
    if not accept:
        raise UserError(
            f"the data have changed since {run} began ({what}): put them back, begin again with another --out, or go "
            f"on with them by diffclip train … --resume {ACCEPT}"
        )
    log.warning("%s goes on with other data than it began with, as %s says: %s", run, ACCEPT, what)
    return {"data": facts, "changed": [*changed, {"when": datetime.now(timezone.utc).isoformat(), "what": found}]}


def write(run: Path, record: Mapping[str, Any]) -> None:
    """Keep the record. Raises OSError where the directory cannot be written."""
    durable.write_text(run / DATA, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

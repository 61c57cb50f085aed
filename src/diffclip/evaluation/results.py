"""Results on disk: one JSON line a result, with the keys of the LAION CLIP benchmark, so its tools read ours.

`results.jsonl` holds the numbers. What each test example adds to each metric, which a paired comparison
needs, lies beside it in `examples/`, one safetensors file a result.
"""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffclip import durable
from diffclip.errors import UserError
from diffclip.reading import named, read_text

log = logging.getLogger(__name__)

Key = tuple[str, str, str, str]

NOT_SCORES = ("C", "std", "acc1_sd")
"""What `metrics` may hold that is no score: a probe's C, deviations between few-shot episodes and between draws."""


MAX_SKIPPED = 0.01
"""Share of a split's images that may be missing or unreadable before a command says so by its exit status."""


@dataclass(frozen=True, kw_only=True)
class ImagesRead:
    """How many images of a split a result comes from."""

    n: int
    """Images that were read."""
    n_expected: int
    """Images that the data set names, or those of a sample of it."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """The others, by reason."""

    @property
    def share_skipped(self) -> float:
        return 1 - self.n / self.n_expected if self.n_expected else 0.0

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.n_expected - self.n:,} of {self.n_expected:,} ({reasons or 'no reason known'})"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one data set and task; metrics are fractions.

    What comes after `language` is absent in the results of other programs and of earlier versions: None.
    """

    dataset: str
    model: str
    pretrained: str
    task: str
    metrics: Mapping[str, float]
    language: str = "en"
    n: int | None = None
    """Test images that were read."""
    n_expected: int | None = None
    """Test images that there should be."""
    skipped: Mapping[str, int] | None = None
    """Why the others were not read: reason → how many."""
    learned_from: Mapping[str, Mapping[str, Any]] | None = None
    """The same three of the other splits that the task read, such as "train"."""

    @property
    def images(self) -> dict[str, ImagesRead]:
        """Split → what was read of it, as far as the line says."""
        found = {} if self.n is None or self.n_expected is None else {"test": self._read}
        return found | {split: ImagesRead(**numbers) for split, numbers in (self.learned_from or {}).items()}

    @property
    def _read(self) -> ImagesRead:
        return ImagesRead(n=self.n or 0, n_expected=self.n_expected or 0, skipped=self.skipped or {})

    @property
    def key(self) -> Key:
        """What a later result replaces."""
        return (self.dataset, self.model, self.pretrained, self.task)


@dataclass(frozen=True)
class Failure:
    """What could not be done, and why. Without a task, the data set could not be opened."""

    data: str
    reason: str
    pretrained: str | None = None
    """Of the model with which it could not be done, where another could."""
    task: str | None = None
    partial: bool = False
    """It was done, but from less than there should be."""

    def __str__(self) -> str:
        what = f"{self.data} {self.task or ''}".strip()
        return f"{what}{f' with {self.pretrained}' if self.pretrained else ''}: {self.reason}"


def append(path: Path, result: Result) -> None:
    """Add a line, lasting once this returns; processes may share a file. Raises ValueError for NaN, and OSError."""
    table = {name: value for name, value in asdict(result).items() if value is not None}
    if not all(map(_is_score, result.metrics.values())):
        raise ValueError(f"metrics that are no finite numbers: {dict(result.metrics)}")
    durable.append(path, durable.json_line(table))


def read(path: Path) -> list[Result]:
    """Every result of a file, the last line of each key, in the order in which keys first appear.

    A file that does not exist has none. A line that is not JSON, which only a crash leaves, is skipped with a
    warning; a line with other keys raises UserError. Lines need not say how many images were read.
    """
    if not path.exists():
        return []
    try:
        lines = read_text(path, errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    results = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            table = json.loads(line)
        except (ValueError, RecursionError):
            log.warning("%s line %d is not JSON and was skipped: a write was cut short", path, number)
            continue
        expected = [field.name for field in fields(Result) if field.name not in COUNTS]
        if not isinstance(table, dict) or sorted(table.keys() - COUNTS) != sorted(expected):
            keys = ", ".join(table) if isinstance(table, dict) else type(table).__name__
            raise UserError(f"{path} line {number}: expected the keys {', '.join(expected)}, found {keys}")
        if not all(isinstance(table[name], str) for name in expected if name != "metrics"):
            raise UserError(f"{path} line {number}: expected text for all keys but metrics")
        metrics = table["metrics"]
        if not isinstance(metrics, dict) or not all(_is_score(value) for value in metrics.values()):
            raise UserError(
                f"{path} line {number}: expected metrics as finite numbers by name, found {str(metrics)[:80]}"
            )
        if not _are_counts(table):
            raise UserError(
                f"{path} line {number}: expected whole numbers as n and n_expected, and numbers by reason as skipped"
            )
        results.append(Result(**table))
    return merge(results)


COUNTS = frozenset({"n", "n_expected", "skipped", "learned_from"})


def _are_counts(table: Mapping[str, Any]) -> bool:
    """Whether what a line says of how many images were read is in the form of `Result`."""
    numbers = [table.get("n", 0), table.get("n_expected", 0)]
    skipped, others = table.get("skipped", {}), table.get("learned_from", {})
    if not isinstance(skipped, dict) or not isinstance(others, dict):
        return False
    if not all(type(number) is int and number >= 0 for number in (*numbers, *skipped.values())):
        return False
    names = COUNTS - {"learned_from"}
    return all(isinstance(other, dict) and other.keys() == names and _are_counts(other) for other in others.values())


def _is_score(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def merge(results: Iterable[Result]) -> list[Result]:
    """Of results with the same key only the last, in the order in which keys first appear."""
    return list({result.key: result for result in results}.values())


@dataclass(frozen=True)
class PerExampleScores:
    """What each test example adds to each metric of a result, and what a guess would score."""

    indices: Tensor
    """(N,) int64: which examples of the data set; two results compare pair by pair where these are equal."""
    values: Mapping[str, Tensor]
    """metric → (N,) float; NaN where the example has no part in it. The mean of the others is the metric."""
    chance: Mapping[str, float]
    """metric → what guessing at random scores."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What else the result says, of `NOT_SCORES`; not kept with the examples."""
    skipped: Mapping[str, int] = field(default_factory=Counter)
    """Images of a task's own sample that could not be read, by reason; not kept with the examples."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics, as fractions, and the facts."""
        return {name: values.double().nanmean().item() for name, values in self.values.items()} | dict(self.facts)


def save_examples(results: Path, key: Key, examples: PerExampleScores, fingerprint: str) -> None:
    """Write the file that belongs to a result of `results` (a results.jsonl), whole or not at all.

    fingerprint: of the weights and the data that the result came from, see `fingerprint`.
    """
    tensors = {f"value/{name}": values.float().contiguous() for name, values in examples.values.items()}
    metadata = {"chance": json.dumps(dict(examples.chance)), "fingerprint": fingerprint}
    durable.write_tensors(examples_path(results, key), {"indices": examples.indices, **tensors}, metadata)


def load_examples(results: Path, key: Key) -> PerExampleScores | None:
    """The examples of a result; None where there are none, as for results that another program wrote."""
    path = examples_path(results, key)
    if not path.exists():
        return None
    with _open(path) as file:
        chance = json.loads(file.metadata()["chance"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values = {name.removeprefix("value/"): values for name, values in tensors.items() if name != "indices"}
    return PerExampleScores(tensors["indices"], values, chance)


def count_examples(results: Path, key: Key) -> int | None:
    """How many test examples a result is of; None where they are not kept."""
    path = examples_path(results, key)
    if not path.exists():
        return None
    with _open(path) as file:
        return int(file.get_slice("indices").get_shape()[0])


def stored_fingerprint(results: Path, key: Key) -> str | None:
    """What the examples of a result came from; None where there are none."""
    path = examples_path(results, key)
    if not path.exists():
        return None
    with _open(path) as file:
        digest: str = file.metadata()["fingerprint"]
        return digest


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with named(path) as name, safe_open(name, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and evaluate again") from None


def examples_path(results: Path, key: Key) -> Path:
    """Readable, and distinct even where two keys read alike."""
    readable = re.sub(r"[^\w.-]+", "_", "-".join((key[0], key[3], key[1])))[:80]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:10]
    return results.parent / "examples" / f"{readable}-{digest}.safetensors"

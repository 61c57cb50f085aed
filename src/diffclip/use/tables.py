"""Rows of results as CSV, JSON lines or parquet, written while they are made."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffclip import durable
from diffclip.errors import UserError
from diffclip.use.classify import Classified

ENDINGS = (".csv", ".jsonl", ".parquet")
GROUP = 4096
"""Rows of a group of a parquet file."""

Write = Callable[[Classified, str | None], None]
"""A picture, and the label that was chosen for it; None for none of these, or for a picture that was not read."""


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Raises UserError for a name with another ending."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{path}: its name must end in one of {', '.join(endings)}")


@contextmanager
def writing(path: Path, labels: Sequence[str]) -> Iterator[Write]:
    """A table of classified pictures: picture, label, problem, and the probability of each label.

    In CSV and parquet a label is a column `p:LABEL`; a line of JSON has them in `probabilities`. The file takes its
    name once all rows are there. Raises OSError.
    """
    with durable.writing(path) as unfinished:
        ending = path.suffix.lower()
        if ending == ".parquet":
            with _parquet(unfinished, labels) as write:
                yield write
            return
        with unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            if ending == ".csv":
                table = csv.writer(file)
                table.writerow(["picture", "label", "problem", *(f"p:{label}" for label in labels)])

                def write_csv(row: Classified, label: str | None) -> None:
                    probabilities = [""] * len(labels) if row.problem else [f"{p:.6g}" for p in row.probabilities]
                    table.writerow([row.picture, label or "", row.problem or "", *probabilities])

                yield write_csv
            else:

                def write_json(row: Classified, label: str | None) -> None:
                    file.write(json.dumps(_as_json(row, label), ensure_ascii=False) + "\n")

                yield write_json


def _as_json(row: Classified, label: str | None) -> dict[str, Any]:
    if row.problem:
        return {"picture": row.picture, "label": None, "problem": row.problem}
    probabilities = dict(zip(row.labels, (float(f"{p:.6g}") for p in row.probabilities), strict=True))
    return {"picture": row.picture, "label": label, "probabilities": probabilities}


@contextmanager
def _parquet(path: Path, labels: Sequence[str]) -> Iterator[Write]:
    text = [pa.field(name, pa.string()) for name in ("picture", "label", "problem")]
    schema = pa.schema([*text, *(pa.field(f"p:{label}", pa.float32()) for label in labels)])
    rows: list[tuple[Classified, str | None]] = []

    def flush() -> None:
        names = [row.picture.encode(errors="backslashreplace").decode() for row, _ in rows]
        columns = [pa.array(names), pa.array([label for _, label in rows], pa.string())]
        columns.append(pa.array([row.problem for row, _ in rows], pa.string()))
        matrix = np.stack([row.probabilities for row, _ in rows])
        columns += [pa.array(matrix[:, i], from_pandas=True) for i in range(len(labels))]
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        rows.clear()

    def write(row: Classified, label: str | None) -> None:
        rows.append((row, label))
        if len(rows) >= GROUP:
            flush()

    with pq.ParquetWriter(path, schema) as writer:
        yield write
        if rows:
            flush()

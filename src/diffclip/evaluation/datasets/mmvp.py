"""MMVP-VLM (Tong et al. 2024, "Eyes Wide Shut?"): pairs of images that CLIPs confuse, in nine patterns."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from diffclip.data.formats.paths import SUFFIXES
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import BadImage, read_image
from diffclip.errors import UserError
from diffclip.evaluation.datasets.pairs import FilePair, pattern_name
from diffclip.reading import read_text

logger = logging.getLogger(__name__)

PATTERNS, PAIRS = 9, 15  # of the benchmark


class MMVPSource:
    """The MMVP-VLM benchmark as it is published: `Questions.csv` and `MLLM_VLM Images/<type>/<id>.jpg`.

    The table has rows (id, type, statement) in any order: 2 k − 1 and 2 k are pair k, as in the benchmark's own
    script. The prompt is "a photo of " and the statement. A pattern is what its type is called, not where it
    stands. Warns where there are not nine patterns of 15 pairs. Raises UserError for a folder that is not of this
    form or lacks images.
    """

    def __init__(self, folder: Path) -> None:
        self.name = "mmvp_vlm"
        table = folder / "Questions.csv"
        statements = _statements(table)
        unpaired = next((n for n in sorted(statements) if _partner(n) not in statements), None)
        if unpaired is not None:
            raise UserError(f"{table}: statement {unpaired} has no partner, which would be {_partner(unpaired)}")
        self._pairs = [(n, n + 1) for n in sorted(statements) if n % 2]
        self._statements = statements
        for first, second in self._pairs:
            first_type, second_type = statements[first][0], statements[second][0]
            if pattern_name(first_type) != pattern_name(second_type):
                types = f"{first_type!r} and {second_type!r}"
                raise UserError(f"{table}: statements {first} and {second} are a pair, but of two types, {types}")
        self._images = _images(folder / "MLLM_VLM Images", statements)
        counts = Counter(pattern_name(statements[first][0]) for first, _ in self._pairs)
        if set(counts.values()) != {PAIRS} or len(counts) != PATTERNS:
            shown = ", ".join(f"{count} of {pattern}" for pattern, count in counts.items())
            logger.warning("%s: expected %d pairs of each of %d patterns, found %s", table, PAIRS, PATTERNS, shown)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> FilePair:
        first, second = self._pairs[index]
        return FilePair(
            self._statements[first][0],
            (self._read(first), self._read(second)),
            (f"a photo of {self._statements[first][1]}", f"a photo of {self._statements[second][1]}"),
        )

    def stamp(self) -> str:
        return stamp_of(self._images.values(), self._statements)

    def _read(self, number: int) -> bytes:
        try:
            return read_image(self._images[number])
        except BadImage as bad:
            raise UserError(f"cannot read {self._images[number]}: {bad.reason}") from None


def _partner(number: int) -> int:
    return number + 1 if number % 2 else number - 1


def _statements(table: Path) -> dict[int, tuple[str, str]]:
    """id → (type, statement). The heading is known by its first cell, which is no number."""
    try:
        text = io.StringIO(read_text(table, "utf-8-sig"), newline="")
        rows = [(number, row) for number, row in enumerate(csv.reader(text), start=1) if any(row)]
    except OSError as error:
        raise UserError(f"cannot read {table}: {error.strerror}; expected MMVP-VLM's folder") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as a table: {error}") from None
    statements: dict[int, tuple[str, str]] = {}
    for position, (number, row) in enumerate(rows):
        if position == 0 and not row[0].strip().isdecimal():
            continue
        if len(row) != 3 or not row[0].strip().isdecimal():
            raise UserError(
                f"{table} line {number}: expected a number, a type and a statement, found {len(row)} columns: {row}"
            )
        if int(row[0]) in statements:
            raise UserError(f"{table} line {number}: statement {int(row[0])} is there twice")
        statements[int(row[0])] = row[1].strip(), row[2].strip()
    if not statements:
        raise UserError(f"{table} has no statements; expected MMVP-VLM's folder")
    return statements


def _images(root: Path, statements: Mapping[int, tuple[str, str]]) -> dict[int, Path]:
    """The file of each statement's image, whatever its suffix; UserError where some are missing."""
    if not root.is_dir():
        raise UserError(f"there is no {root}; expected MMVP-VLM's folder")
    folders = {pattern_name(folder.name): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
    files = {
        (pattern, file.stem): file
        for pattern, folder in folders.items()
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    }
    paths = {number: files.get((pattern_name(type_), str(number))) for number, (type_, _) in statements.items()}
    missing = [root / statements[number][0] / f"{number}.jpg" for number, file in paths.items() if file is None]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}: download again")
    return {number: file for number, file in paths.items() if file}

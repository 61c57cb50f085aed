"""SugarCrepe (Hsieh et al. 2023): COCO's val2017 images, each with a caption and a hard negative of it.

The authors' seven files, `replace_obj.json` and so on, hold {"0": {"filename", "caption", "negative_caption"}, …}.
"""

import logging
from pathlib import Path

from diffclip.errors import UserError
from diffclip.evaluation.datasets.image_files import ImageFiles
from diffclip.reading import parse_json, read_text

logger = logging.getLogger(__name__)

COUNTS = {
    "replace_obj": 1652,
    "replace_att": 788,
    "replace_rel": 1406,
    "swap_obj": 246,
    "swap_att": 666,
    "add_obj": 2062,
    "add_att": 692,
}
"""Examples of each kind: 7,512 in all (Hsieh et al. 2023, "SugarCrepe: Fixing Hackable Benchmarks")."""
IMAGES = "val2017"


class SugarCrepeSource(ImageFiles):
    """Every example of the seven files, kind by kind: an image with its caption and, second, the hard negative.

    folder: holds the seven files, itself or in `data`. The images lie beside them, in a folder `val2017` anywhere below
    `folder`, or in `val2017` or `coco/val2017` beside it. Warns where a kind has another number of examples than is
    published. Raises UserError where a file is missing or of another form, and where no image is there; reading an
    example whose image alone is missing raises BadImage.
    """

    role = "negatives"

    def __init__(self, folder: Path) -> None:
        files = kinds_in(folder)
        absent = [f"{kind}.json" for kind in COUNTS if kind not in files]
        if absent:
            raise UserError(f"{folder} lacks {', '.join(absent)} of SugarCrepe: download it again")
        rows = [(kind, *row) for kind, file in files.items() for row in _rows(file)]
        self.kinds = tuple(kind for kind, *_ in rows)
        """The kind of each example, one of `COUNTS`."""
        counts = {kind: self.kinds.count(kind) for kind in COUNTS}
        if counts != COUNTS:
            others = [
                f"{counts[kind]:,} of {kind} ({COUNTS[kind]:,})" for kind in COUNTS if counts[kind] != COUNTS[kind]
            ]
            logger.warning("%s: other counts than the published ones: %s", folder, ", ".join(others))
        places = (folder, *sorted(folder.rglob(IMAGES)), folder.parent / IMAGES, folder.parent / "coco" / IMAGES)
        names = {name for _, name, *_ in rows}
        place = next((place for place in places if any((place / name).is_file() for name in names)), None)
        if place is None:
            raise UserError(f"none of the {len(names):,} images of {folder} is there: put COCO's {IMAGES} into it")
        captions = [(caption, negative) for *_, caption, negative in rows]
        super().__init__("sugarcrepe", [place / name for _, name, *_ in rows], captions=captions)


def kinds_in(folder: Path) -> dict[str, Path]:
    """The files of SugarCrepe in a folder, or in its folder `data`, by kind, in the order of `COUNTS`."""
    files = {kind: path for kind in COUNTS for path in _candidates(folder, kind) if path.is_file()}
    return {kind: files[kind] for kind in COUNTS if kind in files}


def _candidates(folder: Path, kind: str) -> tuple[Path, Path]:
    return folder / "data" / f"{kind}.json", folder / f"{kind}.json"


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """(image file, caption, negative) of each example. Raises UserError for a file of another form."""
    try:
        table = parse_json(read_text(file, "utf-8-sig"))
        rows = [(row["filename"], row["caption"], row["negative_caption"]) for row in table.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no file of SugarCrepe: {type(error).__name__} {error}") from None
    wrong = next((row for row in rows if not all(isinstance(text, str) and text for text in row)), None)
    if wrong or not rows:
        raise UserError(f"{file}: expected filename, caption and negative_caption as text, found {wrong or 'nothing'}")
    outside = next((name for name, *_ in rows if Path(name).name != name), None)
    if outside:
        raise UserError(f"{file}: expected a file name such as 000000085329.jpg, found {outside}")
    return rows

"""The corpus of broken and malicious files: what there is, and a folder of them to look at.

    python tests/hostile/make.py DIR      # write all of them into DIR, a folder each

Nothing in it is harmful to look at. The pickles among them would create a file when loaded by a careless program.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import hostile_images
import hostile_places
import hostile_recipes
import hostile_tables
import hostile_tars
import hostile_texts
import hostile_weights
from hostile_case import Case


def cases() -> list[Case]:
    """All cases; their names are distinct."""
    tables = (hostile_tars, hostile_images, hostile_tables, hostile_places, hostile_texts)
    modules = (*tables, hostile_weights, hostile_recipes)
    return [case for module in modules for case in module.CASES]


if __name__ == "__main__":
    for case in cases():
        folder = Path(sys.argv[1]) / re.sub(r"[^\w/.-]+", "_", case.name)
        folder.mkdir(parents=True)
        case.build(folder)
    print(f"{len(cases())} cases in {sys.argv[1]}")

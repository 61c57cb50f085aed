"""Write the table of docs/dependencies.md: the packages of requirements-hashed.txt that are installed, with licences.

python docs/licences.py
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = "| package | version | licence |\n|---|---|---|\n"


def pinned() -> dict[str, str]:
    """Package → the first version that requirements-hashed.txt pins it to."""
    text = (ROOT / "requirements-hashed.txt").read_text()
    found = re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE)
    return dict(reversed(found))


def licence(package: Distribution) -> str:
    """As the package's own metadata state it, in one line."""
    metadata = package.metadata
    classifiers = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if text[:7] == "License"]
    stated = metadata.get("License-Expression") or ", ".join(classifiers) or metadata.get("License") or ""
    return next((line for line in stated.split("\n") if line), "not stated in its metadata")


def table() -> str:
    """The rows, by name."""
    rows = []
    for name in sorted(pinned()):
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        rows.append(f"| {name} | {package.version} | {licence(package)} |\n")
    return HEADING + "".join(rows)


if __name__ == "__main__":
    page = ROOT / "docs" / "dependencies.md"
    page.write_text(page.read_text().partition(HEADING)[0] + table())

"""`{a,b}` and `{000..012}` in the names of files and addresses."""

from __future__ import annotations

import math
import re
from itertools import product

from diffclip.errors import UserError

MOST_FILES = 1 << 20


def expand_braces(pattern: str) -> list[str]:
    """`{a,b}` and `{000..012}` as the shell expands them; other braces stay."""
    parts = re.split(r"(\{[^{}]*\})", pattern)
    choices: list[list[str]] = []
    for part in parts:
        inner = part[1:-1]
        numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inner, re.ASCII)
        if part.startswith("{") and numbers:
            first, last = numbers.groups()
            if int(last) - int(first) >= MOST_FILES:
                raise UserError(f"{pattern[:200]} stands for {int(last) - int(first) + 1:,} files")
            choices.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
        else:
            choices.append(inner.split(",") if part.startswith("{") and "," in inner else [part])
    if math.prod(map(len, choices)) > MOST_FILES:
        raise UserError(f"{pattern[:200]} stands for more than {MOST_FILES:,} files")
    return ["".join(choice) for choice in product(*choices)]

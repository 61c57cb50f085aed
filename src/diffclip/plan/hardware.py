"""Accelerators: what their makers state, and what an hour costs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import tomli

from diffclip.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind, as hardware.toml describes it."""

    name: str
    title: str
    peak: float
    """Floating-point operations a second, dense bfloat16."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second, of its memory."""
    link: float
    """Bytes a second that one sends to the others of its machine."""
    network: float
    """Bytes a second that one sends to other machines."""
    cores: int
    """Of the processor, for each accelerator."""
    dollars: float | None
    """An hour of one."""


@dataclass(frozen=True)
class Machines:
    """`count` accelerators of a kind, in machines of at most eight."""

    count: int
    kind: Accelerator

    @property
    def slowest_link(self) -> float:
        """Bytes a second of the slowest link between two of them."""
        return self.kind.link if self.count <= PER_MACHINE else self.kind.network


PER_MACHINE = 8


@cache
def _tables() -> dict[str, Any]:
    return tomli.loads(files(__package__).joinpath("hardware.toml").read_text(encoding="utf-8"))


def accelerators() -> dict[str, Accelerator]:
    """Name → accelerator."""
    return {name: _accelerator(name, table) for name, table in _tables().items() if name != "prices"}


def _accelerator(name: str, table: dict[str, Any]) -> Accelerator:
    return Accelerator(
        name=name,
        title=table["title"],
        peak=table["peak"] * 1e12,
        memory=table["memory"] * 1e9,
        bandwidth=table["bandwidth"] * 1e9,
        link=table["link"] * 1e9,
        network=table["network"] * 1e9,
        cores=table["cores"],
        dollars=table.get("dollars"),
    )


def price_source() -> str:
    """Source and date of the prices."""
    return f"{_tables()['prices']['source']}, {_tables()['prices']['date']}"


def machines(text: str) -> Machines:
    """`8xA100`, or `A100` for one. Raises UserError for another form or an unknown name."""
    known = {name.lower(): one for name, one in accelerators().items()}
    found = re.fullmatch(r"(?:([1-9]\d{0,5})\s*[x×])?\s*([A-Za-z].*)", text.strip(), re.ASCII)
    if not found or found[2].lower() not in known:
        raise UserError(
            f"--on {text}: expected a number and a kind, such as 8xA100; kinds are {', '.join(accelerators())}"
        )
    return Machines(int(found[1] or 1), known[found[2].lower()])

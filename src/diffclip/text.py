"""Text for people: names that were meant, lists, durations, numbers in percent."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

LISTED = 20
"""Names that a message lists at most."""
LONGEST = 60
"""Characters of a name that a message shows."""


def closest(name: str, names: Iterable[str]) -> str:
    """For the end of a message about an unknown name: "; is it NAME?", or nothing."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; is it {near[0]}?" if near else ""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """For a message about an unknown name: "; did you mean NAME or NAME?", of at most three, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message: "a, b, c", at most `LISTED` of them, or "none"."""
    every = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names]
    more = [f"{len(every) - LISTED:,} more"] if len(every) > LISTED else []
    return ", ".join(every[:LISTED] + more) or "none"


def duration(seconds: float) -> str:
    """Seconds as a person would say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def percent(value: float | None, *, signed: bool = False, sd: float | None = None) -> str:
    """A fraction in percent: 0.1234 is "12.3"; signed, "+12.3", with a real minus; with sd, "12.3 ± 0.4".

    None is empty.
    """
    if value is None:
        return ""
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", "−") + (f" ± {percent(sd)}" if sd is not None else "")


def model_labels(models: Sequence[str]) -> list[str]:
    """The last part of each name, or the whole where two models share it; the same model twice is counted."""
    last = [Path(model).name or model for model in models]
    labels = last if len(set(last)) == len(last) else list(models)
    return [label if labels.count(label) == 1 else f"{label} ({i + 1})" for i, label in enumerate(labels)]


def say_loading() -> None:
    """On a terminal, say why nothing happens for some seconds: torch and the models are read."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        print("loading …", file=sys.stderr, flush=True)

"""What is warned of while a model trains: the ways in which differential attention is known to fail.

Each rule looks at the lines of metrics.jsonl and nothing else, so that a resumed run, shown the lines that there are,
warns as it would have. docs/monitoring.md has the rules and why their thresholds are what they are.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

TOWERS = ("visual", "text")

# Where λ makes the subtraction nothing, or more than everything. Of fresh layers 4 % lie above 1, so a little beyond;
# and only λ that training moved there, by about its standard deviation at the start, counts.
LAMBDA_RANGE = (0.05, 1.2)
LAMBDA_MOVED = 0.1
# Share of log(number of visible keys). A fresh model is near 1; below this a query sees little more than one token.
COLLAPSED_ENTROPY = 0.05
# ‖A1 − λA2‖ / ‖A1‖, twice in succession: below this next to nothing is left, and the heads' norm magnifies it 20 times.
CANCELLED = 0.05
# A gradient so many times the median of the lines before, so many at the most and at the least.
SPIKE, RECENT, FEWEST = 10.0, 20, 5
# A loss that was below this share of log(batch size) and is back at it; one that stays so near to it.
FALLEN, STUCK = 0.9, 0.01
SMALL_BATCH = 1024


class Monitor:
    """Warns once a tower of what it sees in the lines of a run."""

    def __init__(self, *, batch_size: int | None, warmup_steps: int) -> None:
        """batch_size: of a contrastive loss, whose value by guessing is its logarithm; None: of another loss."""
        self._batch_size, self._warmup_steps = batch_size, warmup_steps
        self._warned: set[tuple[str, str]] = set()
        self._first_lambdas: dict[str, list[float]] = {}
        self._cancelled: dict[str, set[int]] = {}
        self._norms: deque[float] = deque(maxlen=RECENT)
        self._losses: deque[float] = deque(maxlen=RECENT)  # after the warm-up
        self._lowest_loss = math.inf  # of the means over FEWEST lines

    def watch(self, record: Mapping[str, Any]) -> list[str]:
        """The warnings that a line of metrics.jsonl gives rise to, each of one line."""
        warnings = []
        for tower in TOWERS:
            warnings += self._lambdas(record, tower)
            warnings += self._entropies(record, tower)
            warnings += self._cancellation(record, tower)
        warnings += self._instability(record)
        return [f"step {record['step']}: {warning}" for warning in warnings]

    def _lambdas(self, record: Mapping[str, Any], tower: str) -> list[str]:
        values = record.get(f"lambda_{tower}", [])
        first = self._first_lambdas.setdefault(tower, values)
        low, high = LAMBDA_RANGE
        moved = [abs(value - start) > LAMBDA_MOVED for value, start in zip(values, first, strict=True)]
        above = _shown(values, [value > high and far for value, far in zip(values, moved, strict=True)])
        below = _shown(values, [value < low and far for value, far in zip(values, moved, strict=True)])
        found = []
        if above:
            found += self._once(
                "λ above",
                tower,
                f"λ has grown above {high:g} in {tower} {above}: more is subtracted than there is; "
                "lower optimizer.lr or lambda_init",
            )
        if below:
            found += self._once(
                "λ below",
                tower,
                f"λ has fallen below {low:g} in {tower} {below}: the subtraction does nothing there, or adds; "
                "lower optimizer.lr",
            )
        return found

    def _entropies(self, record: Mapping[str, Any], tower: str) -> list[str]:
        values = record.get(f"entropy_{tower}", [])
        layers = _shown(values, [value < COLLAPSED_ENTROPY for value in values], percent=True)
        if not layers:
            return []
        return self._once(
            "entropy",
            tower,
            f"attention has collapsed in {tower} {layers} of the largest entropy: a query sees one token; "
            "lower optimizer.lr",
        )

    def _cancellation(self, record: Mapping[str, Any], tower: str) -> list[str]:
        values = record.get(f"left_{tower}", [])
        if not values or record["step"] <= self._warmup_steps:
            return []
        now = {layer for layer, value in enumerate(values) if value < CANCELLED}
        lasting = now & self._cancelled.get(tower, set())
        self._cancelled[tower] = now
        if not lasting:
            return []
        layers = _shown(values, [layer in lasting for layer in range(len(values))], percent=True)
        return self._once(
            "cancelled",
            tower,
            f"the subtraction leaves next to nothing in {tower} {layers} of A1: fine detail goes first; lower "
            'lambda_init, or give early layers less of it by lambda_schedule = "depth"',
        )

    def _instability(self, record: Mapping[str, Any]) -> list[str]:
        norm, chance = record.get("grad_norm"), math.log(self._batch_size) if self._batch_size else math.inf
        usual = statistics.median(self._norms) if len(self._norms) >= FEWEST else math.inf
        if norm is not None:
            self._norms.append(norm)
        what = f"the gradient is {norm / usual:.0f} times what it was" if norm and norm > SPIKE * usual else None
        if record["step"] > self._warmup_steps:
            self._losses.append(record["loss"])
            if len(self._losses) >= FEWEST:
                loss = statistics.fmean(list(self._losses)[-FEWEST:])
                if loss > chance > self._lowest_loss / FALLEN:
                    what = what or f"the loss is {loss:.2f}, that of guessing, after {self._lowest_loss:.2f}"
                self._lowest_loss = min(self._lowest_loss, loss)
            if len(self._losses) == RECENT and all(abs(loss / chance - 1) < STUCK for loss in self._losses):
                what = what or f"the loss stays at {chance:.2f}, that of guessing"
        if what is None:
            return []
        advice = "lower optimizer.lr or lengthen optimizer.warmup_epochs"
        if self._batch_size and self._batch_size < SMALL_BATCH:
            advice += (
                f", or raise training.batch_size, {self._batch_size}: differential attention asks for {SMALL_BATCH}"
            )
        return self._once("unstable", "", f"training is unstable: {what}; {advice}")

    def _once(self, what: str, tower: str, message: str) -> list[str]:
        if (what, tower) in self._warned:
            return []
        self._warned.add((what, tower))
        return [message]


def _shown(values: list[float], chosen: list[bool], *, percent: bool = False) -> str:
    """`layer 3 (1.25), layer 7 (1.31)`, the first being 1 as in figures, or nothing where none is chosen."""
    form = "{:.1%}" if percent else "{:.2f}"
    named = zip(values, chosen, strict=True)
    return ", ".join(
        f"layer {layer} ({form.format(value)})" for layer, (value, yes) in enumerate(named, start=1) if yes
    )

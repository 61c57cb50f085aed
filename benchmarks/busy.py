"""What do waiting threads cost, on an idle machine and beside busy processes?

    python benchmarks/busy.py [--rounds 5] [--busy 0 1 2] [--json FILE]

A step of the quickstart's DiffCLIP, and of its CLIP, on every core, by processes that wait for one another in different
ways: as GNU's OpenMP does by itself (spinning for a while), spinning for a given number of turns (GOMP_SPINCOUNT), and
asleep (OMP_WAIT_POLICY=passive, which the `diffclip` command sets). All processes exist from the start and take turns,
asleep between them; the busy processes beside them count up. Medians over the rounds, and in brackets that of the
ratio, within a round, to OpenMP as it is by itself.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rounds import processor, write_json

MODELS = ("clip_vit_quickstart", "diffclip_vit_quickstart")
POLICIES: dict[str, dict[str, str]] = {
    "by itself": {},
    "100,000 spins": {"GOMP_SPINCOUNT": "100000"},
    "30,000 spins": {"GOMP_SPINCOUNT": "30000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def serve() -> None:
    """In a process of its own: for each line of the standard input a step of the model that it names, timed."""
    from importlib.resources import files

    from diffclip.config import load_recipe
    from diffclip.training.setup import new_state, training_loader, training_source
    from diffclip.training.step import Schedule

    recipe = load_recipe(str(files("diffclip") / "recipes" / "quickstart.toml"))
    source = training_source(recipe)
    schedule = Schedule.of(recipe, len(source))
    batch = next(training_loader(recipe, source).epoch(0))
    states = {
        preset: new_state(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, preset=preset)), schedule)
        for preset in MODELS
    }
    for line in sys.stdin:
        began = time.perf_counter()
        states[line.strip()].step(0, batch)
        print(time.perf_counter() - began, flush=True)


@contextmanager
def beside(number: int) -> Iterator[None]:
    """Inside the `with`, so many processes count up."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="how many processes count up beside")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    servers = {
        policy: subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=clean | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for policy, settings in POLICIES.items()
    }

    def step(policy: str, model: str) -> float:
        server = servers[policy]
        assert server.stdin is not None
        assert server.stdout is not None
        print(model, file=server.stdin, flush=True)
        return float(server.stdout.readline())

    names = [*POLICIES]
    seconds: dict[str, dict[int, dict[str, list[float]]]] = {
        model: {number: {policy: [] for policy in POLICIES} for number in arguments.busy} for model in MODELS
    }
    for policy in POLICIES:  # what comes first compiles and allocates
        for model in MODELS:
            step(policy, model)
    for number in arguments.busy:
        with beside(number):
            for turn in range(arguments.rounds):
                for model in MODELS:
                    for policy in names[turn % len(names) :] + names[: turn % len(names)]:
                        seconds[model][number][policy].append(step(policy, model))
    for server in servers.values():
        server.kill()
    print(f"{processor()}, {os.cpu_count()} cores: seconds a step, and beside busy processes")
    print(f"{'':26}{'':14}" + "".join(f"{number:>10} busy" for number in arguments.busy))
    for model in MODELS:
        for policy in POLICIES:
            row = ""
            for number in arguments.busy:
                own, usual = seconds[model][number][policy], seconds[model][number]["by itself"]
                ratio = statistics.median(a / b for a, b in zip(own, usual, strict=True))
                row += f"{statistics.median(own):8.2f} ({ratio:.2f})"
            print(f"{model:26}{policy:14}{row}")
    write_json(arguments.json, {"rounds": arguments.rounds, "seconds": seconds})


if __name__ == "__main__":
    main()

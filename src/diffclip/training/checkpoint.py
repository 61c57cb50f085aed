"""Checkpoints: safetensors and JSON with their SHA-256, written beside their place, synced and renamed.

`checkpoints/step_00001234/` holds `model.safetensors` and `config.json` (what `diffclip.load` takes),
`optimizer.safetensors` (the optimizer's state by parameter), `state.json` (the step, the seconds so far, what was
measured at this step, how many images of its epoch were skipped) and `SHA256SUMS` of these, as `sha256sum -c` reads it;
with `training.ema` the first is the average, and `trained.safetensors` holds the weights that training goes on with;
in float16 `scaler.safetensors` says by what gradients are multiplied. A crash at any moment leaves the checkpoints that
there were, and what is left of the new one under a hidden name.
"""

import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.amp import GradScaler

from diffclip import durable
from diffclip.distributed import World, get_world
from diffclip.errors import UserError
from diffclip.models.library import Trainable
from diffclip.models.library_config import LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.models.weights import store as weights
from diffclip.reading import check_regular, named, parse_json, read_text
from diffclip.training.ema import WeightAverage
from diffclip.training.logs import METRICS
from diffclip.training.tuning import has_adapters, merged

log = logging.getLogger(__name__)

NAME = re.compile(r"step_\d{8,}", re.ASCII)
SUMS, STATE, SUFFIX = "SHA256SUMS", "state.json", ".safetensors"
BEST = "best"
SCALE = ("scale", "_growth_tracker")
"""What a GradScaler changes: by what it multiplies, and the steps since that has changed."""

Tensors = dict[str, dict[str, Tensor]]  # file, without .safetensors → name → tensor


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `last` newest, and the `best` ones by the metric `by`, of which more is better."""

    last: int = 2
    best: int = 0
    by: str = ""


def state_tensors(
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
    scaler: GradScaler | None = None,
) -> Tensors:
    """All tensors of a checkpoint, the living ones: `model` and `optimizer`; in shards, where the model is.

    Where weights are averaged `model` has the average, and `trained` the weights that training goes on with. Where
    there are adapters `model` has them merged. Where gradients are scaled `scaler` says how.
    """
    scale = {} if scaler is None else {"scaler": {key: torch.tensor(scaler.state_dict()[key]) for key in SCALE}}
    moments = {
        f"{key}.{name}": torch.as_tensor(value)  # a count of steps may be a Python number
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }
    trained = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if has_adapters(model):
        return {"model": merged(model), "optimizer": moments, "trained": trained} | scale
    if average is None:
        return {"model": trained, "optimizer": moments} | scale
    return {"model": trained | average.tensors, "optimizer": moments, "trained": trained} | scale


def load_tensors(
    tensors: Tensors | None,
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
    scaler: GradScaler | None = None,
    world: World = World(),  # noqa: B008  it is frozen
) -> None:
    """The inverse of `state_tensors`, on whatever device and in whatever shards the model is.

    tensors: whole ones. Of several processes the first has them, None elsewhere, and each gets its part.
    """
    files: Tensors = tensors or {"model": {}, "optimizer": {}, "trained": {}}
    weights, moments = files[_trained(model, average)], files["optimizer"]
    model.load_state_dict({name: world.scatter(weights.get(name), like) for name, like in model.state_dict().items()})
    for name, tensor in average.tensors.items() if average else ():
        tensor.copy_(world.scatter(files["model"].get(name), tensor))
    parameters = dict(model.named_parameters())
    for name, (shape, dtype) in world.broadcast({name: (t.shape, t.dtype) for name, t in moments.items()}).items():
        key, _, of = name.partition(".")
        like = parameters[of].detach()
        if (like.shape, like.dtype) != (shape, dtype):
            like = torch.empty(shape, dtype=dtype, device=like.device)
        value = world.scatter(moments.get(name), like)
        optimizer.state[parameters[of]][key] = value if value.is_floating_point() or value.ndim else value.item()
    scale = world.broadcast({key: value.item() for key, value in files.get("scaler", {}).items()})
    if scaler is not None:  # a run that was not scaled, on another device, goes on with a fresh scale
        scaler.load_state_dict(scaler.state_dict() | scale)


def _trained(model: Trainable, average: WeightAverage | None) -> str:
    """Which file has the weights that training goes on with."""
    return "model" if average is None and not has_adapters(model) else "trained"


def save(
    run: Path,
    config: ModelConfig | LibraryConfig | None,
    tensors: Tensors,
    state: Mapping[str, Any],
    keep: Keep = Keep(),
) -> Path:
    """Write the checkpoint of `state["step"]`; once it is on the disk, delete what `keep` does not keep.

    config: of a CLIP, whose `model` is then written for `diffclip.load`; None for tensors of something else.
    state: JSON values; `state["metrics"]`, name → number, is what the best are chosen by. Returns the checkpoint's
    directory. Raises UserError where the disk is full or not writable; the checkpoints that exist stay as they are.
    """
    final = run / "checkpoints" / f"step_{state['step']:08d}"
    try:
        with durable.writing(final) as unfinished:  # one that is there was passed over as damaged on resuming
            if config is not None:
                weights.write(tensors["model"], config, unfinished)
            for name in tensors.keys() - ({"model"} if config is not None else set()):
                durable.write_tensors(unfinished / f"{name}{SUFFIX}", tensors[name])
            durable.write_text(unfinished / STATE, json.dumps(state))
            sums = "".join(f"{durable.sha256(path)}  {path.name}\n" for path in sorted(unfinished.iterdir()))
            durable.write_text(unfinished / SUMS, sums)
            if (run / METRICS).exists():  # a checkpoint says that the lines up to its step are written: they last too
                durable.sync(run / METRICS)
        _prune(run, state["step"], keep)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write the checkpoint {final}: {reason}; make room or give write permission, then go on with the "
            "same command and --resume"
        ) from error
    return final


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; not what copying, backing up and synchronising leave beside them."""
    paths = (run / "checkpoints").glob("step_*")
    return sorted((path for path in paths if NAME.fullmatch(path.name)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def restore(
    run: Path,
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
    scaler: GradScaler | None = None,
) -> dict[str, Any] | None:
    """Load the newest good checkpoint into model, optimizer and scaler, and return its state; None where there is none.

    Of several processes only the first reads, and sends the others what is theirs: they may be another number than
    those that wrote it, and need not see its disk. A damaged one is passed over with a warning, and stays where it
    is. Raises UserError when every one is damaged, and where they are of another model.
    """
    world = get_world()
    state, tensors = newest(run) if world.is_main else (None, None)
    if tensors is not None:
        shapes = {name: tensor.shape for name, tensor in tensors.get(_trained(model, average), {}).items()}
        others = [name for name, tensor in model.state_dict().items() if shapes.get(name) != tensor.shape]
        if others:  # as where somebody has deleted the recipe of the run
            raise UserError(f"the checkpoints of {run} are of another model ({others[0]}): resume with its recipe")
    state = world.broadcast(state)
    if state is not None:
        load_tensors(tensors, model, optimizer, average, scaler, world)
    return state


def newest(run: Path) -> tuple[dict[str, Any] | None, Tensors | None]:
    """(state, tensors) of the newest good checkpoint."""
    checkpoints = found(run)
    for folder in reversed(checkpoints):
        try:
            return read(folder)
        except UserError as error:
            log.warning("%s; it is passed over", error)
    if checkpoints:
        raise UserError(
            f"none of the {len(checkpoints)} checkpoints in {run / 'checkpoints'} can be used: restore one from a "
            "copy, or begin again with another --out"
        )
    return None, None


def read(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """(state, tensors) of a checkpoint, on the CPU, once every file has the SHA-256 it was written with.

    Raises UserError where one has not, or cannot be read.
    """
    try:
        lines = read_text(folder / SUMS, "ascii").split("\n")[:-1]
        expected = {line[66:]: line[:64] for line in lines}
        kept = {path.name for path in folder.iterdir()}
        for name in kept & expected.keys():
            check_regular(folder / name)
        wrong = [
            name for name, digest in expected.items() if name not in kept or durable.sha256(folder / name) != digest
        ]
        if STATE not in expected:  # the last line
            wrong.append(SUMS)
        if not wrong:
            state: dict[str, Any] = parse_json(read_text(folder / STATE))
            tensors = {name.removesuffix(SUFFIX): _tensors(folder / name) for name in expected if name.endswith(SUFFIX)}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if wrong:
        raise UserError(f"checkpoint {folder} is damaged: {', '.join(wrong)} not as it was written")
    return state, tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    with named(path) as name:
        return load_file(name)


def _prune(run: Path, step: int, keep: Keep) -> None:
    """Delete checkpoints up to `step` that are neither new nor good, and point `checkpoints/best` at the best one.

    One of a later step was passed over on resuming; it is left alone until the run comes to its step.
    """
    past = [path for path in found(run) if _step(path) <= step]
    best = _ranked(past, keep.by)[: keep.best] if keep.by else []
    if best:
        link = run / "checkpoints" / BEST
        if link.exists() and not link.is_symlink():  # copying has made a folder of it, which somebody may want
            kept = link.with_name(f"{BEST}.copy-{secrets.token_hex(4)}")
            log.warning("%s is no link: it is called %s from now on", link, kept.name)
            durable.replace(link, kept)
        durable.link(link, best[0].name)
    for path in set(past) - set(past[-keep.last :]) - set(best):
        hidden = durable.beside(path)  # half a checkpoint must not look like one
        durable.replace(path, hidden)
        durable.remove(hidden)


def _ranked(checkpoints: list[Path], metric: str) -> list[Path]:
    """Those at which the metric was measured, the best first; of equals the earliest."""
    values = {}
    for path in checkpoints:
        try:
            values[path] = float(json.loads((path / STATE).read_text())["metrics"][metric])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not measured there, or damaged
    return sorted(values, key=lambda path: -values[path])

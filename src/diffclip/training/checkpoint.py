"""Checkpoints: safetensors and JSON, written beside their place and renamed, so a crash leaves the last good one.

`checkpoints/step_00001234/` holds `model.safetensors` and `config.json` (what `diffclip.load` takes),
`optimizer.safetensors` (AdamW's moments by parameter name) and `state.json` (the step and the seconds so far).
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffclip.errors import UserError
from diffclip.models import weights
from diffclip.models.clip import CLIP

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save(run: Path, model: CLIP, optimizer: torch.optim.AdamW, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `state["step"]`, then delete all but the `keep` newest. Returns its directory.

    Raises UserError where the disk is full or not writable; the checkpoints that exist stay as they are.
    """
    folder = run / "checkpoints"
    final = folder / f"step_{state['step']:08d}"
    unfinished = folder / f".{final.name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        weights.save(model, unfinished)
        save_file(_moments(model, optimizer), unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error.strerror or error}") from error
    for old in found(run)[:-keep]:
        shutil.rmtree(old)
    return final


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def restore(run: Path, model: CLIP, optimizer: torch.optim.AdamW) -> dict[str, Any] | None:
    """Load the newest checkpoint that can be read into model and optimizer; None where the run has none.

    A damaged one is passed over with a warning. Raises UserError when every one is damaged.
    """
    checkpoints = found(run)
    for folder in reversed(checkpoints):
        try:
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
            tensors = load_file(folder / "model.safetensors")
            moments = load_file(folder / "optimizer.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("checkpoint %s cannot be read (%s); trying the one before", folder, error)
            continue
        model.load_state_dict(tensors)
        _set_moments(model, optimizer, moments)
        return state
    if checkpoints:
        raise UserError(f"none of the {len(checkpoints)} checkpoints in {run / 'checkpoints'} can be read")
    return None


def _moments(model: CLIP, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def _set_moments(model: CLIP, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if f"step.{name}" in tensors:
            optimizer.state[parameter] = {
                moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS
            }

"""What does a checkpoint cost the thread that trains?

    python benchmarks/checkpoint.py [--model diffclip_vit_b16] [--rounds 5] [--folder DIR] [--json FILE]

Contestants, each writing weights and AdamW's moments to the same disk: "background", what training does (a copy, then a
thread writes); "here", the same files written by the training thread itself, synced and with their sums; "torch.save",
PyTorch's usual way, neither synced nor summed. Only what keeps the training thread is counted; the background thread is
waited for outside of it, and its time is the last column. A copy's first time, which also allocates, is not counted.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from rounds import in_turn, medians, peak_mib, ratio, write_json

from diffclip.config import Optimizer
from diffclip.models.clip import create_model
from diffclip.training import checkpoint
from diffclip.training.background import BackgroundCheckpoints
from diffclip.training.checkpoint import Keep
from diffclip.training.optimizer import make_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diffclip_vit_b16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default the one for temporary files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = create_model(options.model)
    optimizer = make_optimizer(model, Optimizer())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    tensors = checkpoint.state_tensors(model, optimizer)
    size = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    folder = Path(tempfile.mkdtemp(dir=options.folder))

    def here(number: int) -> None:
        checkpoint.save(folder / "here", model.config, tensors, {"step": number + 2}, Keep(last=1))

    def pickled(number: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / "torch.pt")

    at_rest = peak_mib()
    try:
        with BackgroundCheckpoints(folder / "background", model.config, Keep(last=1)) as checkpoints:
            seconds = in_turn(
                {
                    "background": lambda number: checkpoints.save(tensors, {"step": number + 2}),
                    "until it is on the disk": lambda number: checkpoints.wait(),
                    "here": here,
                    "torch.save": pickled,
                },
                options.rounds,
                fixed_order=True,  # what was begun must be waited for before the next
            )
    finally:
        shutil.rmtree(folder)
    waited = seconds.pop("until it is on the disk")
    ready = medians(
        {"background": [a + b for a, b in zip(seconds["background"], waited, strict=True)], "here": seconds["here"]}
    )
    print(f"{options.model}: {size / 2**20:,.0f} MiB, {torch.get_num_threads()} threads")
    print(f"{'':12}{'s of the training thread':>26}{'to torch.save':>15}{'s until it is on the disk':>27}")
    for name, value in medians(seconds).items():
        done = f"{ready[name]:.2f}" if name in ready else "not synced"
        print(f"{name:12}{value:26.3f}{ratio(seconds, name, 'torch.save'):15.3f}{done:>27}")
    print(f"memory: {peak_mib() - at_rest:,.0f} MiB at the most beyond model and optimizer")
    write_json(options.json, {"model": options.model, "bytes": size, "seconds": seconds, "waited": waited})


if __name__ == "__main__":
    main()

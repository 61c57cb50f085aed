"""What a GPU machine without a network needs to run gpu.py: wheels of what its image may lack, some of CIFAR-10.

    python benchmarks/gpu_pack.py FOLDER [--cifar DIR] [--python 3.12]

torch, Triton, NumPy and what else a common image for PyTorch has are taken for granted. `make gpu` does it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

PACKAGES = (
    *("open_clip_torch", "timm", "ftfy", "wcwidth", "simplejpeg", "tyro", "docstring_parser", "typeguard"),
    *("tomli", "tomli_w", "pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
)
ROWS = {"train": 20_000, "test": 10_000}  # 35 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar", type=Path, help="the folder with the hub's two parquet files")
    parser.add_argument("--python", default="3.12", help="the version on that machine")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    constraints = root / "constraints.txt"
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    wheels = ["--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version", options.python, *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", str(constraints), *wheels]
    subprocess.run([*command, "--dest", str(options.folder / "wheels"), *PACKAGES], check=True)
    # Of its own wheel only what pip knows of it is used, such as the version: the code is the checkout's.
    own = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(options.folder / "wheels")]
    subprocess.run([*own, str(root)], check=True)
    for split, rows in ROWS.items() if options.cifar else ():
        name = f"{split}-00000-of-00001.parquet"
        (options.folder / "cifar10").mkdir(exist_ok=True)
        pq.write_table(pq.read_table(options.cifar / name).slice(0, rows), options.folder / "cifar10" / name)
    cifar = f" --cifar {options.folder}/cifar10" if options.cifar else ""
    print(
        f"take the checkout with {options.folder} along, and there:\n"
        f"  python3 -m pip install --no-index --no-deps --target {options.folder}/site {options.folder}/wheels/*.whl\n"
        f"  PYTHONPATH=src:{options.folder}/site python3 benchmarks/gpu.py{cifar} --json gpu.json"
    )


if __name__ == "__main__":
    main()

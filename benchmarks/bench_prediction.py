"""Measure prediction from file to file beside MONAI's sliding windows: voxels a second, memory.

    python benchmarks/bench_prediction.py --sizes 128 512 1024x1024x512

A stack is a simulated volume laid side by side until it fills the size, uint16, in an ImageJ TIFF.
Each measurement is a process of its own, whose largest resident size the kernel counts. Both get
the same network, windows, overlap, Gaussian weights, batches and precision, and write a mask. Ours
is what predict.py does: layer by layer. MONAI's sliding_window_inference needs the stack and two
maps of it in memory: it is given them without a copy to spare, the file read by our reader and its
percentiles counted as in ours. Prints a Markdown table. Nothing else should run.
"""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.flags import FlagParser

SIZES = ("128", "512", "1024x1024x512")
METHODS = ("ours", "monai")
GREY = 60.0
"""Counts of uint16 for one unit of a simulated intensity."""


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = FlagParser(prog="bench_prediction.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[size_of(s) for s in SIZES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--checkpoint", help="a trained network; default: 4 channels, depth 4")
    parser.add_argument("--start_channels", type=int, default=4, help="without a checkpoint")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--precision", choices=("auto", "32", "bf16"), default="auto")
    parser.add_argument("--memory", type=float, default=3.0, help="GB (1e9 bytes) for ours")
    parser.add_argument("--rounds", type=int, default=1, help="the fastest of so many is shown")
    parser.add_argument("--directory", help="where the stacks go; default: a temporary one")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # in the measured process
    return parser.parse_args(arguments)


def size_of(text: str) -> tuple[int, ...]:
    edges = tuple(int(part) for part in text.split("x"))
    edges = edges * 3 if len(edges) == 1 else edges
    if len(edges) != 3 or min(edges) < 2:
        raise ValueError(f"{text} is no size such as 128 or 1024x1024x512")
    return edges


def write_tiled(path: Path, shape: tuple[int, ...]) -> None:
    """Write a stack of copies of one simulated volume, uint16."""
    import numpy as np

    from utils.simulation import VolumeConfig, sample_rng, simulate_volume
    from utils.stacks import StackLayout, write_stack

    image = simulate_volume(VolumeConfig(), sample_rng(0, 0)).image
    tile = np.clip(image * GREY, 0, 65535).astype(np.uint16)
    wide = np.take(tile, np.arange(shape[0]) % len(tile), axis=0)
    wide = np.take(wide, np.arange(shape[1]) % len(tile), axis=1)
    slabs = (wide[..., [z % len(tile)]] for z in range(shape[2]))
    write_stack(path, slabs, StackLayout(shape, np.dtype(np.uint16), (0.5, 0.5, 0.5)))


def peak_bytes() -> int:
    """Return the largest resident size of this process alone, not of the one that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: this benchmark needs Linux")


def load_network(flags: argparse.Namespace):
    """Return the network in evaluation mode, its normaliser and the precision's word."""
    import torch

    from models import ModelConfig, build_model
    from utils.checkpoints.loading import load_checkpoint
    from utils.data.normalize import PercentileNormalizer
    from utils.devices import choose_compute, memory_format

    torch.manual_seed(0)
    config, normalizer, weights = (
        ModelConfig(start_channels=flags.start_channels),
        PercentileNormalizer(),
        None,
    )
    if flags.checkpoint:
        state = load_checkpoint(flags.checkpoint)
        config = ModelConfig.from_dict(state["model_config"])
        normalizer = PercentileNormalizer(**state["normalizer"])
        weights = state["model_state"]
    model = build_model(config)
    if weights:
        model.load_state_dict(weights)
    compute = choose_compute("cpu", flags.precision)
    precision = "bf16" if compute.precision.startswith("bf16") else "32"
    return model.to(memory_format=memory_format(5)).eval(), config, normalizer, precision


def measure(flags: argparse.Namespace) -> dict[str, float]:
    """Run one method in this process; return seconds, bytes and the mask's share."""
    method, source, target = flags.measure
    import psutil

    from utils.stacks import open_stack

    model, config, normalizer, precision = load_network(flags)
    if method == "monai":
        importlib.import_module("monai.inferers")  # of the base memory, not of the stack's
    base = psutil.Process().memory_info().rss
    start = time.perf_counter()
    run = {"ours": run_ours, "monai": run_monai}[method]
    with open_stack(source) as stack:
        found = run(stack, Path(target), model, config, normalizer, precision, flags)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "base": base, "peak": peak_bytes(), **found}


def run_ours(stack, target, model, config, normalizer, precision, flags) -> dict[str, float]:
    from utils.data.normalize import measure_limits
    from utils.prediction.memory import Memory, fit_batch
    from utils.prediction.sliding_window import Windows, window_within
    from utils.prediction.trained_network import fused
    from utils.prediction.whole_stack import StackPrediction, write_prediction

    model, outputs = fused(model), {"mask": target}
    edges = window_within(stack.shape, flags.window)
    windows = Windows(edges, flags.overlap, flags.batch_size, precision=precision)
    memory = Memory.allowed(flags.memory)
    windows, peak, _ = fit_batch(model, stack, stack.shape, windows, outputs, memory)
    limits = measure_limits(stack, normalizer)
    start = time.perf_counter()
    ready = StackPrediction(model, stack, normalizer, limits, stack.shape, windows)
    write_prediction(ready, outputs, 0.5, made_from={})
    return {
        "windows": time.perf_counter() - start,
        "estimate": peak,
        "edges": list(windows.edges),
        "batch": windows.batch_size,
    }


def run_monai(stack, target, model, config, normalizer, precision, flags) -> dict[str, float]:
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    from utils.data.normalize import measure_limits
    from utils.prediction.sliding_window import window_within
    from utils.stacks import StackLayout, write_stack

    limits = measure_limits(stack, normalizer)
    low, high = limits.low, limits.high
    image = np.empty(stack.shape, np.float32)
    for z in range(0, stack.shape[2], 16):
        stop = min(z + 16, stack.shape[2])
        image[..., z:stop] = normalizer.apply(stack.read(z, stop), low, high)

    def predict(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            logits = model(batch)
        return torch.sigmoid((logits[-1] if isinstance(logits, list) else logits).float())

    start = time.perf_counter()
    with torch.inference_mode():
        map_ = sliding_window_inference(
            torch.from_numpy(image)[None, None],
            window_within(stack.shape, flags.window),
            flags.batch_size,
            predict,
            overlap=flags.overlap,
            mode="gaussian",
        )
    seconds = time.perf_counter() - start
    mask = (map_[0, 0] >= 0.5).numpy().astype(np.uint8)
    write_stack(target, [mask], StackLayout.like(stack, np.uint8))
    return {"windows": seconds}


def run_measured(flags: argparse.Namespace, method: str, source: Path, target: Path) -> dict:
    """Run one method in a process of its own; the fastest round, with its own memory."""
    options = ["overlap", "window", "batch_size", "precision", "memory", "start_channels"]
    command = [sys.executable, __file__, "--measure", method, str(source), str(target)]
    command += [part for name in options for part in (f"--{name}", str(getattr(flags, name)))]
    command += ["--checkpoint", flags.checkpoint] if flags.checkpoint else []
    rounds = []
    for _ in range(flags.rounds):
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            return {"error": (ended.stderr.strip().splitlines() or ["killed"])[-1]}
        rounds.append(json.loads(ended.stdout.splitlines()[-1]))
    return min(rounds, key=lambda found: found["seconds"])


def row(shape: tuple[int, ...], method: str, found: dict) -> str:
    edges = " x ".join(str(n) for n in shape)
    if "error" in found:
        return f"| {edges} | {method} | failed: {found['error']} | | | | | |"
    voxels = 1e-6
    for n in shape:
        voxels *= n
    estimate = f"{found['estimate'] / 1e9:.2f}" if "estimate" in found else ""
    return (
        f"| {edges} | {method} | {found['seconds']:.1f} | {voxels / found['seconds']:.2f} | "
        f"{found['windows']:.1f} | {found['peak'] / 1e9:.2f} | {found['base'] / 1e9:.2f} | "
        f"{estimate} |"
    )


def agreement(ours: Path, theirs: Path) -> float:
    """Return the share of voxels in which two masks agree."""
    from utils.stacks import open_stack

    same = total = 0
    with open_stack(ours) as first, open_stack(theirs) as second:
        for z in range(0, first.shape[-1], 16):
            stop = min(z + 16, first.shape[-1])
            equal = first.read(z, stop) == second.read(z, stop)
            same, total = same + int(equal.sum()), total + equal.size
    return same / total


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse_flags(arguments)
    if flags.measure:
        print(json.dumps(measure(flags)))
        return
    from machine import describe_machine

    print(describe_machine())
    print(
        f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`: windows of "
        f"{flags.window}, overlap {flags.overlap:g}, batches of {flags.batch_size}, precision "
        f"{flags.precision}\n",
        flush=True,
    )
    print(
        "| voxels | method | file to file, s | million voxels/s | windows, s | peak memory, GB "
        "| of it before the stack | estimate, GB |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    notes = []
    with tempfile.TemporaryDirectory(dir=flags.directory) as folder:
        for shape in flags.sizes:
            source = Path(folder) / "stack.tif"
            write_tiled(source, shape)
            masks = {}
            for method in flags.methods:
                masks[method] = Path(folder) / f"{method}.tif"
                found = run_measured(flags, method, source, masks[method])
                print(row(shape, method, found), flush=True)
            if all(path.exists() for path in masks.values()) and len(masks) == 2:
                share = agreement(*masks.values())
                notes.append(f"{shape}: masks agree in {100 * share:.4f} % of the voxels")
            for path in [source, *masks.values()]:
                path.unlink(missing_ok=True)
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()

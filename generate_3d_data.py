"""Simulate 3D volumes of the fly's optic lobe on all cores into one HDF5 file.

    python generate_3d_data.py                                    # 512 volumes, seed 0
    python generate_3d_data.py --filename vol_val_set.h5 --L 64 --random_state 9999
    python generate_3d_data.py --preset wide --filename wide.h5 --L 64
    python generate_3d_data.py --preset wide --show_config > wide.toml  # to change it: --config
    python generate_3d_data.py --dask-scheduler tcp://node1:8786  # past one machine

Sample i of seed s is the same to the bit however many workers make it. A complete file is left
alone, --overwrite makes it anew. One that was cut is made anew from its first volume by the same
command, so make a large set as several files, each with its own seed, as gen_data.sh does.

Exit status: 0 the file is complete; 2 a wrong request, a full disk, a worker that was killed or a
file that is in the way, in one line on standard error; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, disk_errors, exit_status
from utils.flags import FlagParser
from utils.freed_memory import keep_freed_volumes
from utils.replacing import make_folder

if TYPE_CHECKING:
    from utils.storage import EncodedRow, VolumeSet

CHECKOUT = Path(__file__).resolve().parent
DASK_TIMEOUT = "10s"

FLAGS = {
    # (flag, its field of VolumeConfig: None where that has the same name, "" where there is none,
    # type, default, help with unit); a range has two flags, _low and _high; the defaults are the
    # reference generator's
    "file": (
        ("directory", "", str, "./vol_data", "where the file goes"),
        ("filename", "", str, "vol_train_set1.h5", "name of the HDF5 file"),
        ("L", "", int, 512, "number of samples (volumes)"),
        ("random_state", "", int, 0, "seed, at least 0 and below 2^32"),
        ("L_xy", "", int, 128, "voxels along x and along y"),
        ("L_z", "", int, 128, "voxels along z, through the same unit cube"),
    ),
    "geometry": (
        ("lattice", "lattice_intervals", int, (8, 15), "n: n + 1 intervals an icosahedron edge"),
        ("axis_scale", "axis_scales", float, (0.7, 1.5), "half axis of the ellipsoid, cube edges"),
        ("min_columns", None, int, 100, "least columns that enter in the cube, else it is redrawn"),
        ("max_tries", None, int, 2000, "geometries drawn for a sample before giving up"),
    ),
    "fluorescence": (
        ("simplify_factor", None, float, 1.25, "divides the widths of all clouds (ratio)"),
        ("baseline_intensity", None, float, 50.0, "scale of clouds and neurites, arbitrary units"),
        ("v_std", None, float, 1.0, "sd of a point's intensity about its cloud's, same units"),
        ("std_intensity_range", None, float, (0.3, 1.2), "sd of log cloud intensity (nepers)"),
    ),
    "microscope": (
        ("cube_kernel_size", None, int, 2, "edge of the box point spread, voxels"),
        ("NF_size", "background_sigma", float, 10.0, "sigma of the background's blur, voxels"),
        ("background", "background_range", float, (0.0005, 0.0025), "background's weight (ratio)"),
        ("gain", "gain_range", int, (10, 29), "photons per unit of image; fewer: more shot noise"),
        ("contrast", "contrast_range", float, (0.7, 1.0), "factor on log intensity's deviation"),
    ),
}
CONFIG_FLAGS = {"shape": ("L_xy", "L_xy", "L_z")} | {
    field or name: (f"{name}_low", f"{name}_high") if isinstance(default, tuple) else (name,)
    for rows in FLAGS.values()
    for name, field, _, default, _ in rows
    if field != ""
}
"""Of fields of VolumeConfig the flags that set them."""
OTHER_FLAGS = {
    **{"num_samples": ["L"], "seed": ["random_state"], "preset": ["preset"]},
    "table": ["columns_table"],
}


def make_parser() -> FlagParser:
    """Return the parser of the flags above and of those that do not change the data."""
    parser = FlagParser(
        description="Simulate 3D volumes of the fly's optic lobe on all cores into one HDF5 file."
    )
    parser.set_defaults(given=frozenset())
    for title, flags in FLAGS.items():
        about = None if title == "file" else "of preset reference"
        add = parser.add_argument_group(title, about).add_argument
        for name, _, kind, default, text in flags:
            shown = {"type": kind, "metavar": kind.__name__.upper(), "action": _Noted}
            if isinstance(default, tuple):
                add(f"--{name}_low", default=default[0], help=f"least {text}", **shown)
                add(f"--{name}_high", default=default[1], help=f"greatest {text}", **shown)
            else:
                add(f"--{name}", default=default, help=text, **shown)
    add = parser.add_argument_group("preset").add_argument
    # fmt: off
    add("--preset", choices=("reference", "wide"),
        help="whose parameters are the defaults (default: reference, or what --config says)")
    add("--config", metavar="FILE",
        help="TOML file with parameters, as --show_config prints them; flags win over it")
    add("--show_config", action="store_true",
        help="print all parameters with their units as TOML, and make no file")
    add("--columns_table", metavar="FILE",
        help="CSV of measured columns for --preset wide: p, q, proximal_x, .._y, .._z, distal_x, "
        ".._y, .._z in micrometres")
    add("--columns_paths", metavar="FILE",
        help="CSV of their paths: p, q, depth, x, y, z")
    add = parser.add_argument_group("run").add_argument
    add("--workers", type=int, metavar="INT",
        help="processes that simulate (default: one for each core that this process may use)")
    add("--dask-scheduler", metavar="tcp://HOST:PORT",
        help="simulate on this Dask cluster instead (needs requirements-dask.txt)")
    add("--overwrite", action="store_true",
        help="replace an existing file as soon as the new one is complete")
    # fmt: on
    return parser


class _Noted(argparse.Action):
    """Stores a value, and notes under ``given`` that its flag stood on the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.given |= {self.dest}


def volume_set_from_flags(args: argparse.Namespace) -> VolumeSet:
    """Return configuration, seed and number of samples; UserError names a bad flag."""
    from utils.simulation import WideConfig, preset
    from utils.storage import VolumeSet
    from utils.storage.column_tables import read_column_table
    from utils.storage.config_files import read_config

    if args.L < 1:
        raise UserError(f"--L {args.L}: must be at least 1")
    config = preset(args.preset or "reference")
    if args.config:
        config = read_config(args.config, args.preset)
    wide = isinstance(config, WideConfig)
    fields: dict[str, Any] = {}
    for field, flags in CONFIG_FLAGS.items():
        given = args.given.intersection(flags)
        if wide and field != "shape" and given:
            raise UserError(f"--{min(given)}: is of preset reference; give wide its by --config")
        if given:
            old = [getattr(config, field)] if len(flags) == 1 else getattr(config, field)
            pairs = zip(flags, old, strict=True)
            values = tuple(getattr(args, flag) if flag in given else v for flag, v in pairs)
            fields[field] = values if len(values) > 1 else values[0]
    if args.columns_table or args.columns_paths:
        if not wide:
            raise UserError("--columns_table: is for --preset wide; give that too")
        if not args.columns_table:
            raise UserError("--columns_paths: are the paths of --columns_table; give that too")
        fields["table"] = read_column_table(args.columns_table, args.columns_paths)
    try:
        return VolumeSet(replace(config, **fields), args.random_state, args.L)
    except UserError as error:
        field, _, rest = str(error).partition(" ")
        raise UserError(f"{flags_of(field)} {rest}") from error


def flags_of(field: str) -> str:
    """Return the flags, in words, that set a field of a VolumeSet or VolumeConfig."""
    flags = CONFIG_FLAGS.get(field, OTHER_FLAGS.get(field))
    return ", ".join(f"--{flag}" for flag in dict.fromkeys(flags)) if flags else field


# --- In the workers -------------------------------------------------------------------------------


Task = tuple[str, bytes, int]
"""This checkout, a pickled configuration, the seed: plain, so that any machine can unpack it."""


def simulate_row(checkout: str, config: bytes, seed: int, index: int) -> EncodedRow:
    """Simulate and compress one sample of a :data:`Task`."""
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from utils.simulation import sample_rng, simulate_volume
    from utils.storage import encode_row

    return encode_row(simulate_volume(pickle.loads(config), sample_rng(seed, index)))


_task: Task | None = None  # in a worker process: what all its samples have in common


def simulate_into(folder: str, index: int) -> None:
    """Leave a pickled row in a file."""
    row = pickle.dumps(simulate_row(*_task, index), pickle.HIGHEST_PROTOCOL)
    with disk_errors(folder, "written"):
        Path(folder, str(index)).write_bytes(row)


def _prepare_worker(parent: int, folder: str, task: Task) -> None:
    """Leave Ctrl-C to the parent, and leave with it if it is killed."""
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_freed_volumes()
    threading.Thread(target=_exit_without, args=(parent, folder), daemon=True).start()


def _exit_without(parent: int, folder: str) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def task_of(volume_set: VolumeSet) -> Task:
    """Return what all samples of a file have in common."""
    return str(CHECKOUT), pickle.dumps(volume_set.config), volume_set.seed


# --- Rows from the workers ------------------------------------------------------------------------


def rows_in_order(
    volume_set: VolumeSet,
    places: int,
    submit: Callable[[int], Future[Any]],
    unpack: Callable[[int, Any], EncodedRow] = lambda index, row: row,
) -> Iterator[EncodedRow]:
    """Yield all rows in order.

    ``submit`` has sample ``index`` simulated, ``unpack`` makes a row of what its future gave. At
    most ``places`` samples are under way, so that memory is bounded. What a user can mend in a
    worker becomes a UserError.
    """
    under_way: deque[Future[Any]] = deque()
    for index in range(volume_set.num_samples + places):
        done = index - places
        try:
            row = unpack(done, under_way.popleft().result()) if done >= 0 else None
            if index < volume_set.num_samples:
                under_way.append(submit(index))
        except UserError as error:
            sample = f"sample {done} of seed {volume_set.seed}"
            raise UserError(f"{sample} cannot be simulated: {error}") from error
        except MemoryError as error:
            raise UserError("out of memory: fewer --workers, or voxels, need less") from error
        except ModuleNotFoundError as error:
            raise UserError(
                f"the workers find no {error.name}: their machines need this checkout at "
                f"{CHECKOUT} and its requirements.txt installed"
            ) from error
        except Exception as error:
            # KilledWorker is of distributed, which is not always installed.
            lost = isinstance(error, (BrokenExecutor, CancelledError))
            if not lost and type(error).__name__ != "KilledWorker":
                raise
            raise UserError("a worker died (out of memory? fewer --workers need less)") from error
        if row:
            yield row
        if _signals:
            raise KeyboardInterrupt


@contextlib.contextmanager
def local_rows(volume_set: VolumeSet, workers: int) -> Iterator[Iterator[EncodedRow]]:
    """Have worker processes simulate, which leave their rows in files.

    What goes through the executor's pipe must be small: all workers hold its end, so that one that
    is killed in the middle of a message of many parts would leave this process waiting for ever.
    """
    from utils.simulation.volume import compile_kernels
    from utils.storage import encode_row

    for volume in compile_kernels(volume_set.config):  # before the workers are forked
        encode_row(volume)
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:

        def unpack(index: int, _: None) -> EncodedRow:
            path = Path(folder, str(index))
            row = pickle.loads(path.read_bytes())
            path.unlink()
            return row

        prepared = (os.getpid(), folder, task_of(volume_set))
        executor = ProcessPoolExecutor(workers, context, _prepare_worker, prepared)
        try:
            # Starts all workers, which must not inherit the lock of a file that is being written.
            executor.submit(os.getpid).result()
            submit = functools.partial(executor.submit, simulate_into, folder)
            yield rows_in_order(volume_set, 2 * workers, submit, unpack)  # 2, so that none waits
        finally:
            executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def dask_rows(volume_set: VolumeSet, address: str) -> Iterator[Iterator[EncodedRow]]:
    """Have a Dask cluster simulate, whose machines see this checkout under the same path."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: pip install -r requirements-dask.txt") from error
    try:
        client = Client(address, timeout=DASK_TIMEOUT)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"--dask-scheduler {address}: no scheduler answers there") from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UserError(f"--dask-scheduler {address}: the cluster has no workers")
        executor = client.get_executor(pure=False)
        submit = functools.partial(executor.submit, simulate_row, *task_of(volume_set))
        try:
            yield rows_in_order(volume_set, 2 * threads, submit)
        finally:
            executor.shutdown(wait=False)


def simulated_rows(
    args: argparse.Namespace, volume_set: VolumeSet
) -> AbstractContextManager[Iterator[EncodedRow]]:
    """Return the rows, made by the workers that the flags ask for."""
    if args.dask_scheduler:
        return dask_rows(volume_set, args.dask_scheduler)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return local_rows(volume_set, min(args.workers or cores, volume_set.num_samples))


# --- The file -------------------------------------------------------------------------------------


def is_already_there(path: Path, volume_set: VolumeSet) -> bool:
    """Return whether the file is complete and the same; UserError if another is in the way."""
    from utils.storage import VolumeFile, version_note

    if not os.path.exists(path):
        return False
    try:
        with VolumeFile(path) as file:
            differences = file.volume_set.differences(volume_set)
            version = file.program_version
    except UserError as error:
        raise UserError(f"{error}; --overwrite replaces it") from error
    if differences:
        told = [f"{flags_of(name)}: {a} in the file, {b} asked for" for name, a, b in differences]
        raise UserError(
            f"{path} exists with other parameters: {'; '.join(told)}; choose another --filename, "
            "or --overwrite"
        )
    if note := version_note(path, version):
        print(f"{note} (--overwrite does)", file=sys.stderr)
    return True


def generate(args: argparse.Namespace) -> None:
    """Make the file that the flags ask for, or find it made."""
    from tqdm import tqdm

    from utils.storage import in_words, write_simulated_file
    from utils.storage.config_files import show_config

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    volume_set = volume_set_from_flags(args)
    if args.show_config:
        print(show_config(volume_set.config), end="")
        return
    path = Path(args.directory) / args.filename
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory: name a file with --filename")
    if not args.overwrite and is_already_there(path, volume_set):
        print(f"{path} is complete and has these parameters: nothing to do")
        return
    make_folder(path.parent)
    count = volume_set.num_samples
    started = time.perf_counter()
    with simulated_rows(args, volume_set) as rows:
        shown = tqdm(rows, path.name, total=count, unit="volume")
        write_simulated_file(path, volume_set, shown)
    seconds = time.perf_counter() - started
    size = in_words(path.stat().st_size)
    print(f"{path}: {count} volumes, seed {volume_set.seed}, {size}, {seconds:.0f} s")


def main(argv: list[str] | None = None) -> int:
    """Run the script; return its exit status."""
    args = make_parser().parse_args(argv)
    return exit_status(Path(__file__).name, lambda: generate(args))


_signals: list[int] = []


def _note(number: int, frame: Any) -> None:
    """Note a signal, asked for after each row; what is raised here, Python may drop in h5py."""
    _signals.append(number)
    signal.signal(number, signal.SIG_DFL)  # the next one ends the process at once


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _note)
    signal.signal(signal.SIGTERM, _note)
    # One thread a process, in workers too: none waits for another, and samples are the same to the
    # bit on all machines.
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    sys.exit(main())

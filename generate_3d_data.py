"""Simulate 3D volumes of the fly's optic lobe on all cores into one HDF5 file.

    python generate_3d_data.py                                    # 512 volumes, seed 0
    python generate_3d_data.py --filename vol_val_set.h5 --L 64 --random_state 9999
    python generate_3d_data.py --dask-scheduler tcp://node1:8786  # past one machine

Sample i of seed s is the same to the bit however many workers make it. A file that was interrupted
is picked up by the same command, a complete one is left alone; --overwrite makes it anew.

Exit status: 0 the file is complete; 1 a worker died; 2 a wrong request, a full disk or a file that
is in the way, in one line on standard error; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.flags import FlagParser
from utils.freed_memory import keep_freed_volumes

if TYPE_CHECKING:
    from utils.storage import EncodedRow, Recipe, VolumeWriter

CHECKOUT = Path(__file__).resolve().parent
DASK_TIMEOUT = "10s"
KEPT = "what is written is kept, the same command picks up there"

FLAGS = {
    # (flag, type, default, help with unit); the defaults are those of the reference generator
    "file": (
        ("--directory", str, "./vol_data", "where the file goes"),
        ("--filename", str, "vol_train_set1.h5", "name of the HDF5 file"),
        ("--L", int, 512, "number of samples (volumes)"),
        ("--random_state", int, 0, "seed, at least 0 and below 2^32"),
        ("--L_xy", int, 128, "voxels along x and along y"),
        ("--L_z", int, 128, "voxels along z, through the same unit cube"),
    ),
    "geometry": (
        ("--lattice_low", int, 8, "least n; the lattice has n + 1 intervals an icosahedron edge"),
        ("--lattice_high", int, 15, "most n: finer columns"),
        ("--axis_scale_low", float, 0.7, "least half axis of the ellipsoid, edges of the cube"),
        ("--axis_scale_high", float, 1.5, "greatest half axis of the ellipsoid, edges of the cube"),
        ("--min_columns", int, 100, "least columns that enter in the cube, else it is redrawn"),
        ("--max_tries", int, 2000, "geometries drawn for a sample before giving up"),
    ),
    "fluorescence": (
        ("--simplify_factor", float, 1.25, "divides the widths of all clouds (ratio)"),
        (
            "--baseline_intensity",
            float,
            50.0,
            "intensity scale of clouds and neurites, arbitrary units",
        ),
        ("--v_std", float, 1.0, "sd of a point's intensity about its cloud's, same units"),
        ("--std_intensity_range_low", float, 0.3, "least sd of log cloud intensity (nepers)"),
        ("--std_intensity_range_high", float, 1.2, "greatest sd of log cloud intensity (nepers)"),
    ),
    "microscope": (
        ("--cube_kernel_size", int, 2, "edge of the box point spread, voxels"),
        ("--NF_size", float, 10.0, "sigma of the background's blur, voxels"),
        ("--background_low", float, 0.0005, "least weight of the background (ratio)"),
        ("--background_high", float, 0.0025, "greatest weight of the background (ratio)"),
        ("--gain_low", int, 10, "least photons per unit of image: more shot noise"),
        ("--gain_high", int, 29, "most photons per unit of image"),
        ("--contrast_low", float, 0.7, "least factor on the log intensity's deviation (ratio)"),
        ("--contrast_high", float, 1.0, "greatest factor on the log intensity's deviation (ratio)"),
    ),
}

FIELDS_TO_FLAGS = {
    # the flags that set a field of a Recipe or VolumeConfig, for messages
    "num_samples": "--L",
    "seed": "--random_state",
    "shape": "--L_xy, --L_z",
    "lattice_intervals": "--lattice_low, --lattice_high",
    "axis_scales": "--axis_scale_low, --axis_scale_high",
    "background_sigma": "--NF_size",
    "background_range": "--background_low, --background_high",
    "gain_range": "--gain_low, --gain_high",
    "contrast_range": "--contrast_low, --contrast_high",
    "std_intensity_range": "--std_intensity_range_low, --std_intensity_range_high",
    **{
        name: f"--{name}"
        for name in (
            "min_columns",
            "max_tries",
            "simplify_factor",
            "baseline_intensity",
            "v_std",
            "cube_kernel_size",
        )
    },
}


def make_parser() -> FlagParser:
    """Return the parser of the flags above and of those that do not change the data."""
    parser = FlagParser(
        description="Simulate 3D volumes of the fly's optic lobe on all cores into one HDF5 file."
    )
    for title, flags in FLAGS.items():
        add = parser.add_argument_group(title).add_argument
        for flag, kind, default, text in flags:
            add(flag, type=kind, default=default, metavar=kind.__name__.upper(), help=text)
    add = parser.add_argument_group("run").add_argument
    # fmt: off
    add("--workers", type=int, metavar="INT",
        help="processes that simulate (default: one for each core that this process may use)")
    add("--dask-scheduler", metavar="tcp://HOST:PORT",
        help="simulate on this Dask cluster instead (needs requirements-dask.txt)")
    add("--overwrite", action="store_true",
        help="replace an existing file as soon as the new one is complete")
    # fmt: on
    return parser


class RequestError(ValueError):
    """The user asked for something wrong or impossible; the message is one line."""


class ImpossibleSampleError(RequestError):
    """A sample can never be simulated with these parameters."""


class WorkerError(RuntimeError):
    """A worker is gone, or lacks this program; the message is one line."""

    def __init__(
        self, reason: str = "a worker died (killed, or out of memory: fewer --workers need less)"
    ) -> None:
        super().__init__(f"{reason}; {KEPT}")


def recipe_from_flags(args: argparse.Namespace) -> Recipe:
    """Return configuration, seed and number of samples; RequestError names a bad flag."""
    from utils.simulation import VolumeConfig
    from utils.storage import Recipe

    if args.L < 1:
        raise RequestError(f"--L {args.L}: must be at least 1")
    try:
        config = VolumeConfig(
            shape=(args.L_xy, args.L_xy, args.L_z),
            lattice_intervals=(args.lattice_low, args.lattice_high),
            axis_scales=(args.axis_scale_low, args.axis_scale_high),
            min_columns=args.min_columns,
            max_tries=args.max_tries,
            simplify_factor=args.simplify_factor,
            baseline_intensity=args.baseline_intensity,
            v_std=args.v_std,
            std_intensity_range=(args.std_intensity_range_low, args.std_intensity_range_high),
            cube_kernel_size=args.cube_kernel_size,
            background_sigma=args.NF_size,
            background_range=(args.background_low, args.background_high),
            gain_range=(args.gain_low, args.gain_high),
            contrast_range=(args.contrast_low, args.contrast_high),
        )
        return Recipe(config, args.random_state, args.L)
    except UserError as error:
        field, _, rest = str(error).partition(" ")
        raise RequestError(f"{FIELDS_TO_FLAGS.get(field, field)} {rest}") from error


# --- In the workers -------------------------------------------------------------------------------


def simulate_row(checkout: str, config: dict[str, Any], seed: int, index: int) -> EncodedRow:
    """Simulate and compress one sample; takes plain types, so that any machine can unpack them."""
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from utils.simulation import VolumeConfig, sample_rng, simulate_volume
    from utils.storage import encode_row

    return encode_row(simulate_volume(VolumeConfig.from_dict(config), sample_rng(seed, index)))


_shared: mmap.mmap | None = None
"""In a forked worker: memory shared with the parent, one part for each sample under way."""


def simulate_into_shared(start: int, size: int, *task: Any) -> tuple[int, int] | EncodedRow:
    """Put a row into the shared memory at ``start``; return the sizes of its two parts.

    A row that needs more than ``size`` bytes is returned as it is.
    """
    row = simulate_row(*task)
    split, end = len(row.image), len(row.image) + len(row.record)
    if _shared is None or end > size:
        return row
    _shared[start : start + split] = row.image
    _shared[start + split : start + end] = row.record
    return split, end - split


def _prepare_worker(parent: int, shared: mmap.mmap | None) -> None:
    """Leave Ctrl-C to the parent, and leave with it if it is killed."""
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _shared = shared
    keep_freed_volumes()
    threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


# --- Pools ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Workers with places for samples under way: twice as many as are simulated at a time.

    So no worker waits and memory is bounded. Forked workers leave their rows in memory that they
    share with the parent and send two numbers: megabytes through a pipe would cost time on both
    ends, and a worker killed in the middle of them would leave the parent waiting for the rest.
    """

    executor: Executor
    at_a_time: int
    shared: mmap.mmap | None = None
    place_size: int = 0

    @property
    def places(self) -> int:
        """Number of samples that may be under way."""
        return 2 * self.at_a_time

    def submit(self, recipe: Recipe, index: int, place: int) -> Future[Any]:
        """Have sample ``index`` simulated into a place; WorkerError if a worker is gone."""
        task = (str(CHECKOUT), recipe.config.to_dict(), recipe.seed, index)
        start = place * self.place_size
        try:
            if self.shared is None:
                return self.executor.submit(simulate_row, *task)
            return self.executor.submit(simulate_into_shared, start, self.place_size, *task)
        except BrokenExecutor as error:
            raise WorkerError from error

    def row(self, future: Future[Any], place: int) -> EncodedRow:
        """Return what a future made; valid until the place is used again.

        Raises ValueError if the sample cannot be simulated, WorkerError if its worker is gone or
        lacks this program.
        """
        from utils.storage import EncodedRow

        try:
            made = future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise WorkerError from error
        except ModuleNotFoundError as error:
            raise WorkerError(
                f"the workers find no {error.name}: their machines need this checkout at "
                f"{CHECKOUT} and its requirements.txt installed"
            ) from error
        except Exception as error:
            if type(error).__name__ == "KilledWorker":  # of distributed, not always installed
                raise WorkerError from error
            raise
        if self.shared is None or isinstance(made, EncodedRow):
            return made
        start = place * self.place_size
        view = memoryview(self.shared)[start : start + sum(made)]
        return EncodedRow(view[: made[0]], view[made[0] :])


@contextlib.contextmanager
def local_pool(workers: int, place_size: int) -> Iterator[Pool]:
    """Start worker processes; the kernels are compiled, or loaded, before they are forked."""
    simulate_row(str(CHECKOUT), _tiny_config(), 0, 0)
    can_fork = sys.platform == "linux"
    shared = mmap.mmap(-1, 2 * workers * place_size) if can_fork else None
    executor = ProcessPoolExecutor(
        workers,
        mp_context=get_context("fork" if can_fork else "spawn"),
        initializer=_prepare_worker,
        initargs=(os.getpid(), shared),
    )
    try:
        # All workers are forked here: before the file is locked and before any thread is started.
        executor.submit(os.getpid).result()
        yield Pool(executor, workers, shared, place_size)
    finally:
        executor.shutdown(cancel_futures=True)


def _tiny_config() -> dict[str, Any]:
    from utils.simulation import VolumeConfig

    tiny = VolumeConfig(shape=(32, 32, 32), lattice_intervals=(4, 5), min_columns=5)
    return tiny.to_dict()


@contextlib.contextmanager
def dask_pool(address: str) -> Iterator[Pool]:
    """Connect to a Dask cluster whose machines see this checkout under the same path."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise RequestError(
            f"--dask-scheduler needs {error.name}: pip install -r requirements-dask.txt"
        ) from error
    try:
        client = Client(address, timeout=DASK_TIMEOUT)
    except (OSError, ValueError, TimeoutError) as error:
        raise RequestError(f"--dask-scheduler {address}: no scheduler answers there") from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise RequestError(f"--dask-scheduler {address}: the cluster has no workers")
        executor = client.get_executor(pure=False)
        try:
            yield Pool(executor, threads)
        finally:
            executor.shutdown(wait=False)


def open_pool(args: argparse.Namespace, recipe: Recipe) -> AbstractContextManager[Pool]:
    """Return the workers that the flags ask for."""
    from utils.storage import disk_space

    if args.dask_scheduler:
        return dask_pool(args.dask_scheduler)
    workers = min(args.workers or usable_cores(), recipe.num_samples)
    return local_pool(workers, disk_space(replace(recipe, num_samples=1)))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- The file -------------------------------------------------------------------------------------


def is_already_there(path: Path, recipe: Recipe) -> bool:
    """Return whether the file is complete and the same; RequestError if another is in the way."""
    from utils.storage import StorageError, VolumeFile, remove_stray_journal, version_note

    if not path.exists():
        return False
    try:
        with VolumeFile(path) as file:
            differences = file.recipe.differences(recipe)
            version = file.program_version
    except StorageError as error:
        raise RequestError(f"{error}; --overwrite replaces it") from error
    if differences:
        raise RequestError(
            f"{path} exists with other parameters: {describe(differences)}; "
            "choose another --filename, or --overwrite"
        )
    if note := version_note(path, version):
        print(f"{note} (--overwrite does)", file=sys.stderr)
    remove_stray_journal(path)
    return True


def describe(differences: list[tuple[str, Any, Any]]) -> str:
    """Return one line that names the flags whose values differ."""
    return "; ".join(
        f"{FIELDS_TO_FLAGS.get(name, name)}: {old} in the file, {new} asked for"
        for name, old, new in differences
    )


def check_disk(path: Path, recipe: Recipe) -> None:
    """Raise RequestError if the disk has no room for the file, less what is already there of it."""
    from utils.storage import disk_space, partial_path

    partial = partial_path(path)
    needed = disk_space(recipe) - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise RequestError(
            f"{path}: about {in_words(needed)} are needed, {in_words(free)} are free there"
        )


def in_words(size: int) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@contextlib.contextmanager
def begin_or_pick_up(path: Path, recipe: Recipe, overwrite: bool) -> Iterator[VolumeWriter]:
    """Open the file to be written and say where it stands."""
    from utils.storage import RecipeMismatchError, open_writer

    try:
        writer = open_writer(path, recipe, restart=overwrite)
    except RecipeMismatchError as error:
        raise RequestError(
            f"{error.path} was begun with other parameters: {describe(error.differences)}; "
            "--overwrite starts anew"
        ) from error
    with writer:
        if writer.restarted_because:
            print(f"{path}: {writer.restarted_because}: starting anew", file=sys.stderr)
        done = recipe.num_samples - len(writer.missing)
        if done:
            print(f"{path}: picking up after {done} of {recipe.num_samples} samples")
        yield writer


def fill(writer: VolumeWriter, pool: Pool) -> None:
    """Simulate all missing samples and write them in the order in which they come."""
    from tqdm import tqdm

    recipe = writer.recipe
    ahead = iter(writer.missing)
    running: dict[Future[Any], tuple[int, int]] = {}  # to (sample, place)

    def submit_next(place: int) -> None:
        for index in islice(ahead, 1):
            running[pool.submit(recipe, index, place)] = (index, place)

    with tqdm(
        total=recipe.num_samples,
        initial=recipe.num_samples - len(writer.missing),
        desc=writer.path.name,
        unit="volume",
    ) as progress:
        for place in range(pool.places):
            submit_next(place)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, place = running.pop(future)
                writer.write(index, simulated_row(pool, future, recipe, index, place))
                submit_next(place)
                progress.update()


def simulated_row(
    pool: Pool, future: Future[Any], recipe: Recipe, index: int, place: int
) -> EncodedRow:
    """Return a sample that is done; ImpossibleSampleError says why it could not be simulated."""
    try:
        return pool.row(future, place)
    except ValueError as error:
        raise ImpossibleSampleError(
            f"sample {index} of seed {recipe.seed} cannot be simulated: {error}"
        ) from error


def generate(args: argparse.Namespace) -> None:
    """Make the file that the flags ask for, or find it made."""
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers}: must be at least 1")
    recipe = recipe_from_flags(args)
    path = Path(args.directory) / args.filename
    if path.is_dir():
        raise RequestError(f"{path} is a directory: name a file with --filename")
    if not args.overwrite and is_already_there(path, recipe):
        print(f"{path} is complete and has these parameters: nothing to do")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    check_disk(path, recipe)
    started = time.perf_counter()
    with open_pool(args, recipe) as pool, begin_or_pick_up(path, recipe, args.overwrite) as writer:
        try:
            fill(writer, pool)
        except ImpossibleSampleError:
            writer.discard()
            raise
        writer.finish()
    seconds = time.perf_counter() - started
    size = in_words(path.stat().st_size)
    print(f"{path}: {recipe.num_samples} volumes, seed {recipe.seed}, {size}, {seconds:.0f} s")


def main(argv: list[str] | None = None) -> int:
    """Run the script; return its exit status."""
    args = make_parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with one_thread_a_process():
            return generate_or_explain(args)
    except ModuleNotFoundError as error:
        return fail(f"{error.name} is not installed: pip install -r requirements.txt", 2)
    except KeyboardInterrupt:
        return fail(f"stopped; {KEPT}", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def one_thread_a_process() -> Iterator[None]:
    """Tell the libraries, and those of workers, to take one core each, within the block.

    So no worker waits for another, and samples are the same to the bit on all machines.
    """
    names = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def generate_or_explain(args: argparse.Namespace) -> int:
    """Generate; turn what a user can mend into one line; return the exit status."""
    from utils.storage import StorageError

    try:
        generate(args)
    except (RequestError, StorageError, OSError) as error:
        return fail(str(error), 2)
    except WorkerError as error:
        return fail(str(error), 1)
    except MemoryError:
        return fail(f"out of memory: fewer --workers, or voxels, need less; {KEPT}", 1)
    return 0


def fail(message: str, status: int) -> int:
    """Print one line and return ``status``."""
    print(f"{Path(__file__).name}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

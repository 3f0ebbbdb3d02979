"""Search hyperparameters: run a training script over and over with other flags, and compare.

    python search_hyperparameters.py experiments/depth_channels.toml
    python search_hyperparameters.py experiments/search.toml --n_trials 60 --jobs 2
    python search_hyperparameters.py experiments/stacks.toml -- --data_dir /data/volumes --epochs 50
    python search_hyperparameters.py experiments/seeds.toml --study wide -- --start_channels 16

The study file names the script, the flags that are fixed, and those that are tried; whatever
follows -- goes to every training. Each trial is an experiment of its own,
<log_path>/<study>/trial_0007. The same command goes on where it stopped: trials that were cut are
repeated, on another machine too. With --storage on a database server, any number of machines work
on one study; each writes its trials' directories to its own --log_path. At the end, or with
--report_only at any time, come tables (trials.csv; seeds.csv, the means and 95 % intervals over
seeds) and pictures (history.png, curves.png, flags.png).

All flags stand in parse_flags, right below. Exit status: 0 when the study is complete or its time
is up, 1 when trials fail for the same reason again and again, 2 for a mistake in the flags or the
study file, 130 when it is interrupted.
"""

from __future__ import annotations

import argparse
import functools
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import INTERRUPTED, UserError, exit_status
from utils.flags import FlagParser
from utils.replacing import make_folder, replacing
from utils.search.definition import SCRIPTS, read_study_file

if TYPE_CHECKING:
    from utils.search.study import Search

DEFAULT_STUDY = Path(__file__).resolve().parent / "experiments" / "search.toml"


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags, and what follows -- as ``extra``; exits with status 2 and one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = FlagParser(
        usage="%(prog)s [STUDY_FILE] [flags] [-- flags of the training script]",
        description="Run a training script over and over with other flags, and compare.",
    )

    # fmt: off
    parser.add_argument("study_file", nargs="?", default=DEFAULT_STUDY, metavar="STUDY_FILE",
        help="what to try, such as those in experiments/")

    add = parser.add_argument_group("study").add_argument
    add("--study", default=None, metavar="STR",
        help="name of the study and of its folder; the file's name when not given")
    add("--log_path", default="./logs", metavar="STR",
        help="folder of the study's folder")
    add("--storage", default=None, metavar="URL",
        help="database; sqlite:///<log_path>/<study>/study.db when not given. Several machines "
        "need a server, such as postgresql+psycopg://user:password@host/database")
    add("--report_only", action="store_true",
        help="run nothing: tables and picture of what has been tried")

    add = parser.add_argument_group("length").add_argument
    add("--n_trials", default=None, type=int, metavar="INT",
        help="most trials of the study in all, over all calls and machines; the file's number, or "
        "every combination of a grid, when not given")
    add("--timeout_minutes", default=None, type=float, metavar="FLOAT",
        help="start no trial after this time; those under way come to their end")
    add("--retry_failed", action="store_true",
        help="repeat the trials whose training failed")

    add = parser.add_argument_group("machine").add_argument
    add("--jobs", default=1, type=int, metavar="INT",
        help="trials at a time; they share the cores")
    add("--gpus", default=None, nargs="+", metavar="INT",
        help="give each job one of these GPUs in turn, such as 0 1 2 3")
    add("--seed", default=None, type=int, metavar="INT",
        help="of the values that tpe and random draw; another one on each machine, or none")
    # fmt: on
    flags = parser.parse_args(arguments[:split])
    flags.extra = arguments[split + 1 :]
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, search, report; return the exit status."""
    flags = parse_flags(arguments)
    return exit_status("search_hyperparameters.py", lambda: run(flags))


def run(flags: argparse.Namespace) -> int:
    """Search as ``flags`` say; raises UserError for mistakes of the user."""
    definition = read_study_file(flags.study_file, flags.extra)
    for flag in ("n_trials", "jobs", "timeout_minutes"):
        value = getattr(flags, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag} {value}: must be larger than 0")
    n_trials = flags.n_trials or definition.n_trials or math.inf
    if flags.timeout_minutes is None and min(n_trials, definition.size()) == math.inf:
        raise UserError(
            f"the study {definition.name} has no end of its own (sampler {definition.sampler}, no "
            "n_trials): give --n_trials or --timeout_minutes"
        )
    name = flags.study or definition.name
    if Path(name).name != name or name.startswith("."):
        raise UserError(f"--study {name!r}: must be a plain name, such as my_study")
    folder = make_folder(Path(flags.log_path) / name).resolve()

    from utils.search.study import Search, open_study, retry_failed

    url = flags.storage or f"sqlite:///{folder / 'study.db'}"
    study = open_study(url, name, definition, flags.seed)
    how = n_trials, flags.jobs, flags.gpus or (), functools.partial(print, flush=True)
    search = Search(definition, study, folder, *how)
    status = 0
    if not flags.report_only:
        repeated = retry_failed(search.study) if flags.retry_failed else 0
        todo = search.remaining()
        among = f", {repeated} failed ones among them" if repeated else ""
        number = "as many as time allows" if todo == math.inf else todo
        search.say(f"{name}: {definition.question}\nto do: {number} trials{among}\nin {folder}")
        status = run_until_told(search, 60 * (flags.timeout_minutes or math.inf))
    report(search)
    return status


def run_until_told(search: Search, seconds: float) -> int:
    """Run ``search`` to its end, or until SIGINT or SIGTERM; return the exit status."""
    told: list[str] = []

    def cut(number: int, frame: object) -> None:
        told.append(signal.Signals(number).name)
        search.stop.set()

    before = {n: signal.signal(n, cut) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        search.run(seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not told and not search.failure:
        return 0
    reason = f"trials fail alike: {search.failure}; mend it, then --retry_failed repeats them"
    if told:
        reason = f"interrupted by {told[0]}; the same command goes on"
    print(f"search_hyperparameters.py: {reason}", file=sys.stderr)
    return INTERRUPTED if told else 1


def report(search: Search) -> None:
    """Write and print what the study has found so far."""
    from utils.figures.learning import WHOLE_SHEET_IOU
    from utils.figures.studies import save_study
    from utils.search.study import format_table, format_trials, means_over_seeds, trials_table

    trials = trials_table(search.study)
    if trials.empty:
        search.say("no trial yet")
        return
    search.say(f"\n{format_trials(trials)}")
    tables = {"trials.csv": trials}
    means = means_over_seeds(trials)
    if not means.empty:
        search.say(f"\nmean IoU over seeds, with its 95 % interval\n{format_table(means)}")
        tables["seeds.csv"] = means
    for name, table in tables.items():
        with replacing(search.folder / name) as temporary:
            table.to_csv(temporary, index=False)
    baseline = WHOLE_SHEET_IOU if SCRIPTS[search.definition.script] == 3 else None
    about = {"title": search.definition.question, "baseline": baseline}
    pictures = save_study(search.study, search.folder, **about)
    names = [*tables, *(path.name for path in pictures)]
    search.say(f"\n{', '.join(names)} in {search.folder}")


if __name__ == "__main__":
    sys.exit(main())

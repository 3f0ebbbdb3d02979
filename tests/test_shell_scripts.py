"""The shell scripts: they parse, and their environment code says in one line what a machine lacks.

A checkout of stand-ins is made in a temporary folder: a `python3` that records how it was called
and plays the machine that a test describes. Nothing is installed and no network is used.
"""

import os
import re
import shlex
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.sh")]
    + [".ci/run", ".ci/environment.sh"]
)
TOOLS = "bash basename dirname df awk grep tail cmp cp rm mkdir cat sed".split()

FAKE_PYTHON = """#!/usr/bin/env bash
# Plays a Python: says its version, makes an environment of itself, records the calls of pip.
case "$*" in
"--version") echo "Python ${FAKE_VERSION:-3.11.7}" ;;
*version_info*) [ "${FAKE_VERSION:-3.11.7}" != "3.9.2" ] ;;
*ensurepip,*) [ -z "${FAKE_NO_VENV:-}" ] ;;
"-m venv --clear "*)
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    ;;
"-m pip install"*)
    echo "pip $*" >>"$FAKE_CALLS"
    if [ -n "${FAKE_PIP_ERROR:-}" ]; then echo "$FAKE_PIP_ERROR" >&2; exit 1; fi
    ;;
"-m "*)
    echo "ran $*"
    [ "$2" != "${FAKE_FAILING_MODULE:-none}" ]
    ;;
*.py*)
    echo "$*" >>"$FAKE_CALLS.scripts"
    [ "$1" != "${FAKE_FAILING_SCRIPT:-none}" ]
    ;;
"- "*) echo "report on $2" ;;
esac
"""


@dataclass(frozen=True)
class Machine:
    """A checkout of the real shell scripts on a PATH of stand-ins."""

    root: Path
    tools: Path

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout; the environment describes the machine."""
        return subprocess.run(
            ["bash", str(self.root / script), *arguments],
            env={
                "PATH": str(self.tools),
                "HOME": str(self.root),
                "FAKE_CALLS": str(self.root / "calls"),
                **environment,
            },
            cwd=cwd or self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def pip_calls(self) -> list[str]:
        """Return how pip was called, a line each."""
        calls = self.root / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def script_calls(self) -> list[list[str]]:
        """Return how the Python scripts were called."""
        return [line.split() for line in (self.root / "calls.scripts").read_text().splitlines()]

    def add_tool(self, name: str, text: str) -> None:
        """Put an executable script on the PATH."""
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root, tools = tmp_path / "check out", tmp_path / "tools"
    (root / ".ci").mkdir(parents=True)
    tools.mkdir()
    for script in ["run_tests.sh", "quickstart.sh", ".ci/run", ".ci/environment.sh"]:
        shutil.copy(ROOT / script, root / script)
    for name in ["requirements.txt", "requirements-dev.txt"]:
        (root / name).write_text(f"# {name}\n")
    for tool in TOOLS:
        os.symlink(str(shutil.which(tool)), tools / tool)
    made = Machine(root, tools)
    made.add_tool("python3", FAKE_PYTHON)
    made.add_tool(
        "df", "#!/usr/bin/env bash\necho header\necho disk 9 9 ${FAKE_FREE:-9000000} 9 /\n"
    )
    return made


def assert_stopped(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check for status 2 and one line on standard error that holds every part."""
    assert result.returncode == 2, result
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses(script: str) -> None:
    result = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != ".ci/environment.sh"])
def test_script_is_executable(script: str) -> None:
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("script", ["run_tests.sh", "quickstart.sh", ".ci/run"])
def test_too_old_python_is_named(machine: Machine, script: str) -> None:
    result = machine.run(script, FAKE_VERSION="3.9.2")
    assert_stopped(result, "Python 3.11 or newer", "3.9.2")
    assert not (machine.root / ".venv").exists()


def test_missing_python_is_named(machine: Machine) -> None:
    (machine.tools / "python3").unlink()
    assert_stopped(machine.run("run_tests.sh"), "Python 3.11 or newer", "none on the PATH")


def test_newer_python_of_another_name_is_found(machine: Machine) -> None:
    machine.add_tool(
        "python3.12", FAKE_PYTHON.replace("${FAKE_VERSION:-3.11.7}", "${FAKE_312:-3.12.1}")
    )
    result = machine.run("run_tests.sh", FAKE_VERSION="3.9.2")
    assert result.returncode == 0, result.stderr
    assert "Python 3.12.1" in result.stdout


def test_missing_venv_module_is_named(machine: Machine) -> None:
    assert_stopped(machine.run("run_tests.sh", FAKE_NO_VENV="1"), "venv module", "python3-venv")


def test_full_disk_is_named_before_anything_is_made(machine: Machine) -> None:
    assert_stopped(machine.run("run_tests.sh", FAKE_FREE="120000"), "120 MB free", "3000 MB")
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        ("WARNING: NewConnectionError(': Failed to establish a new connection')", "network"),
        ("WARNING: NameResolutionError", "network"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk"),
        ("ERROR: No matching distribution found for torch==2.13.0", "No matching distribution"),
    ],
)
def test_failing_pip_is_one_line_and_leaves_no_stamp(
    machine: Machine, complaint: str, said: str
) -> None:
    result = machine.run("run_tests.sh", FAKE_PIP_ERROR=complaint + "\nmore of it")
    assert_stopped(result, said, "pip.log")
    assert "ran" not in result.stdout
    again = machine.run("run_tests.sh")
    assert again.returncode == 0, again.stderr
    assert len(machine.pip_calls()) == 2


def test_environment_is_reused_until_requirements_change(machine: Machine) -> None:
    for _ in range(2):
        assert machine.run("run_tests.sh").returncode == 0
    assert len(machine.pip_calls()) == 1
    (machine.root / "requirements.txt").write_text("numpy\n")
    assert machine.run("run_tests.sh").returncode == 0
    assert len(machine.pip_calls()) == 2


def test_one_call_of_pip_installs_both_files(machine: Machine) -> None:
    machine.run("run_tests.sh")
    (call,) = machine.pip_calls()
    assert "requirements.txt" in call
    assert "requirements-dev.txt" in call


def test_broken_environment_is_made_again(machine: Machine) -> None:
    machine.run("run_tests.sh")
    (machine.root / ".venv/bin/python").write_text("#!/nonexistent\n")
    result = machine.run("run_tests.sh")
    assert result.returncode == 0, result.stderr
    assert "Making .venv" in result.stdout


def test_arguments_go_on_to_pytest_from_any_folder(machine: Machine, tmp_path: Path) -> None:
    result = machine.run("run_tests.sh", "-k", "a b", cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "ran -m pytest -k a b"


def test_status_of_pytest_is_handed_on(machine: Machine) -> None:
    assert machine.run("run_tests.sh", FAKE_FAILING_MODULE="pytest").returncode == 1


ALL_TESTS = "ran -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal"


@pytest.mark.parametrize("failing", ["ruff", "mypy", "pytest"])
def test_ci_fails_with_each_of_its_steps(machine: Machine, tmp_path: Path, failing: str) -> None:
    assert machine.run(".ci/run", cwd=tmp_path).returncode == 0
    result = machine.run(".ci/run", cwd=tmp_path, FAKE_FAILING_MODULE=failing)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == ALL_TESTS


def test_quickstart_simulates_trains_and_evaluates(machine: Machine, tmp_path: Path) -> None:
    result = machine.run("quickstart.sh", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    calls = machine.script_calls()
    assert [call[0] for call in calls] == [
        *["generate_3d_data.py"] * 3,
        "train_basic_3dunet.py",
        "evaluate.py",
    ]
    seeds = {call[call.index("--random_state") + 1] for call in calls[:3]}
    assert len(seeds) == 3
    assert "predictions.png" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("report on quickstart/logs")


def test_quickstart_keeps_data_and_trains_anew(machine: Machine) -> None:
    assert machine.run("quickstart.sh").returncode == 0
    data = machine.root / "quickstart/data/train.h5"
    old = machine.root / "quickstart/logs/unet3d/logs.json"
    data.write_text("volumes")
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    assert machine.run("quickstart.sh").returncode == 0
    assert data.exists()
    assert not old.exists()
    (machine.root / "quickstart/data/volumes").write_text("--other settings")
    assert machine.run("quickstart.sh").returncode == 0
    assert not data.exists()


@pytest.mark.parametrize("script", ["generate_3d_data.py", "train_basic_3dunet.py", "evaluate.py"])
def test_quickstart_stops_with_the_step_that_fails(machine: Machine, script: str) -> None:
    result = machine.run("quickstart.sh", FAKE_FAILING_SCRIPT=script)
    assert result.returncode == 1
    assert machine.script_calls()[-1][0] == script
    assert "Pictures" not in result.stdout


def test_quickstart_takes_no_arguments_but_help(machine: Machine) -> None:
    assert_stopped(machine.run("quickstart.sh", "--epochs"), "no arguments", "--epochs")
    told = machine.run("quickstart.sh", "--help")
    assert told.returncode == 0
    assert "./quickstart" in told.stdout
    assert not (machine.root / ".venv").exists()


def quickstart_flags(name: str) -> list[str]:
    """Return the flags of an array in quickstart.sh."""
    (flags,) = re.findall(rf"readonly {name}=\((.*?)\)", (ROOT / "quickstart.sh").read_text(), re.S)
    return shlex.split(flags, comments=True)


def test_quickstart_flags_are_those_of_the_scripts() -> None:
    import generate_3d_data
    import train_basic_3dunet

    volumes = vars(generate_3d_data.make_parser().parse_args(quickstart_flags("VOLUMES")))
    training = vars(train_basic_3dunet.parse_flags(quickstart_flags("TRAINING")))
    assert training["patch_size"] <= volumes["L_xy"]
    assert volumes["min_columns"] < 100

"""What README.md says is true: its links, its layout, its flags, its Python."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import write_fake_file

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@cache
def help_of(script: str) -> str:
    command = [sys.executable, script, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def commands() -> list[tuple[str, str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    found = [re.match(r"python (\w+\.py)(.*)", line) for line in lines]
    return [(m.group(1), m.group(2)) for m in found if m]


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#: ]+)[^)]*\)", README) + re.findall(r'src="([^":]+)"', README)
    assert len(targets) >= 8
    assert [t for t in targets if not (ROOT / t).exists()] == []


@pytest.mark.parametrize("script, arguments", commands())
def test_flags_of_commands_exist(script, arguments):
    for flag in re.findall(r"--[\w-]+", arguments):
        assert flag in help_of(script), f"{script} has no {flag}"


def test_the_layout_is_the_tree():
    layout = README[README.index("## Layout") : README.index("## Dependencies")]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked} - {".gitignore"}
    rooms = {p.split("/")[1] for p in tracked if p.startswith("utils/")} - {"__init__.py"}
    rooms |= {p.split("/")[2] for p in tracked if p.startswith("utils/simulation/")}
    missing = [name for name in top | rooms if name not in layout and name != "__init__.py"]
    assert missing == []
    named = re.findall(r"^ *([\w./-]+\.(?:py|sh|md|txt|toml))\b", layout, flags=re.MULTILINE)
    places = (ROOT, ROOT / "utils", ROOT / "utils" / "simulation")
    assert [name for name in named if not any((p / name).exists() for p in places)] == []


def test_python_runs(tmp_path, monkeypatch):
    (tmp_path / "vol_data").mkdir()
    write_fake_file(tmp_path / "vol_data" / "vol_val_set.h5")
    monkeypatch.chdir(tmp_path)
    snippets = blocks("python")
    assert len(snippets) == 3
    for code in snippets:
        exec(compile(code, "README.md", "exec"), {})

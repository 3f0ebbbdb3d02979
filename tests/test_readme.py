"""What README.md and docs/ say is true: links, layout, flags of every command, Python."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import write_fake_file

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@cache
def help_of(script: str) -> str:
    command = [sys.executable, *script.split(), "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def commands() -> list[tuple[str, str]]:
    """Return (script, arguments) of each command; of torchrun and srun those of the script."""
    text = "\n".join(block for page in PAGES for block in blocks(page, "bash"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [
        re.search(r"(?:python |\s)(\w+\.py|-m utils\.figures \w+)(.*)", line) for line in lines
    ]
    own = [(m.group(1), re.split("#| -- ", m.group(2))[0]) for m in found if m]
    return sorted(set(own))


def test_readme_fits_a_screen_or_two():
    assert len(PAGES[0].read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#: ]+)[^)]*\)", text) + re.findall(r'src="([^":]+)"', text)
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_pages_find_their_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#: ]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(
            r"^#+ (.*)$", (page.parent / (target or page.name)).read_text(), flags=re.MULTILINE
        )
        slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in slugs, f"{target} has no heading {anchor}"


@pytest.mark.parametrize(("script", "arguments"), commands())
def test_flags_of_commands_exist(script, arguments):
    for flag in re.findall(r"(?<=\s)--[a-zA-Z][\w-]*", arguments):
        assert flag in help_of(script), f"{script} has no {flag}"


def test_the_layout_is_the_tree():
    layout = (ROOT / "docs" / "layout.md").read_text()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked} - {".gitignore"}
    rooms = {p.split("/")[1] for p in tracked if p.startswith("utils/")} - {"__init__.py"}
    files = {Path(p).name for p in tracked if p.startswith(("utils/", "models/"))}
    files -= {"__init__.py", "__main__.py"}
    assert [name for name in sorted(top | rooms | files) if name not in layout] == []
    named = re.findall(r"^ *([\w.-]+\.(?:py|sh|md|txt|toml))\b", layout, flags=re.MULTILINE)
    assert [name for name in named if name not in {Path(p).name for p in tracked}] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    (tmp_path / "vol_data").mkdir()
    write_fake_file(tmp_path / "vol_data" / "vol_val_set.h5", num_samples=15)
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), {})

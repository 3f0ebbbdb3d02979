"""The doors: each room imports from rooms to its left alone, as docs/layout.md draws them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [
    *("ground", "simulation", "storage", "stacks", "data", "checkpoints", "prediction", "columns"),
    *("evaluation", "figures", "training", "search", "scripts"),
]
GROUND = {path.stem for path in (ROOT / "utils").glob("*.py")}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
EXCEPTION = ("utils/data/images.py", "figures")  # `show` of the 2D data sets, which notebooks call


def room(module: str) -> str | None:
    """Return the room of a dotted name; None for what is not ours."""
    first, *rest = module.split(".")
    if first == "utils":
        return "ground" if not rest or rest[0] in GROUND else rest[0]
    return "scripts" if first in SCRIPTS else "models" if first == "models" else None


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield what a file imports wherever it says so; by importlib too, whose names are strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and str(node.value).startswith(("utils.", "models.")):
            yield str(node.value).split()[0]


def test_each_room_imports_from_its_left_alone() -> None:
    wrong = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py"), *ROOT.glob("models/*.py")]:
        file = path.relative_to(ROOT).as_posix()
        home = room(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for other in {room(name) for name in imported(ast.parse(path.read_text()))} - {home, None}:
            both_scale = home in ROOMS and other in ROOMS
            left = both_scale and ROOMS.index(other) < ROOMS.index(home)
            of_models = home == "scripts" and other == "models"
            if not (left or of_models or (file, other) == EXCEPTION):
                wrong.add(f"{file} imports {other}")
        if home == "scripts":
            others = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
            wrong |= {f"{file} imports {name}" for name in others & SCRIPTS}
    assert not wrong, "\n".join(sorted(wrong))

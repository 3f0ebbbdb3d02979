"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.replacing import make_folder, replacing


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (path.parent, ".json")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["log.json"]


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_a_cut_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "log.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["log.json"]


def test_a_full_disk_is_a_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a: cannot be written \(No space left on device\)"):
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not any(tmp_path.iterdir())


def test_folders_are_made_once(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/b: cannot be made \(Not a directory\)"):
        make_folder(tmp_path / "file" / "b")


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is forced out before the name changes, and the name after it."""
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), rename(*names)))
    with replacing(tmp_path / "a") as temporary:
        temporary.touch()
    assert calls == ["fsync", "replace", "fsync"]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing was written"), replacing(tmp_path / "a"):
        pass
    assert not any(tmp_path.iterdir())

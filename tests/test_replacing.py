"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.replacing import make_folder, only_writer, renaming, replacing


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


def test_renaming_leaves_errors_of_the_block_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), renaming(tmp_path / "a") as temporary:
        temporary.write_text("half")
        (tmp_path / "a bug of ours").open()
    assert not any(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written"):
        with renaming(tmp_path / "folder") as temporary:
            temporary.write_text("whole")
    assert os.listdir(tmp_path) == ["folder"]


def test_folders_are_made_once_and_tried(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b")
    assert not any((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/b: cannot be made \(Not a directory\)"):
        make_folder(tmp_path / "file" / "b")
    with pytest.raises(UserError, match=r"file: cannot be made \(File exists\)"):
        make_folder(tmp_path / "file")


def test_a_folder_where_nothing_can_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"a: cannot be written \(Permission denied\)"):
        make_folder(tmp_path / "a")


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


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with only_writer(path), replacing(path) as temporary:
        with pytest.raises(UserError, match="a.txt: another process is writing this file"):
            only_writer(path).__enter__()
        temporary.write_text("first")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]
    with only_writer(path), replacing(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second"


def test_a_writer_that_comes_as_another_ends_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the temporary file before the other renamed it, and locked it after."""
    path, lock = tmp_path / "a.txt", fcntl.flock

    def lock_too_late(file: object, how: int) -> None:
        os.replace(tmp_path / ".a.partial.txt", path)
        lock(file, how)

    path.write_text("the other's")
    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with pytest.raises(UserError, match="just now; try again"):
        only_writer(path).__enter__()


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_writer(tmp_path / "a"), replacing(tmp_path / "a") as temporary:
        temporary.touch()
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none/a: cannot be written"):
        only_writer(tmp_path / "none" / "a").__enter__()

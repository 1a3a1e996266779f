"""Files appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from siamcam_lib import files
from siamcam_lib.errors import CacheError
from siamcam_lib.files import cache_home, whole_file


def test_the_file_is_there_afterwards_and_nothing_else(tmp_path):
    target = tmp_path / "new" / "folder" / "ünïcode name.txt"
    with whole_file(target) as temporary:
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename is atomic on one file system only"
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    assert target.stat().st_mode & 0o777 == 0o644


def test_the_old_content_stays_until_the_new_is_complete(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with whole_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_everything_as_it_was(tmp_path, exception):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(exception), whole_file(target) as temporary:
        temporary.write_text("half")
        raise exception
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_could_not_be_written_never_appears(tmp_path):
    target = tmp_path / "file"
    with pytest.raises(FileNotFoundError), whole_file(target) as temporary:
        temporary.unlink()  # the writer made nothing
    assert not target.exists()


def test_two_writers_do_not_touch_each_others_half(tmp_path):
    target = tmp_path / "file"
    with whole_file(target) as one, whole_file(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"  # the outer block ends last


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_the_old_content(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    program = (
        "import os, signal, sys, types\n"
        "package = types.ModuleType('siamcam_lib')  # the whole package would import torch\n"
        "package.__path__ = [sys.argv[2]]\n"
        "sys.modules['siamcam_lib'] = package\n"
        "from siamcam_lib.files import whole_file\n"
        "with whole_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(target), str(Path(files.__file__).parent)],
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    with whole_file(target) as temporary:  # what the dead process left is in nobody's way
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_only_old_halves_of_the_file_itself_are_cleared(tmp_path):
    old = [".n[o]te.abc.part", ".note.abc.part", ".n[o]te.part", "n[o]te.abc.part", ".n[o]te.x"]
    for name in old:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".n[o]te.new.part").touch()
    files.clear_halves(tmp_path / "n[o]te")
    assert {p.name for p in tmp_path.iterdir()} == {*old[1:], ".n[o]te.new.part"}


@pytest.mark.parametrize("character", "\n\r\t\x85\u2028\u2029\u061c\u200e\u200f\u202e\u2069")
def test_a_name_is_shown_on_one_line_in_one_direction(character):
    assert files.shown(f"a{character}b") == "a�b"


class TestCacheHome:
    def test_the_variable_names_it_and_it_is_made(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "a" / "b"))
        assert cache_home() == tmp_path / "a" / "b"
        assert cache_home().is_dir()

    def test_without_it_the_users_cache_folder_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SIAMCAM_CACHE", "")
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
        assert cache_home() == tmp_path / "siamcam"

    def test_a_file_in_its_place_is_told(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            monkeypatch.setenv("SIAMCAM_CACHE", str(place))
            with pytest.raises(CacheError, match="SIAMCAM_CACHE"):
                cache_home()

    def test_a_folder_that_cannot_be_written_is_told(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path))
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        with pytest.raises(CacheError, match="cannot be written; set SIAMCAM_CACHE"):
            cache_home()

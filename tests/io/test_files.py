"""Files are replaced as a whole, through links, and only regular ones; parts of other runs are kept or removed."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from lmm_gpu.io import files
from lmm_gpu.io.files import replacing, write_json

HOST = socket.gethostname().partition(".")[0]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "run.json").write_text("old")
    (tmp_path / "run.json").symlink_to("real/run.json")
    write_json([1], tmp_path / "run.json")
    assert (tmp_path / "run.json").is_symlink()
    assert (tmp_path / "real" / "run.json").read_text().split() == ["[", "1", "]"]
    assert os.listdir(tmp_path / "real") == ["run.json"]
    (tmp_path / "new.json").symlink_to("real/new.json")  # to a file that does not exist yet
    write_json([2], tmp_path / "new.json")
    assert (tmp_path / "new.json").is_symlink() and (tmp_path / "real" / "new.json").exists()


@pytest.mark.parametrize("make", ["folder", "pipe", "device", "link to a folder", "cycle"])
def test_irregular_files_are_refused(tmp_path, make):
    path = tmp_path / "out.json"
    if make == "folder":
        path.mkdir()
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path = files.Path("/dev/null")
    elif make == "link to a folder":
        path.symlink_to(tmp_path)
    else:
        path.symlink_to(path)
    before = os.lstat(path)
    with pytest.raises(ValueError, match=f"cannot write {path}: "):
        write_json([1], path)
    assert os.lstat(path).st_ino == before.st_ino
    assert len(os.listdir(tmp_path)) <= 1


def test_the_mode_of_the_old_file_is_kept(tmp_path):
    write_json([1], tmp_path / "a.json")
    (tmp_path / "a.json").chmod(0o640)
    write_json([2], tmp_path / "a.json")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_parts_of_two_writers_do_not_meet(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two and HOST in one.name and str(os.getpid()) in one.name
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one"  # the last to end
    assert os.listdir(tmp_path) == ["a"]


def test_stale_parts_are_removed(tmp_path):
    dead, alive = dead_process(), os.getpid()
    stale = [f".a.{HOST}.{dead}.0123abcd.part", f".a.{dead}.part", ".a.elsewhere.1.0123abcd.part"]
    kept = [f".a.{HOST}.{alive}.0123abcd.part", ".a.otherhost.1.0123abcd.part", f".b.{HOST}.{dead}.0123abcd.part"]
    kept += [".a.notes.part", ".a.x.y.z.part", ".a.part"]
    for name in (*stale, *kept):
        (tmp_path / name).write_text("")
    old = time.time() - 2 * 86_400
    os.utime(tmp_path / ".a.elsewhere.1.0123abcd.part", (old, old))
    write_json([1], tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "a"])


def test_writers_on_threads(tmp_path):
    threads = [threading.Thread(target=write_json, args=([i] * 1000, tmp_path / "a.json")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path / "a.json").read_text().split()[1:-1])) <= 2  # of one writer
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(ValueError):
        write_json([1], tmp_path / "a\0b")

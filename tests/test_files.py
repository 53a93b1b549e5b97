"""Atomic writes: afterwards there is either the new file or the old one, and no temporary file. Locks."""

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyperseg._files import atomic_write, file_lock, printable

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
WRITERS = {
    "text": lambda path: path.write_text("new"),
    "torch": lambda path: torch.save(torch.zeros(2), path),
    "safetensors": lambda path: save_file({"w": torch.zeros(2)}, path),
}


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    return path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_in_new_folders(tmp_path):
    path = tmp_path / "some" / "folders" / "a.txt"
    with atomic_write(str(path)) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt", "some writers choose the format by the suffix"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_replace(old):
    with atomic_write(old) as temporary:
        temporary.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new"
    assert os.listdir(old.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
@pytest.mark.parametrize("written", [False, True], ids=["before-the-write", "after-the-write"])
def test_any_exception_keeps_the_old_file(old, error, written):
    def fail(temporary):
        if written:
            temporary.write_text("half")
        raise error

    with pytest.raises(type(error)), atomic_write(old) as temporary:
        fail(temporary)
    assert old.read_text() == "old"
    assert os.listdir(old.parent) == ["a.txt"]


@pytest.mark.parametrize("step", ["chmod", "replace"])
def test_an_interrupt_while_the_file_is_replaced(old, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    writer = atomic_write(old)
    writer.__enter__().write_text("new")
    monkeypatch.setattr(f"os.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.__exit__(None, None, None)
    assert old.read_text() == "old"
    assert os.listdir(old.parent) == ["a.txt"]


def test_an_interrupt_between_the_block_and_the_exit(old):
    """``__exit__`` is never called. Python deletes the context manager, which must still remove its temporary file."""
    writer = atomic_write(old)
    writer.__enter__().write_text("new")
    del writer
    assert old.read_text() == "old"
    assert os.listdir(old.parent) == ["a.txt"]


def test_a_block_that_writes_nothing(old):
    with pytest.raises(FileNotFoundError), atomic_write(old):
        pass
    assert old.read_text() == "old"


def test_a_target_that_is_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_a_file(old):
    with pytest.raises(OSError, match=r"a\.txt"), atomic_write(old / "b"):
        pass
    assert old.read_text() == "old"


def test_concurrent_writers_of_one_file(old):
    """Each writer has its own temporary file, and the result is from one of them."""

    def write(text):
        with atomic_write(old) as temporary:
            temporary.write_text(text)
            return temporary

    texts = [str(i) * 1000 for i in range(10)]
    with ThreadPoolExecutor(4) as pool:
        temporaries = list(pool.map(write, texts * 5))
    assert len(set(temporaries)) == len(temporaries)
    assert old.read_text() in texts
    assert os.listdir(old.parent) == ["a.txt"]


def test_long_names(tmp_path):
    path = tmp_path / ("a" * 251 + ".txt")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@posix
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_follows_the_umask(tmp_path, writer, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a") as temporary:
            WRITERS[writer](temporary)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o666 & ~umask


@posix
@pytest.mark.parametrize("writer", WRITERS)
def test_a_replaced_file_keeps_its_permissions(old, writer):
    old.chmod(0o640)
    with atomic_write(old) as temporary:
        WRITERS[writer](temporary)
    assert mode(old) == 0o640


@posix
def test_a_symbolic_link_is_replaced(old, tmp_path):
    """The link's target is unchanged: caches link a checkpoint to a shared file."""
    link = tmp_path / "link.txt"
    link.symlink_to(old)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert old.read_text() == "old"
    assert link.read_text() == "new"
    assert not link.is_symlink()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("straße 写真.jpg", "straße 写真.jpg"),
        ("a\u202fb\u00a0c", "a\u202fb\u00a0c"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(name, shown):
    assert printable(name) == shown
    shown.encode()


fcntl = pytest.mark.skipif(os.name == "nt", reason="there are no such locks on Windows")


@fcntl
def test_a_lock_is_held_once(tmp_path):
    path = tmp_path / "folder" / "a.lock"
    with file_lock(path, patience=0) as first:
        assert first
        with file_lock(path, patience=0.1) as second:
            assert not second
    with file_lock(path, patience=0) as third:
        assert third


@fcntl
def test_a_lock_is_awaited_and_ends_with_its_process(tmp_path):
    path = tmp_path / "a.lock"
    code = (
        "import sys, time; from hyperseg._files import file_lock\n"
        f"with file_lock({str(path)!r}, 0): print('held', flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[1]
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with file_lock(path, patience=0) as held:
            assert not held
        threading.Timer(0.3, holder.kill).start()
        with file_lock(path, patience=30) as held:
            assert held
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_lock_without_a_writable_folder(old):
    with file_lock(old / "a.lock", patience=10) as held:
        assert not held

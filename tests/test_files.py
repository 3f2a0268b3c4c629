"""write_atomically: whole or not at all, whatever happens in between."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minquant
from minquant import nn
from minquant.files import write_atomically

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

OLD, NEW = b"old" * 1000, bytes(range(256)) * 300


def killed(act: Callable[[], None]) -> bool:
    """Whether a child process that does it dies of SIGKILL; it must not fail otherwise."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            act()
            code = 0
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """A file whose process is killed once it holds so many bytes."""

    def __init__(self, file: Any, lifetime: int) -> None:
        self.file, self.lifetime = file, lifetime

    def write(self, data: bytes) -> int:
        self.file.write(data[: self.lifetime])
        self.file.flush()
        if self.lifetime <= len(data):
            die()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Mortal:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def killed_at_byte(n: int, act: Callable[[], None]) -> bool:
    """Whether `act` is killed when n bytes of its file have been written."""
    opened = builtins.open

    def mortal(path: Any, mode: str = "r", **options: Any) -> Any:
        file = opened(path, mode, **options)
        return Mortal(file, n) if mode == "xb" else file

    def doomed() -> None:
        builtins.open = mortal  # type: ignore[assignment]
        act()

    return killed(doomed)


STEPS = [(os, "fsync"), (os, "replace"), (os, "open"), (fcntl, "flock"), (Path, "exists"), (Path, "iterdir")]


def killed_at_step(module: Any, name: str, after: bool, act: Callable[[], None]) -> bool:
    """Whether `act` is killed when it first calls this function, before or after it did its work."""
    real = getattr(module, name)

    def mortal(*args: Any, **kwargs: Any) -> Any:
        if after:
            real(*args, **kwargs)
        die()

    def doomed() -> None:
        setattr(module, name, mortal)
        act()

    return killed(doomed)


def test_content_and_replacement(tmp_path):
    for data in (OLD, NEW, b""):
        write_atomically(str(tmp_path / "file"), data)
        assert (tmp_path / "file").read_bytes() == data and os.listdir(tmp_path) == ["file"]


def test_killed_at_any_byte_the_old_file_stays(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, OLD)
    for n in [*range(20), *range(20, len(NEW), 997), len(NEW) - 1, len(NEW)]:
        assert killed_at_byte(n, lambda: write_atomically(path, NEW))
        assert path.read_bytes() == OLD
        assert len(os.listdir(tmp_path)) == 2  # what the last one left, and none of those before
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("module", "name"), STEPS)
def test_killed_at_any_step_there_is_one_whole_file(tmp_path, module, name, after):
    path = tmp_path / "file"
    write_atomically(path, OLD)
    assert killed_at_step(module, name, after, lambda: write_atomically(path, NEW))
    replaced = name == "open" or (name == "replace" and after)
    assert path.read_bytes() == (NEW if replaced else OLD)
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW and os.listdir(tmp_path) == ["file"]


def test_a_killed_save_loses_no_model(tmp_path):
    path = tmp_path / "model"
    old, new = nn.Linear(3, 2), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    minquant.save(old, path)
    minquant.save(new, tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    for n in range(0, size + 1, size // 20):
        assert killed_at_byte(n, lambda: minquant.save(new, path))
        assert np.array_equal(minquant.load(path).weight.data, old.weight.data)
    minquant.save(new, path)
    assert np.array_equal(minquant.load(path)[0].weight.data, new[0].weight.data)
    assert sorted(os.listdir(tmp_path)) == ["model", "whole"]


def test_killed_at_random_moments(tmp_path):
    path, dice = tmp_path / "file", random.Random(0)
    versions = [bytes([i]) * 100_000 for i in range(5)]
    write_atomically(path, versions[0])
    for _ in range(25):
        child = os.fork()
        if child == 0:
            while True:
                for version in versions:
                    write_atomically(path, version)
        time.sleep(dice.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.read_bytes() in versions
        assert len(os.listdir(tmp_path)) <= 2
    write_atomically(path, OLD)
    assert path.read_bytes() == OLD and os.listdir(tmp_path) == ["file"]


def test_what_a_living_process_is_writing_is_no_leftover(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace, seen = os.replace, []

    def meanwhile(*names: Any) -> None:
        if not seen:
            seen.append(names[0])
            write_atomically(path, OLD)
            assert path.read_bytes() == OLD
        replace(*names)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_atomically(path, NEW)
    assert seen and path.read_bytes() == NEW and os.listdir(tmp_path) == ["file"]


def test_one_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    path, lock, taken = tmp_path / "file", fcntl.flock, []

    def late(file: Any, operation: int) -> None:
        if not taken:
            taken.append(file.name)
            os.unlink(file.name)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(path, NEW)
    assert taken and path.read_bytes() == NEW and os.listdir(tmp_path) == ["file"]


def test_files_of_others_are_no_leftovers(tmp_path):
    others = [".file.tmp", ".file.backup.tmp", ".other.0123456789abcdef.tmp", "file.0123456789abcdef.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    write_atomically(tmp_path / "file", NEW)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "file"])


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomically(path, OLD)
    monkeypatch.setattr(os, step, no_space)
    with pytest.raises(OSError, match=r"file could not be written \(No space left on device\).*untouched") as error:
        write_atomically(path, NEW)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == OLD and os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_full_in_the_middle(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"file could not be written \(File too large\)"):
            write_atomically(path, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == OLD and os.listdir(tmp_path) == ["file"]


def test_interrupted_by_the_keyboard(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, OLD)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, NEW)
    assert path.read_bytes() == OLD and os.listdir(tmp_path) == ["file"]


def test_places_that_cannot_be_written_to(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere; create it"):
        write_atomically(tmp_path / "nowhere" / "file", NEW)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder could not be written \(Is a directory\)"):
        write_atomically(tmp_path / "folder", NEW)
    assert os.listdir(tmp_path) == ["folder"]

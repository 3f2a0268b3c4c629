"""Writing a file whole or not at all: what is there already survives a crash, a full disk and a killed process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts `data` at `path`, in one step.

    The data go to a temporary file beside it, which is flushed to the disk and then renamed; the folder is flushed,
    too. Whenever the process dies, `path` is the old file or the new one, whole. The temporary file that a dead process
    left behind is removed by the next write to the same path.

    Args:
        path: where to; an existing file is replaced.
        data: the whole content.

    Raises:
        FileNotFoundError: no such folder.
        OSError: a full disk, a folder that cannot be written to, and so on; the old file is untouched, and no temporary
            one is left.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; create it first, and write {path.name} again")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _remove_leftovers(path)
        with _locked(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}); what was there before is untouched. Make room, or write "
            "to another folder",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _locked(temporary: Path) -> BinaryIO:
    """A new file that is locked for as long as it is open, so that nobody takes it for a leftover."""
    while True:
        file = open(temporary, "xb")  # noqa: SIM115 (the caller closes it)
        with contextlib.suppress(OSError):  # where the file system knows no locks, leftovers stay
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return file
        file.close()  # somebody took it for one before it was locked


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files that no process holds: a dead one's locks are gone."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    for leftover in path.parent.iterdir():
        if name.fullmatch(leftover.name):
            with contextlib.suppress(OSError), open(leftover, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def _flush_folder(folder: Path) -> None:
    """Makes the new name in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are on the disk when they are said to be, and folders that one process holds."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .types import InputError


def lock(file: BinaryIO, folder: Path) -> None:
    """Hold a folder by a file in it; the system lets go when the process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"Another run is writing to {folder}: wait for it, or name another folder."
        ) from error
    except OSError:  # a file system that has no locks
        pass


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    import fcntl

    file = os.open(path, os.O_RDONLY)
    try:
        if full := getattr(fcntl, "F_FULLFSYNC", 0):  # macOS: fsync leaves it in the drive's cache
            with suppress(OSError):  # a file system that has none
                fcntl.fcntl(file, full)
                return
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as network folders say
            raise
    finally:
        os.close(file)

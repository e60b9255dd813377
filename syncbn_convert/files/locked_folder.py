"""Folders that one process has, and that nobody has any more when it has ended."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a Unix: a folder is had by who made it, and stays if that is killed
    fcntl = None

JOURNAL = "journal"
"""File in such a folder that says what is to be cleared up outside it."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that lock nothing."""


class Busy(Exception):  # noqa: N818
    """Another process that is alive has the folder."""


class LockedFolder:
    """A folder that this process has until it removes it or ends, by whatever signal.

    The system's lock on the folder itself says whose it is: nothing else is left behind, and a
    folder whose owner was killed is free.

    Args:
        path: The folder; it is made if it is not there.
        recover: Called with the path of a folder that its owner left behind, before it is emptied.

    Raises:
        Busy: if another process has it.
        OSError: if it cannot be made.
    """

    def __init__(self, path: Path, recover: Callable[[Path], None] | None = None) -> None:
        self.path = path
        self._descriptor = -1
        while self._descriptor < 0:
            made = self._made()
            if fcntl is None:
                if not made:
                    raise Busy(path)
                return
            with contextlib.suppress(FileNotFoundError):
                self._descriptor = self._locked(made)
        if os.listdir(path):
            if recover is not None:
                recover(path)
            _empty(path)

    def _made(self) -> bool:
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            return False
        return True

    def _locked(self, made: bool) -> int:
        """Return an open, locked descriptor of the folder; -1 if it was removed meanwhile."""
        assert fcntl is not None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(self.path) from None
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                if not made:
                    raise Busy(self.path) from None
            if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return -1

    def remove(self) -> None:
        """Remove the folder with what is in it, and let go of it."""
        _remove_tree(self.path)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _empty(path: Path) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(entry.path)
            else:
                os.unlink(entry.path)


def _remove_tree(path: str | Path) -> None:
    import shutil  # not before there is work: `--help` needs none

    shutil.rmtree(path, ignore_errors=True)

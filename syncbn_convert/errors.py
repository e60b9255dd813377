"""Errors that a caller may want to catch, each with its exit code on the command line."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Sequence
from typing import ClassVar, Self

_FLAG = re.compile(r"--[a-z][a-z-]*")


class SyncBNError(Exception):
    """Base of all errors that a user can cause and cure.

    The message is one line that says node or file, cause and cure.

    Args:
        message: That line; line breaks in it, such as from names, become spaces.
        cures: Ways out by flags, such as `pass --no-verify`, which the message ends in.
        reporter: Rank of the replica whose message it is, where every replica raises it; None if
            only this replica knows of it, so that the others have to be told.

    Attributes:
        silent: Whether another process prints the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, cures: Sequence[str] = (), reporter: int | None = None
    ) -> None:
        self.message = " ".join(part.strip() for part in message.splitlines())
        self.cures = tuple(cures)
        super().__init__("; ".join(filter(None, (self.message, ", or ".join(self.cures)))))
        self.reporter = reporter
        self.silent = False

    def offering(self, flags: Collection[str]) -> Self:
        """Return the error with those cures that take no flags but these."""
        cures = [cure for cure in self.cures if set(_FLAG.findall(cure)) <= set(flags)]
        return type(self)(self.message, cures=cures, reporter=self.reporter)


class ConversionError(SyncBNError):
    """The model cannot be rewritten as asked (exit code 1)."""


class VerificationError(SyncBNError):
    """The rewritten model is not what the reference runtime says it should be (exit code 1)."""


class UnknownOperatorError(VerificationError):
    """ONNX Runtime lacks an operator of the model, which thus cannot be run (exit code 1)."""


class UsageError(SyncBNError):
    """Options contradict each other or the files that are there (exit code 2)."""

    exit_code = 2


class ModelFileError(SyncBNError):
    """A model file is missing, unreadable, malformed or cannot be written (exit code 2)."""

    exit_code = 2


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk or a share of it is full."""


def printable(text: str) -> str:
    """Return `text` as one line without control characters, which are escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """Return each line of `text` as `printable` has it, with a line break behind."""
    return "".join(f"{printable(line)}\n" for line in text.rstrip("\n").split("\n"))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def no_room_for_temporary_files(error: OSError) -> str:
    """Return the message for a temporary file that cannot be written."""
    import tempfile  # takes a tenth of what `--help` does

    return (
        f"{error.filename or tempfile.gettempdir()}: a temporary file cannot be written: "
        f"{error.strerror or error}; free disk space, or let TMPDIR name another folder"
    )


class ReplicaError(SyncBNError):
    """A run on replicas failed: a replica raised, went away, or is not like the others (exit 1)."""

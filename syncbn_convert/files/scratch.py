"""What belongs to one run of the command line and goes with it, however the run ends.

The command line runs in a process of its own, beside one that waits for it (`cli/supervisor.py`).
Both know a folder: temporary files are made there, and notes in it say what the one that waits has
to tell or to clear up when the other cannot. A process of somebody else, who uses the package as a
library, has no such folder: the functions here do nothing then.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from syncbn_convert.files.locked_folder import Busy, LockedFolder

_PREFIX = "syncbn-convert.run-"
USUAL = "ended by {signal}"
LATE = "{late}"
"""Stands for the replicas that are late, in what a user is told."""
SIGNAL = "{signal}"
"""Stands for the name of the signal that ended a run."""
_WORDS, _STUCK, _CLAIMS = "words", "stuck", "claims"

_folder: Path | None = None
_words: str | None = None


def make() -> LockedFolder:
    """Make the folder of a run, and remove those of runs that were killed.

    Raises:
        OSError: if no folder can be made.
    """
    import tempfile  # not before there is work: `--help` needs none

    parent = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        _clear_up(parent)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with contextlib.suppress(Busy):
            return LockedFolder(path)


def _clear_up(parent: str) -> None:
    with os.scandir(parent) as entries:
        left = [
            entry.path
            for entry in entries
            if entry.name.startswith(_PREFIX)
            and entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        ]
    for path in left:
        with contextlib.suppress(Busy, OSError):
            LockedFolder(Path(path)).remove()


def enter(folder: Path) -> None:
    """Let this process be the one that does the work of a run."""
    import tempfile

    global _folder
    _folder = folder
    temporary = folder / "tmp"
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)  # libraries in C look there


def is_own_process() -> bool:
    """Whether this process does nothing but one command, and ends with it."""
    return _folder is not None


def say_if_interrupted(words: str | None) -> None:
    """Say what a user who interrupts the run is told.

    Args:
        words: What; `SIGNAL` in it stands for the signal's name. Empty is nothing, None the usual.
    """
    global _words
    _words = words
    _note(_WORDS, USUAL if words is None else words)


def said_if_interrupted() -> str | None:
    """Return what was said last in this process."""
    return _words


def say_if_stuck(words: str) -> None:
    """Say what a user is told if SIGALRM ends the run."""
    _note(_STUCK, words)


def claim(path: Path) -> None:
    """Say that a locked folder elsewhere has to be cleared up if the run cannot do it itself."""
    _note(_CLAIMS, f"{os.path.abspath(path)}\0", "a")


def _note(name: str, text: str, mode: str = "w") -> None:
    if _folder is not None:
        with (
            contextlib.suppress(OSError),
            open(_folder / name, mode, encoding="utf-8", errors="surrogateescape") as file,
        ):
            file.write(text)


class Notes:
    """What the process that did the work left for the one that waited."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def words(self) -> str | None:
        """What to tell a user who interrupted; None stands for the usual."""
        return self._read(_WORDS)

    @property
    def stuck(self) -> str:
        """What to tell if SIGALRM ended the run."""
        return self._read(_STUCK) or "the command took too long"

    @property
    def claims(self) -> list[Path]:
        """Folders to clear up."""
        return [
            Path(path) for path in dict.fromkeys((self._read(_CLAIMS) or "").split("\0")) if path
        ]

    def _read(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None

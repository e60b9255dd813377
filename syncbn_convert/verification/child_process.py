"""A child process that answers one request after another, and never outlives its parent."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from syncbn_convert.files import lifeline

COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "syncbn_convert.verification.child")


class ChildProcess:
    """A process that reads names of folders, one a line, and each again when it is done.

    Args:
        command: How to start it; the number of the descriptor of its lifeline follows.
        environment: Its environment variables.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._resources = contextlib.ExitStack()
        hold = self._resources.enter_context(lifeline.held())
        self._process = subprocess.Popen(
            [*command, str(hold)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            pass_fds=[hold],
            text=True,
        )
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def id(self) -> int | None:
        """Its process number while it can be asked."""
        return self._process.pid if self._process.poll() is None else None

    def ask(self, folder: Path, timeout: float) -> tuple[int, str]:
        """Let it answer the request in `folder`.

        Args:
            folder: Where the request is, and the answer will be.
            timeout: Seconds after which it is ended.

        Returns:
            The exit code if it ended (the negative number of a signal), otherwise 0, and what it
            wrote to standard error since it was asked.
        """
        position = self._errors.seek(0, os.SEEK_END)
        try:
            done = self._answered(folder, timeout)
        except BaseException:
            self.close()
            raise
        if done is None:
            self.close()
            return 0, ""
        end = 0 if done else self._process.wait()
        self._errors.seek(position)
        return end, self._errors.read().decode(errors="replace")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for resource in (self._process.stdin, self._errors, self._resources):
            with contextlib.suppress(OSError):
                resource.close()  # type: ignore[union-attr]

    def _answered(self, folder: Path, timeout: float) -> bool | None:
        """Return whether it answered; None if time ran out."""
        assert self._process.stdin is not None
        request = f"{json.dumps(str(folder))}\n"
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        deadline = time.monotonic() + timeout
        try:
            while (reply := self._replies.get(timeout=deadline - time.monotonic())) is not None:
                if reply == request:
                    return True
        except (queue.Empty, ValueError):
            return None
        return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as replies:
            for reply in replies:
                self._replies.put(reply)
        self._replies.put(None)


class Children:
    """One child process at a time, kept for the next request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._started_as: object = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start the child, so that it is there when it is asked."""
        with self._lock:
            self._current()

    def ask(self, folder: Path, timeout: float) -> tuple[int, str]:
        """Let the child answer; see `ChildProcess.ask`."""
        with self._lock:
            return self._current().ask(folder, timeout)

    @property
    def process_id(self) -> int | None:
        """The process number of the child; None if there is none that can be asked."""
        return None if self._child is None else self._child.id

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _current(self) -> ChildProcess:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        start_as = (tuple(COMMAND), path, tempfile.gettempdir())
        if self._child is None or self._child.id is None or self._started_as != start_as:
            self.close()
            self._child = ChildProcess(
                COMMAND, {**os.environ, "TMPDIR": tempfile.gettempdir(), "PYTHONPATH": path}
            )
            self._started_as = start_as
        return self._child

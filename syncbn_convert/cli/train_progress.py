"""How far a training run has come, on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from syncbn_convert.cli import terminal

if TYPE_CHECKING:
    from syncbn_convert.training.loop import TrainProgress


@contextlib.contextmanager
def training(title: str, *, enabled: bool) -> Iterator[Callable[[TrainProgress], None]]:
    """Show epoch, loss, accuracy, speed and time left on stderr, if that is a terminal.

    Yields:
        A function to call after each update.
    """
    if not (enabled and sys.stderr.isatty()):
        yield lambda state: terminal.logger.info("%s: %s", title, describe(state))
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        console=terminal.console(sys.stderr, terminal=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(terminal.printable(title), total=None, state="")

        def show(state: TrainProgress) -> None:
            bar.update(task, completed=state.step, total=state.steps, state=describe(state))

        yield show


def describe(state: TrainProgress) -> str:
    """Return the state as one line."""
    parts = [
        f"epoch {state.epoch}/{state.epochs}",
        f"step {state.step}",
        f"loss {state.loss:.4g}",
        None if state.accuracy is None else f"accuracy {100 * state.accuracy:.1f} %",
        f"{state.rate:.0f} samples/s",
        None if state.seconds_left is None else f"{_duration(state.seconds_left)} left",
    ]
    return ", ".join(part for part in parts if part is not None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

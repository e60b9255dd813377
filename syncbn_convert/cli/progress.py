"""How far the work has come: on a terminal, on stderr; into the log elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from syncbn_convert.cli import terminal
from syncbn_convert.errors import printable
from syncbn_convert.options.importing import ReadingOptions

if TYPE_CHECKING:
    from syncbn_convert.cli.showing import Showing
    from syncbn_convert.commands.run import ShowStage
    from syncbn_convert.runtime.calibration import ShowBatch
    from syncbn_convert.training.loop import ShowUpdate, Update


@contextlib.contextmanager
def stages(model: Path | None, showing: Showing, reading: ReadingOptions) -> Iterator[ShowStage]:
    """Show the stage that is running.

    Yields:
        A function to call with the name of each stage.
    """
    with _set_up(showing, reading) as on_terminal:
        if not on_terminal:
            yield lambda stage: terminal.logger.info("%s: %s", model, stage)
            return
        with terminal.console(sys.stderr, terminal=True).status(printable(str(model))) as status:
            yield lambda stage: status.update(printable(f"{model}: {stage}"))


@contextlib.contextmanager
def batches(model: Path, showing: Showing, reading: ReadingOptions) -> Iterator[ShowBatch]:
    """Show how far a run over data has come.

    Yields:
        A function to call after each batch with batches done, batches in all (if known) and
        samples done.
    """
    with _set_up(showing, reading) as on_terminal:
        if not on_terminal:
            yield lambda done, total, samples: terminal.logger.info(
                "%s: batch %d of %s, %d samples", model, done, total or "?", samples
            )
            return
        from rich.progress import TimeRemainingColumn

        with terminal.bar(str(model), TimeRemainingColumn()) as move:
            start = time.perf_counter()

            def show(done: int, total: int | None, samples: int) -> None:
                rate = samples / max(time.perf_counter() - start, 1e-3)
                move(done, total, f"{rate:.0f} samples/s")

            yield show


@contextlib.contextmanager
def updates(model: Path, showing: Showing, reading: ReadingOptions) -> Iterator[ShowUpdate]:
    """Show epoch, loss, accuracy, speed and time left of a training run.

    Yields:
        A function to call after each update.
    """
    with _set_up(showing, reading) as on_terminal:
        if not on_terminal:
            yield lambda state: terminal.logger.info("%s: %s", model, describe(state))
            return
        with terminal.bar(str(model)) as move:
            yield lambda state: move(state.step, state.steps, describe(state))


def describe(state: Update) -> str:
    """Return the state of a training run as one line."""
    parts = [
        f"epoch {state.epoch}/{state.epochs}",
        f"step {state.step}",
        f"loss {state.loss:.4g}",
        None if state.accuracy is None else f"accuracy {100 * state.accuracy:.1f} %",
        f"{state.rate:.0f} samples/s",
        None if state.memory is None else f"{state.memory / (1 << 30):.1f} GiB",
        None if state.seconds_left is None else f"{_duration(state.seconds_left)} left",
    ]
    return ", ".join(part for part in parts if part is not None)


@contextlib.contextmanager
def _set_up(showing: Showing, reading: ReadingOptions) -> Iterator[bool]:
    """Set up the log and how models are read; yield whether progress is shown on a terminal."""
    terminal.configure_logging(verbose=showing.verbose)
    with contextlib.ExitStack() as stack:
        if reading.custom_objects or reading.trust_model_code:
            from syncbn_convert.keras import custom

            stack.enter_context(custom.custom_objects(*reading.custom_objects))
            if reading.trust_model_code:
                stack.enter_context(custom.trust_model_code())
        yield showing.progress and sys.stderr.isatty()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

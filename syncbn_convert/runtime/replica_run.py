"""A calibration on the replicas of this process, and what happens when one of them fails."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import onnx_ir as ir

from syncbn_convert.errors import ReplicaError, SyncBNError, UsageError
from syncbn_convert.files import model_file, scratch
from syncbn_convert.form import training_form
from syncbn_convert.options.calibrating import CalibrateOptions
from syncbn_convert.options.replicas import ENGINES, ReplicaOptions
from syncbn_convert.passes.recipes import to_form
from syncbn_convert.runtime.calibration import (
    Calibration,
    ShowBatch,
    calibrate_replica,
)
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.datasets import Data, Dataset, open_dataset
from syncbn_convert.runtime.engines import engine_in_use, imported, open_communicator
from syncbn_convert.runtime.open_batch import fixed_batch, open_batch
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.runnable import RunnableForm

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReplicaJob:
    """What a replica has to have before the first batch."""

    form: ir.Model
    came_as_form: bool
    loaded: RunnableForm
    dataset: Dataset


class ReplicaRun:
    """The replicas of this process, and what to do when one fails."""

    def __init__(self, options: ReplicaOptions) -> None:
        self.options = options
        self.engine = engine_in_use(options.engine, options.replicas)
        self.communicator: Communicator = open_communicator(self.engine, options.timeout, options)
        self.size, self.local_size = self._sizes()
        self.writes = self.communicator.rank == 0

        if not self.writes:
            scratch.say_if_interrupted("")  # replica 0 says it for all
        self._signals = contextlib.ExitStack()

    def _sizes(self) -> tuple[int, int]:
        """Return the number of replicas in all, and on this machine."""
        if ENGINES[self.engine].threads:
            return self.options.threads_wanted, self.options.threads_wanted
        if ENGINES[self.engine].devices:
            local: int = self.communicator.local_size
            return self.communicator.size * local, local
        return self.communicator.size, self.communicator.local_size

    def __enter__(self) -> ReplicaRun:
        if self.processes and scratch.is_own_process():
            self._signals.enter_context(_ended_at_once("SIGTERM", "SIGINT", "SIGHUP"))
        return self

    @property
    def processes(self) -> bool:
        """Whether each replica is a process, which a launcher started."""
        return bool(ENGINES[self.engine].variables)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> Literal[False]:
        rank = self.communicator.rank
        if isinstance(error, SyncBNError) and error.reporter is not None:
            error.silent = error.reporter != rank
        elif error is not None:
            if not isinstance(error, SyncBNError):
                _logger.info("replica %d failed", rank, exc_info=error)
            self.communicator.abort(_own_message(rank, error))
        self.communicator.close()
        self._signals.close()
        return False

    def together(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns; if it fails on some replicas, all raise the first's error."""
        failure: SyncBNError | None = None
        try:
            result = work()
        except SyncBNError as error:
            failure = error
        failures = self.communicator.all_gather(failure)
        first = next((rank for rank, found in enumerate(failures) if found is not None), None)
        if first is None:
            return result
        alike = len({str(found) for found in failures}) == 1
        text = str(failures[first]) if alike else _own_message(first, failures[first])
        raise type(failures[first])(text, reporter=first) from failure

    def job(self, model: ir.Model, data: Data) -> ReplicaJob:
        """Convert and load a model, in place, and open its data."""
        came_as_form = bool(training_form.nodes(model))
        form = to_form(model)
        if fixed_batch(form) is not None:
            form = model_file.as_model(form)
            open_batch(form)
        loaded = self.load(form)
        return ReplicaJob(model, came_as_form, loaded, open_dataset(data, loaded.inputs))

    def load(self, form: ir.Model) -> RunnableForm:
        """Load a training form in the engine."""
        loaded: RunnableForm = imported(ENGINES[self.engine].form).for_run(form, self)
        return loaded

    def calibrate(
        self, job: ReplicaJob, options: CalibrateOptions, progress: ShowBatch | None
    ) -> Calibration:
        """Calibrate on all replicas of this process; return the statistics that all agree on.

        Raises:
            UsageError: if groups of replicas would move their statistics each on its own.
        """
        groups = [size for size in job.loaded.group_sizes if size not in (0, self.size)]
        if options.method == "moving" and groups:
            raise UsageError(
                f"the form has groups of {groups[0]} replicas, and each would move its statistics "
                "on its own; take --method precise",
                reporter=0,
            )

        def replica(communicator: Communicator) -> Calibration:
            report = progress if communicator.rank == 0 else None
            return calibrate_replica(job.loaded, communicator, job.dataset, options, report)

        return self.each(replica)

    def each(self, replica: Callable[[Communicator], Result]) -> Result:
        """Call `replica` on every replica of this process; return what the first returns.

        Raises:
            SyncBNError: what one of them raised, with its rank.
        """

        def guarded(communicator: Communicator) -> Result:
            try:
                return replica(communicator)
            except SyncBNError as error:
                if isinstance(error, ReplicaError) or communicator.size == 1:
                    raise
                raise ReplicaError(_own_message(communicator.rank, error)) from error

        if ENGINES[self.engine].threads:
            return on_threads(self.size, guarded, timeout=self.options.timeout)[0]
        with _ended_at_once(*(["SIGTERM"] if self.processes else [])):
            return guarded(self.communicator)


@contextlib.contextmanager
def _ended_at_once(*names: str) -> Iterator[None]:
    """Let signals end this process at once, as mpirun and torchrun expect it to.

    A replica that waits for another, or runs an operator, has no use for a Python handler: there is
    nothing to clean up, and an exception raised inside an operator aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in names]
    previous = {
        number: signal.signal(number, signal.SIG_DFL)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _own_message(rank: int, error: BaseException) -> str:
    """Return the error as one line that begins with the replica that it is about."""
    text = str(error) if isinstance(error, SyncBNError) else f"{type(error).__name__}: {error}"
    return text if text.startswith("replica ") else f"replica {rank}: {text}"

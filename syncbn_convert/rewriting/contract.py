"""The contract of a pass: a frozen dataclass of options that rewrites a model in place."""

from __future__ import annotations

import abc
import dataclasses
import logging
from typing import Any

import onnx_ir as ir

from syncbn_convert.graph import graphs, module_names
from syncbn_convert.reports import Record


@dataclasses.dataclass
class RewriteResult(ir.passes.PassResult):
    """Result of a pass.

    Attributes:
        records: What was done to which node, in graph order.
        notes: What a user should know that belongs to no single node.
    """

    records: list[Record] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewritePass(ir.passes.InPlacePass, abc.ABC):
    """Base of the passes; a subclass adds its options as fields and writes `call`."""

    @property
    def name(self) -> str:
        """Name as the pass's file has it, such as `convert_sync_batchnorm`."""
        return type(self).__module__.rpartition(".")[2]

    @abc.abstractmethod
    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place."""


class Journal:
    """Collects the records of one pass and logs each of them."""

    def __init__(self, logger: logging.Logger) -> None:
        self.records: list[Record] = []
        self.notes: list[str] = []
        self._logger = logger

    def add(
        self,
        node: ir.Node | str,
        action: str,
        reason: str = "",
        *,
        location: str = "",
        module: str = "",
        **detail: Any,
    ) -> None:
        """Record what happened to a node, given itself or by what it and its module are called."""
        record = Record(
            node=node if isinstance(node, str) else graphs.label(node),
            action=action,
            reason=reason,
            location=location,
            detail=detail,
            module=module if isinstance(node, str) else module_names.module_of(node),
        )
        self._logger.debug("%s %s: %s", record.action, record.node, record.reason)
        self.records.append(record)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self._logger.info("%s", text)
            self.notes.append(text)

    def result(self, model: ir.Model, *, modified: bool) -> RewriteResult:
        """Return what a pass's `call` has to return."""
        return RewriteResult(model, modified, self.records, self.notes)

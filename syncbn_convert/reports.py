"""What the commands report: plain data that becomes a table, JSON or a Python object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

NOT_RUN = "not run: "
"""How the note begins that says why a result was not verified although that was asked for."""


class Report:
    """What a command reports.

    Attributes:
        command: The command's name.
    """

    command: ClassVar[str]

    def to_json(self, files: Mapping[str, str | None]) -> dict[str, Any]:
        """Return what `--json` writes.

        Args:
            files: What was read and written, by role.
        """
        return {"command": self.command, **files, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return what was found and done, as JSON types."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What one pass did to one node, or why it did nothing.

    Attributes:
        node: Name of the node, or `OpType(output)` where it has none.
        action: `converted`, `folded`, `frozen`, `skipped`, or another past participle.
        reason: Why; empty where the action says it all.
        location: Graph that holds the node: empty for the main graph, else the path to the body.
        detail: Further facts for tables, such as `channels` and `dtype`.
        module: Path of the module of PyTorch that the node comes from; empty where it is not known.
    """

    node: str
    action: str
    reason: str = ""
    location: str = ""
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)
    module: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns are searched in."""
        return (self.node, self.module) if self.module else (self.node,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """One normalization node as `inspect` lists it.

    Attributes:
        name: Name of the node, or `OpType(output)` where it has none.
        op_type: Operator, such as `BatchNormalization` or `SyncBatchNormalization`; `decomposed`
            where it is written in elementwise operators.
        domain: Operator domain; empty for standard ONNX.
        axis: Channel axis.
        channels: Number of channels, or None where no parameter tells.
        epsilon: Added to the variance inside the root.
        momentum: Share of the old moving statistic that an update keeps.
        training_mode: Whether the node normalizes by batch statistics.
        dtype: Element type of the input, such as `float32`; None where unknown.
        parameters: Names of scale, B, input_mean and input_var.
        location: Empty for the main graph, else the path to the body or function.
        convertible: Whether `convert` would synchronize the node.
        reason: Why not; empty where convertible.
        sick: What is wrong with its moving statistics; empty if nothing is.
        module: Path of the module of PyTorch that the node comes from; empty where it is not known.
    """

    name: str
    op_type: str
    domain: str
    axis: int
    channels: int | None
    epsilon: float
    momentum: float
    training_mode: bool
    dtype: str | None
    parameters: list[str]
    location: str
    convertible: bool
    reason: str
    sick: str = ""
    module: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """Result of `inspect`.

    Attributes:
        opset: Version of the standard operators.
        ir_version: Version of the file's format.
        nodes: The normalization nodes.
        notes: What a user should know beside.
    """

    command = "inspect"
    opset: int
    ir_version: int
    nodes: list[NodeInfo]
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self, files: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the facts alone."""
        del files
        return self.facts()


ERROR_BOUNDS = tuple(10.0 ** (exponent / 2) for exponent in range(-24, 1))
"""Relative errors that separate the bars of a histogram: half decades from 1e-12 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """Difference of one output between candidate and reference, over all runs.

    Attributes:
        name: Name of the output.
        equal: Whether every run stayed within the tolerance.
        max_absolute_error: Largest |candidate - reference|.
        max_relative_error: Largest |candidate - reference| over the largest |reference| of the run.
        tolerance: Relative tolerance that `max_relative_error` was held against.
        detail: What else differed, such as a shape or the places of NaN; empty if nothing.
        histogram: Number of elements by relative error: those that are equal, then one count for
            each range between neighbours in `ERROR_BOUNDS`, the first and last open.
    """

    name: str
    equal: bool
    max_absolute_error: float
    max_relative_error: float
    tolerance: float
    detail: str = ""
    histogram: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyReport(Report):
    """Result of `verify`.

    Attributes:
        equal: Whether the two models are the same function, as far as was run.
        max_relative_error: Largest over all outputs and runs.
        tolerance: The relative tolerance that came nearest to being exceeded.
        outputs: One entry per compared output.
        first_difference: First node of the reference whose output differs, or the interface
            difference; None if equal.
        runs: Number of runs compared.
        notes: What could not be compared, and why.
        unproven: Outputs that no comparison can prove anything about, which is not equal.
    """

    command = "verify"
    equal: bool
    max_relative_error: float
    tolerance: float
    outputs: list[OutputDifference]
    first_difference: str | None
    runs: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    unproven: list[str] = dataclasses.field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether a difference was seen: unequal, and not for lack of a proof alone."""
        seen = any(not output.equal and output.name not in self.unproven for output in self.outputs)
        return seen or (not self.equal and not self.unproven)

    def to_json(self, files: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the facts alone, without histograms, which are for pictures."""
        del files
        content = self.facts()
        for output in content["outputs"]:
            del output["histogram"]
        return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewriteReport(Report):
    """Result of `convert`, `fold` and `fuse`.

    Attributes:
        command: `convert`, `fold` or `fuse`.
        found: Number of normalization nodes that the command is about; affine maps like them, which
            `fuse` fused, count too, and have their `operator` in the record's detail.
        converted: Number of nodes rewritten.
        records: What was done, node by node, in graph order.
        all_reduces: Number of AllReduce calls per step in the result.
        verified: True if the result was run and compared; False with `--no-verify`.
        max_relative_error: Largest error that verification saw; None if not verified.
        tolerance: What it was held against; None if not verified.
        seconds: Wall time.
        timings: Seconds per pass and per stage, in the order in which they ran.
        notes: What a user should know beside the records (a raised opset, a removed output).
        outputs: How far each output is from the original in inference mode; empty if not verified.
    """

    command: str  # type: ignore[misc]
    found: int
    converted: int
    records: list[Record]
    all_reduces: int
    verified: bool
    max_relative_error: float | None
    tolerance: float | None
    seconds: float
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    outputs: list[OutputDifference] = dataclasses.field(default_factory=list)

    @property
    def skipped(self) -> list[Record]:
        """The nodes left alone, each with its reason."""
        return [record for record in self.records if record.action in ("skipped", "frozen", "kept")]

    def facts(self) -> dict[str, Any]:
        """Return all but timings and outputs, and the nodes left alone."""
        skipped = [
            {"node": record.node, "module": record.module, "reason": record.reason}
            for record in self.skipped
        ]
        return {
            "found": self.found,
            "converted": self.converted,
            "skipped": skipped,
            "all_reduces": self.all_reduces,
            "verified": self.verified,
            "max_relative_error": self.max_relative_error,
            "tolerance": self.tolerance,
            "seconds": self.seconds,
            "notes": self.notes,
            "records": [dataclasses.asdict(record) for record in self.records],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerChange:
    """How far the statistics of one layer moved.

    Attributes:
        name: Name of the layer's first node.
        channels: Number of channels.
        mean_shift: Largest |new mean - old mean| over the channels, in new standard deviations.
        variance_ratio: New over old variance (epsilon added to both) of the channel where it is
            farthest from 1.
        module: Path of the module of PyTorch that it comes from; empty where it is not known.
    """

    name: str
    channels: int
    mean_shift: float
    variance_ratio: float
    module: str = ""

    @property
    def moved(self) -> float:
        """One number to sort by: shift, or the logarithm of the ratio, whichever is larger."""
        if not self.variance_ratio > 0:
            return math.inf
        return max(self.mean_shift, abs(math.log(self.variance_ratio)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateReport(Report):
    """Result of `calibrate`.

    Attributes:
        method: `precise` or `moving`.
        engine: What connected the replicas.
        replicas: Number of replicas.
        batches: Number of global batches counted.
        samples: Number of samples counted.
        layers: What moved, most first.
        verified: Whether the result was run and compared.
        seconds: Wall time.
        notes: What a user should know beside.
    """

    command = "calibrate"
    method: str
    engine: str
    replicas: int
    batches: int
    samples: int
    layers: list[LayerChange]
    verified: bool
    seconds: float
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariableChange:
    """A variable of a Keras model that was written.

    Attributes:
        name: Its path, such as `block/bn/moving_mean`.
        shape: Its shape.
        dtype: Its element type, such as `float32`.
        largest_change: Largest |new - old| over its elements.
    """

    name: str
    shape: list[int]
    dtype: str
    largest_change: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasReport(Report):
    """Result of `to_keras`.

    Attributes:
        variables: The variables written, in the order of the Keras model.
        kept: Number of variables that the source does not hold and that stay as they are.
        verified: Whether Keras' predictions were compared with the ONNX model's outputs.
        max_relative_error: Largest error seen; None if not verified.
        tolerance: What it was held against; None if not verified.
        seconds: Wall time.
        notes: What a user should know beside.
    """

    command = "statistics"
    variables: list[VariableChange]
    kept: int
    verified: bool
    max_relative_error: float | None
    tolerance: float | None
    seconds: float
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatisticRange:
    """A moving statistic in a file.

    Attributes:
        name: Name of its initializer.
        channels: Number of channels.
        dtype: Its element type, such as `float32`.
        min: Smallest value.
        max: Largest value.
    """

    name: str
    channels: int
    dtype: str
    min: float
    max: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatisticsReport(Report):
    """Result of `statistics`.

    Attributes:
        layers_digest: Digest of the layers that the statistics belong to.
        statistics: What was written.
    """

    command = "statistics"
    layers_digest: str
    statistics: list[StatisticRange]

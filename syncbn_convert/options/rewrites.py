"""Options of the rewrites, shared by the Python functions and the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups
from syncbn_convert.options.layers import LayerRule, LayerRules, SyncBatchNormalizationOptions
from syncbn_convert.options.patterns import Patterns, check_patterns

if TYPE_CHECKING:
    from cyclopts import Token

Opset: TypeAlias = Annotated[int | None, Parameter(metavar="N")]
FailIfUnchanged: TypeAlias = Annotated[bool, Parameter(negative=(), group=groups.OUTPUT)]


def _convert_rules(kind: Any, tokens: Sequence[Token]) -> tuple[LayerRule, ...]:
    del kind
    from syncbn_convert.options.toml import read_options_file

    return read_options_file(tokens[0].value)


def _convert_path(kind: Any, tokens: Sequence[Token]) -> Path:
    del kind
    return Path(tokens[0].value)


def check_opset(opset: int | None) -> None:
    """Refuse an opset that there is not.

    Raises:
        UsageError: if it is below 1.
    """
    if opset is not None and opset < 1:
        raise UsageError(f"opset {opset}: give a version from 1 up")


@Parameter(name="*", group=groups.PASSES)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How passes are run.

    Attributes:
        print_between_passes: Print the model's text to stderr after each pass that changed it.
    """

    print_between_passes: Annotated[bool, Parameter(negative=())] = False


@Parameter(name="*", group=groups.CHOICE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What `convert` does.

    Attributes:
        include: Convert only nodes in whose name REGEX is found (repeatable); by default all.
        exclude: Leave nodes as they are in whose name REGEX is found (repeatable).
        freeze: Keep matching nodes in inference mode, or put them there, their moving statistics
            untouched (repeatable).
        recognize: Whether normalization that an exporter wrote in elementwise operators becomes
            BatchNormalization again first.
        recognize_affine: Take maps scale * x + bias behind weights for such, too: what is left
            where an exporter computed with the moving statistics, which are then not known.
        parameters: What becomes of all selected layers.
        layers: TOML file of layer parameters by node names. In Python, the rules: the first whose
            pattern is found counts, and goes before `parameters`.
        reset: Let parameters change the function that the model computes in inference, such as by
            another axis or without a beta that is not 0.
        opset: Opset version of the result; by default raised only as far as needed.
        seed: Of random initializers that have none of their own.
        pipeline: How passes are run.
    """

    include: Patterns = ()
    exclude: Patterns = ()
    freeze: Patterns = ()
    recognize: bool = True
    recognize_affine: Annotated[bool, Parameter(negative=())] = False
    parameters: SyncBatchNormalizationOptions = SyncBatchNormalizationOptions()
    layers: Annotated[
        tuple[LayerRule, ...],
        Parameter(
            name="--options",
            metavar="FILE",
            converter=_convert_rules,
            n_tokens=1,
            accepts_keys=False,
            group=groups.LAYERS,
        ),
    ] = ()
    reset: Annotated[bool, Parameter(negative=(), group=groups.LAYERS)] = False
    opset: Opset = None
    seed: Annotated[int, Parameter(parse=False)] = 0
    pipeline: PipelineOptions = PipelineOptions()

    def __post_init__(self) -> None:
        """Refuse what is not a regular expression, and options of other types."""
        for name in ("include", "exclude", "freeze", "layers"):
            if not isinstance(getattr(self, name), tuple | list):
                raise UsageError(f"{name} {getattr(self, name)!r} is not a tuple; write (..., )")
        if not all(isinstance(rule, LayerRule) for rule in self.layers) or not isinstance(
            self.parameters, SyncBatchNormalizationOptions
        ):
            raise UsageError(
                "layers are LayerRule objects, and parameters SyncBatchNormalizationOptions; see "
                "docs/parameters.md"
            )
        if self.recognize_affine and not self.recognize:
            raise UsageError("recognize_affine needs recognize; leave out --no-recognize")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed {self.seed!r} is not a whole number from 0 up")
        check_opset(self.opset)
        check_patterns((*self.include, *self.exclude, *self.freeze))

    @property
    def rules(self) -> LayerRules:
        """The options of the layers, by name."""
        return LayerRules(
            default=self.parameters, rules=self.layers, reset=self.reset, seed=self.seed
        )


@Parameter(name="*", group=groups.FOLDING)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """What `fold` does.

    Attributes:
        statistics: Moving statistics (`.safetensors`) that replace the model's own; the model may
            then also be in inference form.
        from_keras: Trained Keras file whose weights and statistics replace the model's own, or in
            Python a `keras.Model`; the model was once imported from it, untrained, and may be in
            inference form.
        keep_batchnorm: Make a layer whose channel axis is not 1 a BatchNormalization between
            Transposes, and not Mul and Add.
        fuse: Fuse the result into the weights around it, too.
        fail_if_unchanged: Fail where there is nothing to do, and write nothing.
        opset: Opset version of the result; by default as it is.
        pipeline: How passes are run.
    """

    statistics: Annotated[Path | None, Parameter(metavar="FILE")] = None
    from_keras: Annotated[
        Any,
        Parameter(converter=_convert_path, n_tokens=1, accepts_keys=False, metavar="TRAINED"),
    ] = None
    keep_batchnorm: Annotated[bool, Parameter(negative=())] = False
    fuse: Annotated[bool, Parameter(negative=())] = False
    fail_if_unchanged: FailIfUnchanged = False
    opset: Opset = None
    pipeline: PipelineOptions = PipelineOptions()

    def __post_init__(self) -> None:
        """Refuse statistics from two places."""
        if self.statistics is not None and self.from_keras is not None:
            raise UsageError(
                "statistics come from a file or from a Keras model, not from both; give one of "
                "--statistics and --from-keras"
            )
        check_opset(self.opset)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseOptions:
    """What `fuse` does.

    Attributes:
        fail_if_unchanged: Fail where there is nothing to do, and write nothing.
        pipeline: How passes are run.
    """

    fail_if_unchanged: FailIfUnchanged = False
    pipeline: PipelineOptions = PipelineOptions()


@Parameter(name="*", group=groups.UNFUSING)
@dataclasses.dataclass(frozen=True, kw_only=True)
class UnfuseOptions:
    """What `unfuse` does.

    Attributes:
        include: Give a normalization only to nodes in whose name REGEX is found (repeatable); by
            default to all.
        exclude: Give none to nodes in whose name REGEX is found (repeatable).
        epsilon: Of the new nodes, added to the variance inside the root; above 0.
        momentum: Of the new nodes, share of the old moving statistic that an update keeps.
        batch_size: Samples in one global batch, over all replicas.
        batches: Batches to measure on; by default all data.
    """

    include: Patterns = ()
    exclude: Patterns = ()
    epsilon: Annotated[float, Parameter(metavar="X")] = 1e-3
    momentum: Annotated[float, Parameter(metavar="X")] = 0.99
    batch_size: Annotated[int, Parameter(metavar="N", group=groups.STATISTICS)] = 32
    batches: Annotated[int | None, Parameter(metavar="N", group=groups.STATISTICS)] = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and what is not a regular expression."""
        if not 0 < self.epsilon < math.inf or not 0 <= self.momentum <= 1:
            raise UsageError(
                f"epsilon {self.epsilon:g}, momentum {self.momentum:g}: give an epsilon above 0 "
                "and a momentum from 0 to 1"
            )
        check_patterns((*self.include, *self.exclude))

"""Options of the rewrites, shared by the Python functions and the command line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from syncbn_convert.errors import UsageError
from syncbn_convert.options.layers import LayerRule, LayerRules, SyncBatchNormalizationOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How passes are run.

    Attributes:
        print_between_passes: Print the model's text to stderr after each pass that changed it.
    """

    print_between_passes: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What `convert` does.

    Attributes:
        include: Regular expressions searched in node names; only matching nodes are converted.
            Empty means all.
        exclude: Regular expressions; matching nodes are left as they are.
        freeze: Regular expressions; matching nodes stay (or become) inference mode, their moving
            statistics untouched.
        parameters: What becomes of all selected layers.
        layers: What becomes of layers by name; the first rule whose pattern is found counts, and
            goes before `parameters`.
        reset: Whether options may change the function that the model computes in inference, such as
            by another axis or without a beta that is not 0.
        seed: Of random initializers that have none of their own.
        recognize: Whether normalization that an exporter wrote in elementwise operators becomes
            BatchNormalization again first.
        recognize_affine: Whether to take maps scale * X + bias behind weights for such, too: what
            is left where an exporter computed with the moving statistics, which are then not known.
        opset: Opset version of the result; None raises it only as far as needed.
        pipeline: How passes are run.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    parameters: SyncBatchNormalizationOptions = SyncBatchNormalizationOptions()
    layers: tuple[LayerRule, ...] = ()
    reset: bool = False
    seed: int = 0
    recognize: bool = True
    recognize_affine: bool = False
    opset: int | None = None
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
        by_name = (rule.pattern for rule in self.layers)
        for pattern in (*self.include, *self.exclude, *self.freeze, *by_name):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"'{pattern}' is not a regular expression: {error}; escape special characters"
                ) from error

    @property
    def rules(self) -> LayerRules:
        """The options of the layers, by name."""
        return LayerRules(
            default=self.parameters, rules=self.layers, reset=self.reset, seed=self.seed
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """What `fold` does.

    Attributes:
        opset: Opset version of the result; None leaves it as it is.
        statistics: `.safetensors` file of moving statistics that replace the model's own; the model
            may then also be in inference form. None takes the model's own.
        from_keras: A trained `keras.Model`, or the path of one, whose weights and statistics
            replace the model's own; the model was once imported from it, untrained, and may be in
            inference form. None takes the model's own.
        keep_batchnorm: Whether a layer whose channel axis is not 1 becomes a BatchNormalization
            between Transposes, and not Mul and Add.
        fuse: Whether to fuse the result into the weights around it.
        pipeline: How passes are run.
    """

    opset: int | None = None
    statistics: Path | None = None
    from_keras: Any = None
    keep_batchnorm: bool = False
    fuse: bool = False
    pipeline: PipelineOptions = PipelineOptions()

    def __post_init__(self) -> None:
        """Refuse statistics from two places."""
        if self.statistics is not None and self.from_keras is not None:
            raise UsageError(
                "statistics come from a file or from a Keras model, not from both; give one of "
                "--statistics and --from-keras"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseOptions:
    """What `fuse` does.

    Attributes:
        pipeline: How passes are run.
    """

    pipeline: PipelineOptions = PipelineOptions()

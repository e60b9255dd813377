"""ONNX graph rewrites that turn BatchNormalization into its synchronized training form and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from syncbn_convert.commands.calibrate import (
        CalibrateOptions,
        ReplicaOptions,
        calibrate,
        calibrate_file,
        calibrate_with_report,
    )
    from syncbn_convert.commands.rewrites import (
        convert,
        convert_file,
        convert_with_report,
        fold,
        fold_file,
        fold_with_report,
        fuse,
        fuse_file,
        fuse_with_report,
        inspect,
        verify,
    )
    from syncbn_convert.commands.to_keras import to_keras, to_keras_file, to_keras_with_report
    from syncbn_convert.commands.train import (
        Checkpointing,
        StepOptions,
        TrainOptions,
        step,
        step_file,
        train,
        train_file,
        train_with_report,
    )
    from syncbn_convert.commands.unfuse import UnfuseOptions, unfuse, unfuse_file
    from syncbn_convert.errors import (
        ConversionError,
        ModelFileError,
        ReplicaError,
        SyncBNError,
        UsageError,
        VerificationError,
    )
    from syncbn_convert.keras import custom_objects
    from syncbn_convert.options.layers import LayerRule, SyncBatchNormalizationOptions
    from syncbn_convert.options.optimizers import Adam, AdamW, Sgd
    from syncbn_convert.options.rewrites import (
        ConvertOptions,
        FoldOptions,
        FuseOptions,
        PipelineOptions,
    )
    from syncbn_convert.options.schedules import Schedule
    from syncbn_convert.options.toml import read_options_file
    from syncbn_convert.runtime import ReplicaSession, run_replicas
    from syncbn_convert.verification import VerifyOptions

_HOMES = {
    "syncbn_convert.commands.rewrites": (
        "convert",
        "convert_file",
        "convert_with_report",
        "fold",
        "fold_file",
        "fold_with_report",
        "fuse",
        "fuse_file",
        "fuse_with_report",
        "inspect",
        "verify",
    ),
    "syncbn_convert.commands.calibrate": (
        "CalibrateOptions",
        "ReplicaOptions",
        "calibrate",
        "calibrate_file",
        "calibrate_with_report",
    ),
    "syncbn_convert.errors": (
        "ConversionError",
        "ModelFileError",
        "ReplicaError",
        "SyncBNError",
        "UsageError",
        "VerificationError",
    ),
    "syncbn_convert.keras": ("custom_objects",),
    "syncbn_convert.commands.to_keras": ("to_keras", "to_keras_file", "to_keras_with_report"),
    "syncbn_convert.runtime": ("ReplicaSession", "run_replicas"),
    "syncbn_convert.options.layers": ("LayerRule", "SyncBatchNormalizationOptions"),
    "syncbn_convert.options.toml": ("read_options_file",),
    "syncbn_convert.options.rewrites": (
        "ConvertOptions",
        "FoldOptions",
        "FuseOptions",
        "PipelineOptions",
    ),
    "syncbn_convert.commands.train": (
        "Checkpointing",
        "StepOptions",
        "TrainOptions",
        "step",
        "step_file",
        "train",
        "train_file",
        "train_with_report",
    ),
    "syncbn_convert.options.optimizers": ("Adam", "AdamW", "Sgd"),
    "syncbn_convert.options.schedules": ("Schedule",),
    "syncbn_convert.commands.unfuse": ("UnfuseOptions", "unfuse", "unfuse_file"),
    "syncbn_convert.verification": ("VerifyOptions",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Adam",
    "AdamW",
    "CalibrateOptions",
    "Checkpointing",
    "ConversionError",
    "ConvertOptions",
    "FoldOptions",
    "FuseOptions",
    "LayerRule",
    "ModelFileError",
    "PipelineOptions",
    "ReplicaError",
    "ReplicaOptions",
    "ReplicaSession",
    "Schedule",
    "Sgd",
    "StepOptions",
    "SyncBNError",
    "SyncBatchNormalizationOptions",
    "TrainOptions",
    "UnfuseOptions",
    "UsageError",
    "VerificationError",
    "VerifyOptions",
    "calibrate",
    "calibrate_file",
    "calibrate_with_report",
    "convert",
    "convert_file",
    "convert_with_report",
    "custom_objects",
    "fold",
    "fold_file",
    "fold_with_report",
    "fuse",
    "fuse_file",
    "fuse_with_report",
    "inspect",
    "read_options_file",
    "run_replicas",
    "step",
    "step_file",
    "to_keras",
    "to_keras_file",
    "to_keras_with_report",
    "train",
    "train_file",
    "train_with_report",
    "unfuse",
    "unfuse_file",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line answers `--help` without onnx."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'syncbn_convert' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)

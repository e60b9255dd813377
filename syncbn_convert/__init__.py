"""ONNX graph rewrites that turn BatchNormalization into its synchronized training form and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from syncbn_convert.commands.calibrate import calibrate, calibrate_file, calibrate_with_report
    from syncbn_convert.commands.convert import convert, convert_file, convert_with_report
    from syncbn_convert.commands.fold import fold, fold_file, fold_with_report
    from syncbn_convert.commands.fuse import fuse, fuse_file, fuse_with_report
    from syncbn_convert.commands.inspect import inspect
    from syncbn_convert.commands.step import step, step_file
    from syncbn_convert.commands.to_keras import to_keras, to_keras_file, to_keras_with_report
    from syncbn_convert.commands.train import train, train_file, train_with_report
    from syncbn_convert.commands.unfuse import unfuse, unfuse_file
    from syncbn_convert.commands.verify import verify
    from syncbn_convert.errors import (
        ConversionError,
        ModelFileError,
        ReplicaError,
        SyncBNError,
        UsageError,
        VerificationError,
    )
    from syncbn_convert.files.saving import save
    from syncbn_convert.keras.custom import custom_objects, trust_model_code
    from syncbn_convert.options.accelerators import AcceleratorOptions
    from syncbn_convert.options.calibrating import CalibrateOptions
    from syncbn_convert.options.layers import LayerRule, SyncBatchNormalizationOptions
    from syncbn_convert.options.optimizers import Adam, AdamW, RMSprop, Sgd
    from syncbn_convert.options.replicas import ReplicaOptions
    from syncbn_convert.options.rewrites import (
        ConvertOptions,
        FoldOptions,
        FuseOptions,
        PipelineOptions,
        UnfuseOptions,
    )
    from syncbn_convert.options.schedules import Schedule
    from syncbn_convert.options.toml import read_options_file
    from syncbn_convert.options.training import (
        Checkpointing,
        EpochOptions,
        StepOptions,
        TrainOptions,
    )
    from syncbn_convert.options.verifying import VerifyOptions
    from syncbn_convert.runtime import ReplicaSession, run_replicas
    from syncbn_convert.xla.to_jax import to_jax

_HOMES = {
    "commands.calibrate": (
        "calibrate",
        "calibrate_file",
        "calibrate_with_report",
    ),
    "commands.convert": (
        "convert",
        "convert_file",
        "convert_with_report",
    ),
    "commands.fold": (
        "fold",
        "fold_file",
        "fold_with_report",
    ),
    "commands.fuse": (
        "fuse",
        "fuse_file",
        "fuse_with_report",
    ),
    "commands.inspect": ("inspect",),
    "commands.step": (
        "step",
        "step_file",
    ),
    "commands.to_keras": (
        "to_keras",
        "to_keras_file",
        "to_keras_with_report",
    ),
    "commands.train": (
        "train",
        "train_file",
        "train_with_report",
    ),
    "commands.unfuse": (
        "unfuse",
        "unfuse_file",
    ),
    "commands.verify": ("verify",),
    "errors": (
        "ConversionError",
        "ModelFileError",
        "ReplicaError",
        "SyncBNError",
        "UsageError",
        "VerificationError",
    ),
    "files.saving": ("save",),
    "keras.custom": (
        "custom_objects",
        "trust_model_code",
    ),
    "options.accelerators": ("AcceleratorOptions",),
    "options.calibrating": ("CalibrateOptions",),
    "options.layers": (
        "LayerRule",
        "SyncBatchNormalizationOptions",
    ),
    "options.optimizers": (
        "Adam",
        "AdamW",
        "RMSprop",
        "Sgd",
    ),
    "options.replicas": ("ReplicaOptions",),
    "options.rewrites": (
        "ConvertOptions",
        "FoldOptions",
        "FuseOptions",
        "PipelineOptions",
        "UnfuseOptions",
    ),
    "options.schedules": ("Schedule",),
    "options.toml": ("read_options_file",),
    "options.training": (
        "Checkpointing",
        "EpochOptions",
        "StepOptions",
        "TrainOptions",
    ),
    "options.verifying": ("VerifyOptions",),
    "runtime": (
        "ReplicaSession",
        "run_replicas",
    ),
    "xla.to_jax": ("to_jax",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AcceleratorOptions",
    "Adam",
    "AdamW",
    "CalibrateOptions",
    "Checkpointing",
    "ConversionError",
    "ConvertOptions",
    "EpochOptions",
    "FoldOptions",
    "FuseOptions",
    "LayerRule",
    "ModelFileError",
    "PipelineOptions",
    "RMSprop",
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
    "save",
    "step",
    "step_file",
    "to_jax",
    "to_keras",
    "to_keras_file",
    "to_keras_with_report",
    "train",
    "train_file",
    "train_with_report",
    "trust_model_code",
    "unfuse",
    "unfuse_file",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line answers `--help` without onnx."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'syncbn_convert' has no attribute '{name}'")
    return getattr(importlib.import_module(f"syncbn_convert.{_HOME_OF[name]}"), name)

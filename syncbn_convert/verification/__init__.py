"""Comparison of two ONNX model files on the reference runtime.

The models run in a child process, because ONNX Runtime can crash on models that the checker
accepts. How values are compared is written down in `tolerance`.
"""

from __future__ import annotations

from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.verification.launcher import run_model_file, verify_files
from syncbn_convert.verification.tolerance import base_tolerance

__all__ = ["VerifyOptions", "base_tolerance", "run_model_file", "verify_files"]

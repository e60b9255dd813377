from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"

SCRIPT = """
import sys
from syncbn_convert.cli.main import main

assert main(["fuse", sys.argv[1], "-o", sys.argv[2], "--no-verify", "--quiet"]) == 0
assert "onnx_ir" in sys.modules
assert "sympy.core" not in sys.modules
import onnx_ir as ir

print(ir.SymbolicDim("n") * 2 + 1, "sympy.core" in sys.modules)
"""


def test_what_is_not_used_is_not_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(MODEL), str(tmp_path / "fused.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "2*n + 1 True\n"

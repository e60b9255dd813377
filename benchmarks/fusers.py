"""Our fuse and five peers on hostile cases: who fuses, who keeps, and who is wrong.

Each case of `tests/fusion/cases.py` goes through each tool, and comes out

-   *fused*: fewer BatchNormalization nodes, the same function;
-   *unsafe*: the same, where parameters are not finite, a variance is negative, the weights' type
    overflows or underflows, or the value is captured by a control-flow body;
-   *kept*: as many as before, the same function;
-   *wrong*: another function, or other inputs or outputs;
-   *invalid*: refused by ONNX's checker or by ONNX Runtime;
-   *refused*: the tool raised an error, or died.

Run `python benchmarks/fusers.py`; the peers come with `pip install -e '.[benchmarks]'`. It exits 1
if ours is ever unsafe, wrong or invalid, or keeps what a peer fuses rightly.
"""

from __future__ import annotations

import collections
import importlib
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import onnx
import onnxruntime

import syncbn_convert
from tests.fusion import catalog as cases
from tests.fusion.judge import batchnorms, require_same

OUTCOMES = ("fused", "kept", "unsafe", "wrong", "invalid", "refused")
OURS = "syncbn-convert"


def ours(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse with this project."""
    fused = syncbn_convert.fuse(model, verify=False)
    assert isinstance(fused, onnx.ModelProto)
    return fused


def onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify with onnxsim."""
    simplified: onnx.ModelProto = importlib.import_module("onnxsim").simplify(model)[0]
    return simplified


def onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Slim with onnxslim."""
    slimmed: onnx.ModelProto = importlib.import_module("onnxslim").slim(model)
    return slimmed


def onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Run onnxoptimizer's own set of passes, its fusion of BatchNormalization among them."""
    optimizer: Any = importlib.import_module("onnxoptimizer")
    optimized: onnx.ModelProto = optimizer.optimize(model)
    return optimized


def onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    """Optimize with onnxscript, and apply its rules that fuse BatchNormalization."""
    optimizer: Any = importlib.import_module("onnxscript.optimizer")
    rewriter: Any = importlib.import_module("onnxscript.rewriter")
    rewritten: onnx.ModelProto = rewriter.rewrite(optimizer.optimize(model))
    return rewritten


def onnxruntime_basic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write what ONNX Runtime's basic optimizations make of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(path)


TOOLS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    OURS: ours,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer,
    "onnxscript": onnxscript,
    "onnxruntime basic": onnxruntime_basic,
}


def outcome(tool: str, name: str) -> str:
    """Return what a tool makes of a case."""
    case = cases.case(name)
    model = case.model
    given = onnx.ModelProto()
    given.CopyFrom(model)
    try:
        result = TOOLS[tool](given)
    except Exception:  # whatever a peer raises
        return "refused"
    try:
        onnx.checker.check_model(result)
        require_same(model, result)
    except AssertionError:
        return "wrong"
    except Exception as error:
        return "wrong" if "Invalid Feed" in str(error) else "invalid"
    if batchnorms(result, case.counted) >= batchnorms(model, case.counted):  # a loop unrolled
        return "kept"
    return "unsafe" if name in cases.MUST_BE_REFUSED else "fused"


def outcomes(tool: str) -> dict[str, str]:
    """Return what a tool makes of every case; it runs in a process of its own, for it may die."""
    found: dict[str, str] = {}
    pool = _pool()
    for name in cases.names():
        try:
            found[name] = pool.submit(outcome, tool, name).result()
        except BrokenProcessPool:
            found[name] = "refused"
            pool = _pool()
    pool.shutdown()
    return found


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def main() -> int:
    """Print the table; return the exit code."""
    found = {tool: outcomes(tool) for tool in TOOLS}
    print(f"{len(cases.names())} cases")
    print(f"{'':20s}" + "".join(f"{kind:>9s}" for kind in OUTCOMES))
    for tool, by_case in found.items():
        counts = collections.Counter(by_case.values())
        print(f"{tool:20s}" + "".join(f"{counts[kind]:9d}" for kind in OUTCOMES))
    missed = [
        (name, tool)
        for tool, by_case in found.items()
        for name, kind in by_case.items()
        if kind == "fused" and found[OURS][name] != "fused"
    ]
    for name, tool in missed:
        print(f"fused by {tool} only: {name} ({found[OURS][name]} by ours)")
    bad = [name for name, kind in found[OURS].items() if kind in ("unsafe", "wrong", "invalid")]
    for name in bad:
        print(f"ours is {found[OURS][name]}: {name}")
    return int(bool(missed or bad))


if __name__ == "__main__":
    sys.exit(main())

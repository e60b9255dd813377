"""Do all engines and numbers of replicas find the same statistics?

`python benchmarks/agreement.py` calibrates three models on the same global batches with 1, 2, 3, 4
and 8 threads, 2 and 4 MPI processes and 2 torch.distributed processes, and prints how far the
statistics are from those of one replica, layer by layer. It ends with 1 if a bound is missed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper as onh
from rich.console import Console
from rich.table import Table

from syncbn_convert.form.moving_statistics import load

Array = npt.NDArray[Any]

_PYTHON_M = [sys.executable, "-m", "syncbn_convert"]
_BATCH = 10

ENGINES: dict[str, Sequence[str]] = {
    **{f"{n} threads": [*_PYTHON_M, "{}", "--replicas", str(n)] for n in (2, 3, 4, 8)},
    **{
        f"mpirun -n {n}": [
            "mpirun", "-n", str(n), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
            *_PYTHON_M, "{}",
        ]
        for n in (2, 4)
    },
    "torchrun, 2": [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python",
        *_PYTHON_M, "{}",
    ],
}  # fmt: skip


def main() -> int:
    """Print one table per model; return the exit code."""
    console = Console(width=80)
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, model, data, bound in _cases(folder):
            reference = _calibrate([*_PYTHON_M, "{}"], model, data, folder)
            again = (folder / "statistics.safetensors").read_bytes()
            _calibrate([*_PYTHON_M, "{}"], model, data, folder)
            same = again == (folder / "statistics.safetensors").read_bytes()
            missed += not same
            table = Table(title=f"{title}: relative difference from one replica, bound {bound:g}")
            table.add_column("run")
            table.add_column("worst", justify="right")
            table.add_column("layers that differ most")
            for engine, command in ENGINES.items():
                errors = _errors(reference, _calibrate(command, model, data, folder))
                worst = max(errors.values())
                missed += worst > bound
                table.add_row(engine, f"{worst:.1e}", _most(errors))
            console.print(table)
            console.print(f"two runs alike give the same bytes: {'yes' if same else 'NO'}")
            _print_depth(console, errors)
    return 1 if missed else 0


def _cases(folder: Path) -> list[tuple[str, Path, Path, float]]:
    digits = Path(__file__).parents[1] / "models" / "digits_cnn.onnx"
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (ocr,) = (Path(spec.origin).parent / "models").glob("*_cls_infer.onnx")
    resnet = random_light_resnet50(folder)
    return [
        ("digits_cnn", digits, digits.with_name("digits_train.npz"), 1e-6),
        ("PP-OCR classification", ocr, _data(folder, "x", (25, 3, 48, 192)), 1e-4),
        ("light_resnet50", resnet, _data(folder, "gpu_0/data_0", (25, 3, 224, 224)), 1e-4),
    ]


def random_light_resnet50(folder: Path) -> Path:
    """Write light_resnet50 with a dynamic batch, its constant weights replaced by random ones."""
    source = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    model = onnx.load(source)
    shapes = {t.name: onh.to_array(t) for t in model.graph.initializer}
    random = np.random.default_rng(50)
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        fan_in = max(int(np.prod(shape[1:])), 1)
        weights = random.normal(scale=np.sqrt(2 / fan_in), size=shape).astype(np.float32)
        model.graph.initializer.append(onh.from_array(weights, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and tensor.dims == [2]:
            value = onh.to_array(tensor).copy()
            value[0] = -1
            tensor.CopyFrom(onh.from_array(value, tensor.name))
    model.ir_version = 4
    image = next(value for value in model.graph.input if value.name == "gpu_0/data_0")
    image.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.input[:]
    model.graph.input.append(image)
    del model.graph.value_info[:]
    path = folder / "light_resnet50.onnx"
    onnx.save(model, path)
    return path


def _data(folder: Path, name: str, shape: tuple[int, ...]) -> Path:
    path = folder / f"{shape[-1]}.npz"
    arrays: dict[str, Any] = {name: np.random.default_rng(1).random(shape, dtype=np.float32)}
    np.savez(path, **arrays)
    return path


def _calibrate(command: Sequence[str], model: Path, data: Path, folder: Path) -> dict[str, Array]:
    """Return the statistics by name."""
    out = folder / "statistics.safetensors"
    where = command.index("{}")
    full = [*command[:where], "calibrate", str(model), "--data", str(data), *command[where + 1 :]]
    full += ["--batch-size", str(_BATCH), "--statistics-out", str(out), "--force", "-q"]
    full[0] = (
        shutil.which(full[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or ""
    )
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run(full, check=True, env=environment, stderr=subprocess.PIPE)
    return load(out).tensors


def _errors(reference: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, float]:
    return {
        name: float(np.max(np.abs(found[name] - value)) / np.max(np.abs(value)))
        for name, value in reference.items()
    }


def _most(errors: Mapping[str, float]) -> str:
    worst = sorted(errors, key=lambda name: -errors[name])[:2]
    return ", ".join(f"{name} {errors[name]:.0e}" for name in worst)


def _print_depth(console: Console, errors: Mapping[str, float]) -> None:
    table = Table(title="layer by layer, in the last run")
    table.add_column("statistic")
    table.add_column("difference", justify="right")
    for name, error in errors.items():
        table.add_row(name, f"{error:.1e}")
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())

"""torchvision's models by every exporter of torch: what is converted and fused, and what peers do.

    python benchmarks/torchvision_models.py FOLDER [REGEX]

Weights are random, moving statistics those of a few random batches; REGEX chooses among the lines
`model way`. Exported models are kept in FOLDER and not exported again. Exit code 1 says that one
was refused or not verified, that a peer fuses rightly what ours leaves, or has fewer nodes.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from fusers import OURS, TOOLS

import syncbn_convert
from syncbn_convert.errors import SyncBNError

SIZE = 64
SIZES = {"inception_v3": 128, "ssdlite320_mobilenet_v3_large": 160}
"""Height and width of the image; those that 64 is too small for."""
PLAIN = {"weights": None}
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": PLAIN,
    "resnet50": PLAIN,
    "mobilenet_v2": PLAIN,
    "mobilenet_v3_small": PLAIN,
    "efficientnet_b0": PLAIN,
    "densenet121": PLAIN,
    "googlenet": {**PLAIN, "init_weights": False},
    "inception_v3": {**PLAIN, "init_weights": False, "aux_logits": False},
    "shufflenet_v2_x0_5": PLAIN,
    "mnasnet0_5": PLAIN,
    "regnet_y_400mf": PLAIN,
    "convnext_tiny": PLAIN,
    "ssdlite320_mobilenet_v3_large": {**PLAIN, "weights_backbone": None},
    "deeplabv3_mobilenet_v3_large": {**PLAIN, "weights_backbone": None},
}
WAYS = ("script eval", "script training", "dynamo", "dynamo unoptimized", "dynamo training")
TRAINED_BATCHES = 3
PROVIDERS = ["CPUExecutionProvider"]
TOLERANCE = 1e-4
"""Of a peer's result, over the largest value of an output."""


class Heads(torch.nn.Module):
    """Backbone and heads of a detector, without the choice of boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, image: torch.Tensor) -> Any:
        """Return what the heads make of a batch of images."""
        return tuple(self.head(list(self.backbone(image).values())).values())


class Outputs(torch.nn.Module):
    """A model whose outputs are in a dictionary or a named tuple."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Any:
        """Return them as a tuple."""
        outputs = self.model(image)
        values = outputs.values() if isinstance(outputs, dict) else outputs
        return tuple(value for value in values if value is not None)


def build(name: str) -> torch.nn.Module:
    """Return a model with random weights and moving statistics of a few random batches."""
    torch.manual_seed(0)
    model: torch.nn.Module = torchvision.models.get_model(name, **MODELS[name])
    if name.startswith("ssd"):
        model = Heads(model)
    elif name.startswith(("deeplab", "googlenet")):
        model = Outputs(model) if name.startswith("deeplab") else model
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    model.train()
    with torch.no_grad():
        for _ in range(TRAINED_BATCHES):
            model(torch.randn(4, 3, _size(name), _size(name)))
    return model.eval()


def export(name: str, way: str, path: Path) -> None:
    """Export a model in one way."""
    model = build(name)
    if way.endswith("training"):
        model.train()
    image = torch.zeros(2, 3, _size(name), _size(name))
    if way.startswith("script"):
        mode = torch.onnx.TrainingMode
        torch.onnx.export(
            model,
            (image,),
            str(path),
            dynamo=False,
            training=mode.TRAINING if way.endswith("training") else mode.EVAL,
            do_constant_folding=not way.endswith("training"),
            input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
        )
        return
    torch.onnx.export(
        model,
        (image,),
        str(path),
        dynamo=True,
        optimize=not way.endswith("unoptimized"),
        input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        external_data=False,
        verbose=False,
    )


def _size(name: str) -> int:
    return SIZES.get(name, SIZE)


@dataclasses.dataclass
class Row:
    """One line of the table."""

    model: str
    way: str
    found: int | None = None
    converted: int | None = None
    conversion: str = ""
    fused: int | None = None
    left: str = ""
    fusion: str = ""
    seconds: str = ""
    before: int | None = None
    nodes: int | None = None
    peers: str = ""
    faults: list[str] = dataclasses.field(default_factory=list)


def measure(name: str, way: str, folder: Path) -> Row:
    """Return what becomes of a model that was exported in one way."""
    warnings.simplefilter("ignore")
    path = folder / f"{name}.{way.replace(' ', '_')}.onnx"
    row = Row(name, way)
    if not path.exists():
        try:
            export(name, way, path)
        except Exception as error:  # whatever the exporter raises
            row.conversion = f"not exported: {type(error).__name__}"
            return row
    model = onnx.load(path)
    row.before = count(model)
    report = syncbn_convert.inspect(model)
    row.found = len(report.nodes)
    if row.found:
        _convert(path, row)
    elif report.notes:
        row.conversion = re.split("[:;]", report.notes[-1])[0]
    left = _deploy(path, row, training=way.endswith("training"))
    if left is not None:
        _compare(model, row, left)
    return row


def _convert(path: Path, row: Row) -> None:
    start = time.perf_counter()
    try:
        _, done = syncbn_convert.convert_file(path, path.with_suffix(".form"), force=True)
    except SyncBNError as error:
        row.conversion = f"refused: {error}"
        row.faults.append("convert")
        return
    row.converted = done.converted
    row.conversion = _verified(done, row)
    row.seconds = f"{time.perf_counter() - start:.1f}"


def _deploy(path: Path, row: Row, *, training: bool) -> int | None:
    """Fold where that is needed, and fuse; return how many BatchNormalization nodes are left."""
    start = time.perf_counter()
    result = path.with_suffix(".deploy")
    try:
        if training:
            options = syncbn_convert.FoldOptions(fuse=True)
            _, done = syncbn_convert.fold_file(path, result, options, force=True)
        else:
            _, done = syncbn_convert.fuse_file(path, result, force=True)
    except SyncBNError as error:
        row.fusion = f"refused: {error}"
        row.faults.append("fuse")
        return None
    row.fusion = _verified(done, row)
    row.seconds += f" {time.perf_counter() - start:.1f}"
    fused = onnx.load(result)
    row.nodes = count(fused)
    left = batchnorms(fused)
    row.fused = (row.found or 0) - left
    reasons = {record.reason for record in done.records if record.action == "kept"}
    row.left = "; ".join(sorted(re.sub(r"'[^']*'", "...", reason) for reason in reasons)[:2])
    return left


def _verified(done: Any, row: Row) -> str:
    if not done.verified:
        row.faults.append("not verified")
        return "not verified"
    error = done.max_relative_error
    return "verified" if error is None else f"verified {error:.0e}"


def _compare(model: onnx.ModelProto, row: Row, left: int) -> None:
    """Run the peers on what was exported, folded first where it was in training mode."""
    given = model
    if row.way.endswith("training"):
        given = syncbn_convert.fold(model, verify=False)  # type: ignore[assignment]
    found: dict[str, tuple[int, int]] = {}
    for tool, make in TOOLS.items():
        if tool == OURS:
            continue
        try:
            start = copy.deepcopy(given)
            result = make(start)
            right = same(given, result)
        except Exception:  # whatever a peer raises
            continue
        if right:
            found[tool] = count(result), batchnorms(result)
    leanest = min(found, key=lambda tool: found[tool], default="")
    if leanest:
        row.peers = f"{found[leanest][0]} {leanest}"
        if row.nodes is not None and found[leanest][0] < row.nodes:
            row.faults.append("a peer is leaner")
    if any(bns < left for _, bns in found.values()):
        row.faults.append("a peer fuses more")


def same(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> bool:
    """Whether two models have equal outputs for a random image, without optimizations."""
    shape = [dim.dim_value or 2 for dim in reference.graph.input[0].type.tensor_type.shape.dim]
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wanted, got = (_run(model, image) for model in (reference, candidate))
    return len(wanted) == len(got) and all(
        a.shape == b.shape and np.abs(a - b).max() <= TOLERANCE * np.abs(a).max()
        for a, b in zip(wanted, got, strict=True)
    )


def _run(model: onnx.ModelProto, image: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    return list(session.run(None, {model.graph.input[0].name: image}))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def count(model: onnx.ModelProto) -> int:
    """Return the number of nodes, those in bodies and functions included."""
    own = sum(len(graph.node) for graph in _graphs(model.graph))
    return own + sum(len(function.node) for function in model.functions)


def batchnorms(model: onnx.ModelProto) -> int:
    """Return the number of BatchNormalization nodes."""
    return sum(
        node.op_type == "BatchNormalization" for g in _graphs(model.graph) for node in g.node
    )


def main(folder: Path, pattern: str = "") -> int:
    """Print the table; return the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    headings = [field.name for field in dataclasses.fields(Row)]
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings), flush=True)
    faults = 0
    for name, way in itertools.product(MODELS, WAYS):
        if not re.search(pattern, f"{name} {way}"):
            continue
        row = _in_child(partial(measure, name, way, folder)) or Row(name, way, faults=["crash"])
        faults += bool(row.faults)
        cells = dataclasses.asdict(row) | {"faults": ", ".join(row.faults)}
        print("| " + " | ".join("" if c is None else str(c) for c in cells.values()) + " |")
        sys.stdout.flush()
    return int(bool(faults))


def _in_child(work: Callable[[], Row]) -> Row | None:
    """Return what `work` does in a process of its own, for a peer may end it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work).result()
        except BrokenProcessPool:
            return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:3]))

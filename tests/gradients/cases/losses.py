"""Samples of loss operators and of Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gradients.cases.registry import case
from tests.gradients.sample import Array, Draw, Sample


@case("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
def classification(op_type: str, draw: Draw) -> Sample:
    classes = draw.integer(2, 4)
    places = [draw.integer(1, 2) for _ in range(draw.integer(0, 2))]
    reduction = draw.one_of("mean", "sum", "none")
    # not draw.batch(): ONNX Runtime's own operators refuse an empty one
    scores = draw.values([draw.integer(1, 3), classes, *places])
    labels = draw.rng().integers(0, classes, size=(scores.shape[0], *places))
    attributes: dict[str, Any] = {"reduction": reduction}
    if draw.flag():
        ignored = draw.one_of(-1, 0, 255)
        attributes["ignore_index"] = ignored
        labels.reshape(-1)[1:][draw.rng().uniform(size=max(labels.size - 1, 0)) < 0.4] = ignored
        if ignored == 0:
            labels.reshape(-1)[:1] = 1
    inputs: list[Array | None] = [scores, labels.astype(draw.one_of(np.int32, np.int64))]
    if draw.flag():
        inputs.append(draw.values([classes], 0.5, 2.0))
    weights = None if len(inputs) < 3 else torch.tensor(inputs[2])

    def oracle(scores: Any) -> Any:
        loss = F.cross_entropy if op_type.startswith("Soft") else F.nll_loss
        result = loss(
            scores,
            torch.tensor(labels),
            weights,
            ignore_index=attributes.get("ignore_index", -100),
            reduction=reduction,
        )
        both = (result, torch.log_softmax(scores, 1))
        return tuple(both[index] for index in flowing)

    flowing: tuple[int, ...] = (0,)
    if op_type == "SoftmaxCrossEntropyLoss":
        flowing = draw.one_of((0,), (1,), (0, 1))
    return Sample(
        op_type=op_type,
        inputs=inputs,
        attributes=attributes,
        oracle=oracle,
        outputs=max(flowing) + 1,
        flowing=flowing,
        frozen=(2,),
    )


_NO, _YES = np.asarray(False), np.asarray(True)


@case("Dropout")
def dropout(op_type: str, draw: Draw) -> Sample:
    x, seed = draw.values(draw.shape()), draw.integer(1, 100)
    ratio = np.asarray(draw.one_of(0.0, 0.25, 0.5, 0.75), np.float64)
    given: list[list[Array | None]] = [[], [ratio], [ratio, _NO], [ratio, _YES]]
    inputs = [x, *draw.one_of(*given)]
    kept = inputs[-1] is _YES
    share = 0.5 if len(inputs) < 2 else float(ratio)
    # the numbers that onnx's reference implementation draws for a seed
    mask = np.random.RandomState(seed).uniform(0, 1.0, x.shape) >= share
    return Sample(
        op_type=op_type,
        inputs=inputs,
        attributes={"seed": seed},
        oracle=lambda x: x * torch.tensor(mask) / (1 - share) if kept else x.clone(),
        outputs=draw.one_of(1, 2),
        reference=True,
        frozen=(1,),
        seeded=kept,
    )

"""What `step` wrote, for drivers in any language."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.training.step_models import StepModels

FORMAT = 1
GRADIENT_FILE = "gradient.onnx"
UPDATE_FILE = "update.onnx"
DESCRIPTION_FILE = "step.json"


def describe_step(models: StepModels) -> dict[str, Any]:
    """Return which inputs and outputs of the two graphs belong together.

    Returns:
        `inputs` and `outputs` of the user's model and the labels; `statistics` and `parameters`
        with the outputs that hold their next values; `buckets` with the places of gradients;
        `slots` of the optimizer, zero at first; names of `loss`, `learning_rate` and `step`.
    """
    gradient, update = models.gradient, models.update
    following = training_form.statistics_of(gradient)
    fed = {*following, *models.parameters}
    made = {models.loss, *following.values(), *update.buckets}
    return {
        "format": FORMAT,
        "gradient": GRADIENT_FILE,
        "update": UPDATE_FILE,
        **models.options.describe(),
        "loss_output": models.loss,
        "inputs": [_value(value) for value in gradient.graph.inputs if value.name not in fed],
        "outputs": [_value(value) for value in gradient.graph.outputs if value.name not in made],
        "statistics": [
            {**_initializer(gradient, name), "next": output} for name, output in following.items()
        ],
        "parameters": [
            {**_initializer(gradient, name), "next": update.parameters[name]}
            for name in models.parameters
        ],
        "buckets": [dataclasses.asdict(bucket) for bucket in models.buckets],
        "slots": [
            {
                "name": name,
                "dtype": dtype,
                "shape": list(shape),
                "initial": 0,
                "next": update.slots[name],
            }
            for name, (dtype, shape) in update.slot_infos.items()
        ],
        "learning_rate": update.learning_rate,
        "step": update.step,
    }


def all_reduces(gradient: ir.Model) -> int:
    """Return the number of AllReduce calls in one run of the gradient graph."""
    calls = 0
    for node in gradient.graph:
        if node.domain == training_form.DOMAIN:
            calls += 1
    return calls


def _value(value: ir.Value) -> dict[str, Any]:
    return {
        "name": str(value.name),
        "dtype": None if value.dtype is None else str(value.dtype.numpy()),
        "shape": None
        if value.shape is None
        else [size if isinstance(size, int) else size.value for size in value.shape],
    }


def _initializer(model: ir.Model, name: str) -> dict[str, Any]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return {
        "name": name,
        "dtype": str(tensor.dtype.numpy()),
        "shape": [int(size) for size in tensor.shape.numpy()],
    }

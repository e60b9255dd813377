"""From a training form to the graphs of a training step."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.form import buckets, opset, provenance, weight_facts
from syncbn_convert.form.buckets import Bucket
from syncbn_convert.graph import graphs
from syncbn_convert.options.training import StepOptions
from syncbn_convert.passes import (
    AddLoss,
    Differentiate,
    PackGradients,
    SwitchRandomnessOn,
    UpdateParameters,
    add_loss,
)
from syncbn_convert.passes.gradients.gradient_tape import MIN_OPSET
from syncbn_convert.passes.recipes import as_asked, to_trainable
from syncbn_convert.reports import Record
from syncbn_convert.rewriting import pipeline
from syncbn_convert.training.metrics import Metric, metric_of
from syncbn_convert.training.update_model import UpdateModel, update_model


@dataclasses.dataclass(frozen=True)
class StepModels:
    """The graphs of a training step.

    Attributes:
        options: What they are made for.
        form: The training form, without loss and gradients.
        gradient: Inputs, labels, parameters and statistics to loss, outputs, next statistics and
            buckets; its `training_info` holds the update.
        update: Parameters, slots, buckets, learning rate and step to next parameters and slots.
        loss: The output that holds the loss.
        buckets: What the buckets hold.
        adding_loss: The pass that adds the loss.
        metric: How right an output is; None where the loss does not tell.
        records: One for each initializer: whether it is trained, or why not.
        notes: What a user should know beside.
    """

    options: StepOptions
    form: ir.Model
    gradient: ir.Model
    update: UpdateModel
    loss: str
    buckets: list[Bucket]
    adding_loss: AddLoss
    metric: Metric | None
    records: list[Record]
    notes: list[str]

    @property
    def parameters(self) -> list[str]:
        """Names of the trained parameters, in the order of the buckets."""
        return [entry.name for bucket in self.buckets for entry in bucket.entries]

    @property
    def values(self) -> int:
        """Number of elements of the trained parameters."""
        return sum(bucket.size for bucket in self.buckets)


def build(
    model: ir.Model,
    options: StepOptions,
    label_shape: tuple[int | None, ...] | None = None,
) -> StepModels:
    """Return the graphs of a step of a model, which becomes a training form in place.

    Args:
        model: The model.
        options: Loss, optimizer, and what is trained.
        label_shape: Shape of the labels in the data, as far as it is known.

    Raises:
        ConversionError: if the model cannot be converted or differentiated.
    """
    apart = provenance.unsynchronized(model)
    if apart:
        raise ConversionError(
            f"node '{graphs.label(apart[0])}' is not synchronized, and replicas would drift apart; "
            "convert the model without --no-sync, or with --group-size 1"
        )
    form = model
    notes = [*weight_facts.remarks_of(form), *to_trainable(form)]
    gradient = model_file.as_model(form)
    _open_negative_sizes(gradient)
    notes += model_file.notes_of(form)
    if graphs.opset_version(gradient) < MIN_OPSET:
        notes += opset.raise_opset(gradient, MIN_OPSET)
    pipeline.run(gradient, [SwitchRandomnessOn()])
    adding_loss = as_asked(AddLoss, options, label_shape=label_shape)
    adding = pipeline.run(gradient, [adding_loss])
    loss = add_loss.output_of(gradient)
    assert loss is not None
    done = pipeline.run(
        gradient,
        [
            Differentiate(loss=str(loss.name), trainable=options.trainable, frozen=options.frozen),
            PackGradients(),
            UpdateParameters(optimizer=options.optimizer),
        ],
    )
    constants = _constant_weights(form)
    if constants:
        notes = [
            *notes,
            f"{constants} Constant nodes hold weights, which are not trained; onnx_ir's "
            "LiftConstantsToInitializersPass makes them initializers, which are",
        ]
    return StepModels(
        options,
        form,
        gradient,
        update_model(gradient),
        str(loss.name),
        buckets.get(gradient),
        adding_loss,
        metric_of(form, adding_loss),
        done.records["differentiate"],
        [*notes, *adding.notes, *done.notes],
    )


def _open_negative_sizes(model: ir.Model) -> None:
    """Make sizes below 0, by which some exporters mean any size, unknown ones."""
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [None if isinstance(size, int) and size < 0 else size for size in value.shape]
            if None in sizes:
                value.shape = ir.Shape(sizes)


def _constant_weights(form: ir.Model) -> int:
    """Return the number of Constant nodes with floats that are not all the same number."""
    count = 0
    for node in form.graph:
        value = node.attributes.get("value") if node.op_type == "Constant" else None
        if value is not None and value.type == ir.AttributeType.TENSOR:
            tensor = value.as_tensor()
            if tensor.dtype.is_floating_point() and tensor.size > 1:
                array = tensor.numpy().reshape(-1)
                count += bool((array != array[0]).any())
    return count

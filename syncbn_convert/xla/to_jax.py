"""A training form for people who have a training loop of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import opset, training_form
from syncbn_convert.graph import graphs
from syncbn_convert.passes.gradients.gradient_tape import MIN_OPSET
from syncbn_convert.passes.recipes import to_form
from syncbn_convert.xla.jax_extra import require_jax

Array = npt.NDArray[Any]
State = dict[str, Array]


def to_jax(form: ModelLike) -> tuple[Callable[..., Any], State]:
    """Return a training form as a pure function of JAX, and the state that it begins with.

    The function is `function(state, inputs, axis_name=None, *, key=None, weights=None,
    training=True, precision="float32")` and returns `(outputs, new_state)`, dictionaries both. It
    can be jitted, differentiated and mapped: with the name of a mapped axis (of `shard_map`, or of
    `vmap`), statistics are those of all replicas along it, forward and backward. Gradients of
    parameters are this replica's share: sum them over the axis.

    `inputs` are this replica's samples by name of input; `weights` is 1 for each sample that counts
    and 0 for padding; `key` is of `jax.random`, for a model that draws random numbers; `precision`
    is `float32`, `tf32` or `bfloat16`. With `training=False` nodes normalize by the moving
    statistics and Dropout drops nothing.

    Args:
        form: A training form, or any model that `convert` takes; not changed.

    Returns:
        The function; and parameters and moving statistics by name, in the model's element types.
        All of them come back in the new state, the moving statistics moved.

    Raises:
        UsageError: if JAX is not installed.
        ConversionError: naming node and operator, if one has no translation.
    """
    require_jax()
    import jax

    from syncbn_convert.xla.program import Program
    from syncbn_convert.xla.traced_run import Axis, Run

    model = to_form(model_file.as_model(form))
    if graphs.opset_version(model) < MIN_OPSET:
        opset.raise_opset(model, MIN_OPSET)
    following = training_form.statistics_of(model)
    made = set(following.values())
    names = [str(value.name) for value in model.graph.outputs]
    program = Program(model, names, following)

    def function(
        state: Mapping[str, Any],
        inputs: Mapping[str, Any],
        axis_name: str | None = None,
        *,
        key: Any = None,
        weights: Any = None,
        training: bool = True,
        precision: str = "float32",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        axis = None if axis_name is None else Axis(axis_name, jax.lax.axis_size(axis_name))
        run = Run(
            axis=axis,
            key=key,
            weights=weights,
            training=training,
            precision=precision,
            has_double=jax.default_backend() != "tpu",
        )
        found = program(state, inputs, run).outputs
        moved = {} if not training else {name: found[out] for name, out in following.items()}
        outputs = {name: found[name] for name in names if name not in made}
        return outputs, {**state, **moved}

    return function, {name: np.array(array) for name, array in program.arrays().items()}

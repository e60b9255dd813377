"""SavedModel folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from syncbn_convert.errors import ModelFileError
from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.keras.functions import InferenceFunction
from syncbn_convert.keras.keras_weights import UNTRAINED
from syncbn_convert.keras.messages import cause_of

_SERVING = "serving_default"


def load_signature(path: Path) -> InferenceFunction:
    """Return the function that a SavedModel serves.

    Raises:
        ModelFileError: if the folder cannot be read, or serves nothing.
    """
    try:
        loaded = tf.saved_model.load(str(path))
        signatures = dict(loaded.signatures)
    except Exception as error:  # whatever protobuf, files and operators raise
        raise ModelFileError(
            f"{path}: cannot be read by TensorFlow {tf.__version__}: {cause_of(error)}; save the "
            "model again"
        ) from error
    if not signatures:
        raise ModelFileError(
            f"{path}: has no signature to serve; save it with model.export(folder)"
        )
    concrete = signatures.get(_SERVING) or next(iter(signatures.values()))
    return InferenceFunction(
        name=path.resolve().name,
        concrete=concrete,
        inputs=(names := _argument_names(concrete)),
        outputs=sorted(concrete.structured_outputs),
        paths={},
        weights={
            id(variable): WeightFacts(untrained=UNTRAINED)
            for variable in concrete.variables
            if not variable.trainable
        },
        keywords=_keywords(concrete, names),
        owner=loaded,
    )


def _argument_names(concrete: Any) -> list[str]:
    """Return the names of arguments in the order of the graph's placeholders."""
    captured = {id(placeholder) for _, placeholder in concrete.graph.captures}
    return [value.op.name for value in concrete.inputs if id(value) not in captured]


def _keywords(concrete: Any, names: list[str]) -> list[str]:
    """Return the keywords of a signature's arguments, which placeholders are named after."""
    specs = concrete.structured_input_signature[1]
    keywords = {spec.name: keyword for keyword, spec in specs.items()}
    return [keywords.get(name, name) for name in names]

"""How a model is read."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from syncbn_convert.options import groups


@Parameter(name="*", group=groups.READING)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a model of Keras or TensorFlow is read.

    Attributes:
        custom_objects: Modules of layers and functions that a Keras model needs (repeatable).
        trust_model_code: Let a model of Keras or TensorFlow run the code that its file holds:
            Lambda layers, any function by name, operators that touch files.
    """

    custom_objects: Annotated[tuple[str, ...], Parameter(metavar="MODULE")] = ()
    trust_model_code: Annotated[bool, Parameter(negative=())] = False

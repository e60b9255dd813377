"""Initializers, regularizers and constraints of Keras for parameters of shape [C], in NumPy."""

from syncbn_convert.options.keras_objects.constraints import Constraint, constraint_of
from syncbn_convert.options.keras_objects.initializers import Initializer, initializer_of
from syncbn_convert.options.keras_objects.regularizers import Regularizer, regularizer_of

__all__ = [
    "Constraint",
    "Initializer",
    "Regularizer",
    "constraint_of",
    "initializer_of",
    "regularizer_of",
]

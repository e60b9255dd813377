"""Models of Keras that are more than read: compared, copied, written to files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from syncbn_convert.errors import ConversionError, ModelFileError, VerificationError
from syncbn_convert.keras import files, sources
from syncbn_convert.keras.keras_layers import variable_path
from syncbn_convert.keras.libraries import library_of, load_library, without_noise
from syncbn_convert.keras.messages import cause_of

if TYPE_CHECKING:
    from syncbn_convert.keras.functions import InferenceFunction
    from syncbn_convert.keras.predictions import Comparison
    from syncbn_convert.verification import VerifyOptions


@dataclasses.dataclass(frozen=True, eq=False)
class KerasModel:
    """A model of Keras 3 or tf_keras.

    Attributes:
        name: What messages call it.
        model: The `keras.Model`.
        library: The package that it is of.
    """

    name: str
    model: Any
    library: Any

    @property
    def weights(self) -> list[Any]:
        """Its variables, those of seeds and metrics not among them."""
        return list(self.model.weights)

    def compare(self, model: ir.Model, options: VerifyOptions) -> Comparison:
        """Compare the ONNX model of the same weights with what Keras predicts.

        Raises:
            VerificationError: if they differ.
        """

        def framework() -> InferenceFunction:
            from syncbn_convert.keras import functions

            signature = functions.signature_of(self.model, self.library)
            return functions.trace_model(self.model, signature)

        return compare_predictions(model, framework, self.name, options)


def compare_predictions(
    model: ir.Model,
    framework: Callable[[], InferenceFunction],
    name: str,
    options: VerifyOptions,
) -> Comparison:
    """Compare an ONNX model with a framework's function; inputs and outputs go by their order.

    Raises:
        VerificationError: if they differ.
    """
    with without_noise():
        from syncbn_convert.keras import predictions

        function = dataclasses.replace(
            framework(),
            inputs=[str(value.name) for value in model.graph.inputs],
            outputs=[str(value.name) for value in model.graph.outputs],
        )
        try:
            return predictions.compare(model, function, options)
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from error


def read_keras(source: Any) -> KerasModel:
    """Return a model of Keras; an object is taken as it is.

    Raises:
        UsageError: if `source` is no model of Keras or path of one, or TensorFlow is missing.
        ModelFileError: if the file cannot be read.
    """
    sources.require_foreign(source)
    name = sources.name_of(source)
    with without_noise():
        if isinstance(source, str | os.PathLike):
            return KerasModel(name, *files.load(Path(source)))
        return KerasModel(name, source, load_library(str(library_of(source))))


def copy_keras(source: Any) -> KerasModel:
    """Return a model of Keras that can be changed; a copy of an object is not compiled.

    Raises:
        UsageError: if `source` is no model of Keras or path of one, or TensorFlow is missing.
        ModelFileError: if the file cannot be read.
        ConversionError: if an object cannot be copied.
    """
    read = read_keras(source)
    if isinstance(source, str | os.PathLike):
        return read
    with without_noise():
        return dataclasses.replace(read, model=_clone(read))


def save_keras(keras: KerasModel, origin: Path, path: Path) -> list[str]:
    """Write a model that was read from `origin`, with the optimizer and the loss of that file.

    Returns:
        What got lost.

    Raises:
        ModelFileError: if the file cannot be written.
    """
    notes: list[str] = []
    with without_noise():
        try:
            model = files.load_compiled(origin, keras.library)
        except ModelFileError as error:
            notes.append(
                f"optimizer and loss are not in the result: {cause_of(error)}; compile it again"
            )
            model = keras.model
        for variable, value in zip(model.weights, keras.weights, strict=True):
            variable.assign(value)
        try:
            model.save(path)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            raise ModelFileError(
                f"{path.name}: cannot be written by Keras: {cause_of(error)}; choose another output"
            ) from error
    return notes


def _clone(read: KerasModel) -> Any:
    try:
        model = read.library.models.clone_model(read.model)
        model.set_weights(read.model.get_weights())
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise ConversionError(
            f"{read.name}: cannot be copied: {cause_of(error)}; save it and give the file"
        ) from error
    for variable, own in zip(read.weights, model.weights, strict=True):
        if variable_path(variable) != variable_path(own):
            raise ConversionError(
                f"{read.name}: cannot be copied: Keras calls '{variable_path(variable)}' "
                f"'{variable_path(own)}' in a copy; save it, and convert and give the file"
            )
    for layer, copy in zip(read.model._flatten_layers(), model._flatten_layers(), strict=True):
        if hasattr(layer, "synchronized"):  # which tf_keras forgets
            copy.synchronized = layer.synchronized
    return model

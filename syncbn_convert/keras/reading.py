"""The door through which a model of any kind comes in: ONNX, Keras or TensorFlow."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from syncbn_convert.errors import ModelFileError, UsageError
from syncbn_convert.files import model_file, pipes
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.graph import graphs
from syncbn_convert.keras import sources
from syncbn_convert.keras.libraries import without_noise

if TYPE_CHECKING:
    from syncbn_convert.keras.functions import InferenceFunction
    from syncbn_convert.keras.predictions import Comparison
    from syncbn_convert.options.verifying import VerifyOptions


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """A model of any kind, as it was read.

    Attributes:
        name: What messages call it.
        model: Its inference function, or the training form that it is; whoever reads a source may
            change it.
        file: The ONNX file that it was read from; None where there is none.
        framework: What returns its own framework's function, for comparison; None for ONNX.
        as_proto: Whether it came in as a protobuf, and results go out as one.
        given: What it was read from, which nobody changes, where that is an ONNX model in memory.
        opset: That of the ONNX model that was read.
    """

    name: str
    model: ir.Model
    file: Path | None = None
    framework: Callable[[], InferenceFunction] | None = None
    as_proto: bool = False
    given: Model | None = None
    opset: int = 0

    def rises_to(self, opset: int) -> bool:
        """Whether an ONNX model was read that has a lower opset."""
        return self.framework is None and self.opset < opset

    def in_file(self, folder: Path) -> Path:
        """Return an ONNX file that holds the model: its own, else one in `folder`.

        To be called before the model is changed.

        Raises:
            ModelFileError: if the file cannot be written.
        """
        if self.file is not None:
            return self.file
        path = folder / "original.onnx"
        model_file.write_model(self.model, path)
        return path

    def original_file(self, folder: Path) -> Path | None:
        """Return an ONNX file that holds what was read, whatever was done to the model since.

        None stands for a model of another framework.

        Raises:
            ModelFileError: if the file cannot be written.
        """
        if self.given is None:
            return self.file
        path = folder / "original.onnx"
        model_file.write_model(model_file.as_model(self.given), path)
        return path

    def like(self, model: ir.Model) -> Model:
        """Return `model` as the type of what came in: a protobuf for a protobuf, else as it is."""
        return model_file.to_proto(model) if self.as_proto else model

    def compare(self, options: VerifyOptions, model: ir.Model | None = None) -> Comparison:
        """Compare an ONNX model with what the framework predicts.

        Args:
            options: Feeds and tolerances.
            model: Another model of the same weights, whose inputs and outputs go by their order;
                None compares the model as it was read.

        Raises:
            VerificationError: if they differ.
        """
        assert self.framework is not None
        if model is not None:
            from syncbn_convert.keras.models import compare_predictions

            return compare_predictions(model, self.framework, self.name, options)
        with without_noise():
            from syncbn_convert.keras import predictions

            return predictions.compare(self.model, self.framework(), options)

    def named_like(self, model: ir.Model) -> ir.Model:
        """Return its model with the names that inputs and outputs have in another, in order."""
        renamed = graphs.clone(self.model)
        for kind in ("inputs", "outputs"):
            values = getattr(renamed.graph, kind)
            for at, value in enumerate(values):
                value.name = f"{kind}\0{at}"
            for value, other in zip(values, getattr(model.graph, kind), strict=True):
                value.name = other.name
        return renamed


def read(model: ModelLike, *, mapped: bool = False) -> Source:
    """Read a model, once; what was given is not changed by changes to the result.

    Args:
        model: A path of ONNX, Keras or a SavedModel, an `onnx.ModelProto`, an `onnx_ir.Model`,
            whose weights are shared, or a `keras.Model`. External data of a protobuf is looked for
            in the working directory.
        mapped: Whether big weights inside an ONNX file stay there until they are used; the file
            must not be overwritten in place meanwhile.

    Raises:
        UsageError: if it is something else, or TensorFlow is needed and not installed.
        ModelFileError: if it cannot be read or is malformed.
        ConversionError: if a model of another framework cannot be exported.
    """
    if sources.is_foreign(model):
        return _read_foreign(model)
    if isinstance(model, str | os.PathLike):
        load = model_file.map_model if mapped else model_file.load_model
        if pipes.is_pipe(model):
            return _read_piped(model, load)
        found = load(model)
        return Source(
            name=os.fspath(model),
            model=found,
            file=Path(model),
            opset=graphs.opset_version(found),
        )
    if not isinstance(model, onnx.ModelProto | ir.Model):
        raise UsageError(
            "a model is a path, an onnx.ModelProto, an onnx_ir.Model or a keras.Model, not "
            f"{type(model).__name__}"
        )
    found = model_file.as_model(model)
    return Source(
        name="the ONNX model",
        model=found,
        as_proto=isinstance(model, onnx.ModelProto),
        given=model,
        opset=graphs.opset_version(found),
    )


def file_of(model: ModelLike, folder: Path) -> Path:
    """Return an ONNX file that holds a model, which was checked: its own, else one in `folder`.

    Raises:
        SyncBNError: as `read`.
    """
    if isinstance(model, str | os.PathLike) and not sources.is_foreign(model):
        path = pipes.store(model, folder) if pipes.is_pipe(model) else Path(model)
        model_file.map_model(path)
        return path
    return read(model).in_file(folder)


def _read_piped(
    pipe: str | os.PathLike[str], load: Callable[[str | os.PathLike[str]], ir.Model]
) -> Source:
    """Read a model that comes through a pipe; its file lasts as long as what is returned."""
    folder = Path(tempfile.mkdtemp())
    try:
        file = pipes.store(pipe, folder)
        found = load(file)
        source = Source(
            name=os.fspath(pipe), model=found, file=file, opset=graphs.opset_version(found)
        )
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ModelFileError):
            shown = str(error).replace(str(folder / "piped.onnx"), os.fspath(pipe))
            raise ModelFileError(shown) from error
        raise
    weakref.finalize(source, shutil.rmtree, folder, ignore_errors=True)
    return source


def read_trained(model: Any) -> Source:
    """Read a trained model of Keras, or the path of one or of a SavedModel.

    Raises:
        UsageError: if it is something else, or TensorFlow is missing.
        SyncBNError: as `read`.
    """
    sources.require_foreign(model)
    return _read_foreign(model)


def _read_foreign(model: Any) -> Source:
    imported = sources.read(model)
    return Source(name=sources.name_of(model), model=imported.model, framework=imported.framework)

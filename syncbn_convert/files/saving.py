"""Models in memory to files, with all that they carry."""

from __future__ import annotations

import os
from pathlib import Path

from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import Model


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    save_as_external_data: bool = False,
    force: bool = False,
) -> Path:
    """Write a model, as the commands do: whole or not at all, and the same model to the same bytes.

    `training_info`, which binds the moving statistics of a training form to their next values,
    is written too; `onnx_ir.save` has no field for it and leaves it out.

    Args:
        model: An `onnx_ir.Model` or an `onnx.ModelProto`; not changed.
        path: The file to write.
        save_as_external_data: Whether to put weights into a file of their own beside it. A model
            too big for one protobuf, or with external data, gets one in any case.
        force: Whether the file may exist.

    Returns:
        The path of the file.

    Raises:
        UsageError: if the file exists and `force` is not given.
        ModelFileError: if it cannot be written, or the model is malformed.
        ConversionError: if onnx's checker refuses the model.
    """
    path = Path(path)
    with staging.stage_output(path, force=force) as staged:
        model_file.write_model(
            model_file.as_model(model),
            staged.path,
            save_as_external_data=save_as_external_data,
            data=staged.data,
        )
        model_file.check_file(staged.path)
        staged.commit()
    return path

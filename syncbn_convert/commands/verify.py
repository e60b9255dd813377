"""`verify`: two models compared on ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

from syncbn_convert.commands.run import Result
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.keras import reading
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.page.writer import PageWriter
from syncbn_convert.reports import VerifyReport
from syncbn_convert.verification import verify_files


def run(
    reference: Path, candidate: Path, options: VerifyOptions, *, page: Path | None = None
) -> Result[VerifyReport]:
    """Compare two files.

    Raises:
        SyncBNError: as `verify`.
    """
    pages = PageWriter(page)
    with tempfile.TemporaryDirectory() as folder:
        files = _files(reference, candidate, Path(folder))
        report = verify_files(*files, options)
        if page is not None:
            pages.take(model_file.map_model(files[0]), reference)
            pages.write(report, candidate, model_file.map_model(files[1]))
    return Result(report=report)


def verify(
    reference: ModelLike, candidate: ModelLike, options: VerifyOptions = VerifyOptions()
) -> VerifyReport:
    """Compare two models on ONNX Runtime: interface first, then values.

    Raises:
        ModelFileError: if a model cannot be read or is malformed.
        VerificationError: if the runtime cannot run the reference.
    """
    with tempfile.TemporaryDirectory() as folder:
        return verify_files(*_files(reference, candidate, Path(folder)), options)


def _files(reference: ModelLike, candidate: ModelLike, folder: Path) -> tuple[Path, Path]:
    """Return ONNX files of both, written into folders of their own where they have none."""
    folders = [folder / name for name in ("reference", "candidate")]
    for own in folders:
        own.mkdir()
    return reading.file_of(reference, folders[0]), reading.file_of(candidate, folders[1])

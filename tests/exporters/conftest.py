from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from tests.exporters.network import export_all


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of the exported networks, which one process of the test run writes for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "exported"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name("unfinished")
            unfinished.mkdir()
            export_all(unfinished)
            unfinished.rename(folder)
    return folder

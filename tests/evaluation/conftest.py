from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_run import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder; its keywords are those of `write_run`."""

    def make(**settings: Any) -> Path:
        return write_run(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **settings)

    return make

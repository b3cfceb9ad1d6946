from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Deadlines are timings, and a busy machine misses them.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def _witnesses_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the witnesses of test ledgers out of this user's own folder."""
    folder = tmp_path_factory.mktemp("user-state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors on shared cores: threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

import pytest
from fake_federation import Federation


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)

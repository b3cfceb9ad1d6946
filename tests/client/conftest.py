import pytest

from medfusion.data.cohorts.synthetic import write_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A site with images, notes and a table; tests that change a file copy the folder first."""
    folder = tmp_path_factory.mktemp("one-site") / "cohort"
    write_cohort(folder, sites=1, patients=80, seed=1)
    return folder

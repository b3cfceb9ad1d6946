import pytest
from test_covid_chestxray import write_source
from typer.testing import CliRunner

from medfusion.cli.cohort import app
from medfusion.data.cohorts.registry import IMPORTERS, importer
from medfusion.data.site_data import load_site_data
from medfusion.errors import UsageError

SOURCES = {"covid-chestxray": write_source}


def test_every_importer_has_a_source_to_be_tested_on():
    assert set(SOURCES) == set(IMPORTERS)


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_every_importer_writes_sites_that_can_be_read(tmp_path, name):
    src = SOURCES[name](tmp_path / "src")
    imported = importer(name)(src, tmp_path / "out")
    folders = sorted((tmp_path / "out" / "sites").iterdir())
    assert [folder.name for folder in folders] == [site.name for site in imported.sites]
    for folder, summary in zip(folders, imported.sites, strict=True):
        data = load_site_data(folder)
        assert data.name == summary.name
        assert len(data.studies) == summary.studies > 0
    with pytest.raises(UsageError, match="expected a new or empty folder"):
        importer(name)(src, tmp_path / "out")


def test_unknown_importer_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'covid-chestxray'"):
        importer("covid_chestxray")


def test_synth_command(tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["synth", str(out), "--sites", "2", "--patients", "25", "--seed", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "alder" in result.output
    assert "birch" in result.output
    assert {path.name for path in out.iterdir()} == {
        "task.toml",
        "config.toml",
        "oracle.csv",
        "oracle.json",
        "sites",
    }


def test_import_command_prints_notices(tmp_path):
    src = write_source(tmp_path / "src")
    (src / "images/img_0003.jpg").unlink()
    result = CliRunner().invoke(app, ["import", "covid-chestxray", str(src), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "image: 1 file not there, taken as missing" in result.output
    assert (tmp_path / "out" / "config.toml").is_file()

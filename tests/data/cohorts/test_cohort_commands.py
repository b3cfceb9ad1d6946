import csv
from functools import partial

import pytest
import test_adni
import test_chexpert
import test_covid_lungs
import test_mimic_cxr
import test_nih_boxes
import test_rsna_pneumonia
import test_vindr_cxr
from test_covid_chestxray import write_source
from test_fed_heart import write_heart
from test_nih_chestxray14 import write_official, write_prepared
from test_oasis1 import write_oasis
from test_uci_cervical import write_cervical
from typer.testing import CliRunner

from medfusion.cli.cohort import app
from medfusion.data.cohorts.oasis1 import READERS
from medfusion.data.cohorts.partition import Partition
from medfusion.data.cohorts.registry import IMPORTERS, importer
from medfusion.data.site_data import load_site_data
from medfusion.errors import UsageError

SOURCES = {
    "covid-chestxray": write_source,
    "covid-lungs": test_covid_lungs.write_source,
    "nih-boxes": partial(test_nih_boxes.write_source, count=100),
    "rsna-pneumonia": test_rsna_pneumonia.write_source,
    "vindr-cxr": test_vindr_cxr.write_source,
    "nih-chestxray14": write_official,
    "mimic-cxr": test_mimic_cxr.write_source,
    "chexpert": test_chexpert.write_source,
    "uci-cervical": write_cervical,
    "fed-heart": write_heart,
    "adni": test_adni.write_source,
    **dict.fromkeys(READERS, partial(write_oasis, count=120)),
}


def test_every_importer_has_a_source_to_be_tested_on():
    assert set(SOURCES) == set(IMPORTERS)


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_every_importer_writes_sites_that_can_be_read(tmp_path, name):
    src = SOURCES[name](tmp_path / "src")
    partition = None if importer(name).natural_sites else Partition(sites=2)
    imported = importer(name).run(src, tmp_path / "out", partition)
    assert len(imported.sites) >= 2
    folders = sorted((tmp_path / "out" / "sites").iterdir())
    assert [folder.name for folder in folders] == [site.name for site in imported.sites]
    for folder, summary in zip(folders, imported.sites, strict=True):
        data = load_site_data(folder)
        assert data.name == summary.name
        assert len(data.studies) == summary.studies > 0
    with pytest.raises(UsageError, match="expected a new or empty folder"):
        importer(name).run(src, tmp_path / "out", partition)


@pytest.mark.parametrize("name", [name for name in IMPORTERS if IMPORTERS[name].natural_sites])
@pytest.mark.parametrize("option", ["--sites", "--alpha", "--seed"])
def test_natural_sites_are_not_dealt_out(tmp_path, name, option):
    src = SOURCES[name](tmp_path / "src")
    arguments = ["import", name, str(src), str(tmp_path / "out"), option, "1"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError)
    assert f"brings its own sites ({IMPORTERS[name].natural_sites})" in str(result.exception)
    assert not (tmp_path / "out").exists()


def _sites_of(out):
    """Site of each patient."""
    found = {}
    for folder in sorted((out / "sites").iterdir()):
        with (folder / "studies.csv").open(newline="") as file:
            found |= {row["patient_id"]: folder.name for row in csv.DictReader(file)}
    return found


def test_import_command_deals_patients_to_sites(tmp_path):
    src = write_prepared(tmp_path / "src")
    found = {}
    for name, options in {
        "usual": ["--sites", "2"],
        "again": ["--sites", "2", "--alpha", "0.5", "--seed", "0"],
        "alpha": ["--sites", "2", "--alpha", "50"],
        "seed": ["--sites", "2", "--seed", "3"],
        "one": ["--sites", "1"],
    }.items():
        out = tmp_path / name
        result = CliRunner().invoke(
            app, ["import", "nih-chestxray14", str(src), str(out), *options]
        )
        assert result.exit_code == 0, result.output
        found[name] = _sites_of(out)
    assert found["usual"] == found["again"]
    assert found["usual"] != found["alpha"]
    assert found["usual"] != found["seed"]
    assert set(found["usual"].values()) == {"site_1", "site_2"}
    assert set(found["one"].values()) == {"site_1"}
    assert len({frozenset(sites) for sites in found.values()}) == 1
    # Forty patients are too few for the four sites that are the default.
    result = CliRunner().invoke(app, ["import", "nih-chestxray14", str(src), str(tmp_path / "x")])
    assert "found 40 patients for 4 sites" in str(result.exception)


def test_source_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="expected the folder of the data set, found none"):
        importer("chexpert").run(tmp_path / "none", tmp_path / "out")


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

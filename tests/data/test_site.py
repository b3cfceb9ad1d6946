from pathlib import Path

import pytest
from site_folder import make_site

from medfusion.data.site import SiteConfig, open_site
from medfusion.errors import ConfigError, DataError


def test_defaults_and_paths(tmp_path: Path) -> None:
    site = open_site(make_site(tmp_path))
    assert site.name == "north"
    assert site.state == tmp_path / "north.state"
    assert site.table == tmp_path / "north" / "studies.csv"
    assert site.task.task.name == "chest"
    assert (site.config.policy.max_epsilon, site.config.policy.min_patients) == (8.0, 10)
    assert (site.config.compute.device, site.config.compute.threads) == ("auto", 0)


def test_state_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    toml = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(toml + 'state = "../elsewhere/north"\n')
    assert open_site(folder).state == tmp_path / "elsewhere" / "north"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("label_coverage = { icux = 0.5 }\n", "did you mean 'icu'"),
        ("label_coverage = { icu = 1.5 }\n", "label_coverage.icu"),
        ("[polcy]\nmax_epsilon = 1\n", "did you mean 'policy'"),
        ("[policy]\nmax_epsilom = 1\n", "did you mean 'max_epsilon'"),
        ("[policy]\ndelta = 2\n", "policy.delta"),
        ('[compute]\ndevice = "gpu"\n', "compute.device"),
        ('[files]\nstudies = "studies.xlsx"\n', ".csv"),
        ('[files]\ndecimal = ","\n', "must differ"),
        ('[files]\nencoding = "utf-99"\n', "encoding"),
        ('[columns.agee]\nfrom = "x"\n', "did you mean 'age'"),
        ("[columns.sex]\nscale = 2\n", "numeric"),
        ("[columns.age]\nscale = 0\n", "scale"),
        ('[columns.sex]\nmap = { w = "X" }\n', "expected F, M"),
        ("[columns.icu]\nmap = { yes = 2 }\n", "expected 0 or 1"),
        ('[columns.age]\nmap = { NA = "old" }\n', "expected a number"),
        ('[columns.patient_id]\nmap = { a = "b" }\n', "map is for"),
        ('[columns.study_id]\nfrom = ""\n', "every site needs"),
    ],
)
def test_bad_site_toml_is_refused_by_key(tmp_path: Path, extra: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml") as error:
        open_site(make_site(tmp_path, extra=extra))
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_names_that_cannot_be_folder_names_are_refused() -> None:
    for name in ("../up", "a b", "", "-x"):
        with pytest.raises(ConfigError, match=r"site\.name"):
            SiteConfig.parse(
                {"site": {"name": name, "task": "t", "patients_public": 1}}, where="site.toml"
            )


def test_missing_folder_table_and_toml(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such site folder"):
        open_site(tmp_path / "nowhere")
    folder = make_site(tmp_path)
    (folder / "studies.csv").unlink()
    with pytest.raises(DataError, match=r"studies\.csv: no such table"):
        open_site(folder)
    (folder / "site.toml").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        open_site(folder)

import tomllib

import pytest

from medfusion.data.cohorts.writing import new_folder
from medfusion.errors import UsageError
from medfusion.toml_text import to_toml


def test_toml_reads_back_equal():
    table = {
        "site": {"name": "a", "patients_public": 3, "on": True},
        "columns": {
            "sex": {"from": 'Größe "x" (mg/dl)', "map": {"w": "F", "ja nein": "M"}},
            "odd.name": {"scale": 5 / 9, "offset": -1e-12, "map": {}},
        },
        "features": {"age": {"low": 0.0, "values": ("F", "M")}},
        "privacy": {"shares": {"selection": 0.1}, "delta": 1e-5},
    }
    expected = {**table, "features": {"age": {"low": 0.0, "values": ["F", "M"]}}}
    assert tomllib.loads(to_toml(table)) == expected


def test_new_folder_appears_only_when_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "x"
    assert out.stat().st_mode & 0o500 == 0o500


def test_empty_folder_is_taken(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (tmp_path / "out").mkdir()
        (folder / "file").write_text("x")
    assert (tmp_path / "out" / "file").exists()


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_is_there_is_not_overwritten(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(UsageError, match="expected a new or empty folder"), new_folder(out):
        pass
    assert (out if kind == "file" else out / "mine").read_text() == "mine"


def test_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="cannot be written"),
        new_folder(tmp_path / "file" / "out"),
    ):
        pass


def test_folder_filled_meanwhile_is_kept(tmp_path):
    out = tmp_path / "out"
    filling = new_folder(out)
    filling.__enter__()
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written"):
        filling.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine").read_text() == "mine"

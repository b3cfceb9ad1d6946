import pytest

from medfusion.errors import ConfigError
from medfusion.options import read_toml


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x" * 300, "File name too long"), ("a\0b", "a zero byte"), ("", "Is a directory")],
)
def test_a_path_that_no_file_can_have_is_a_config_error(tmp_path, name, expected):
    with pytest.raises(ConfigError, match=expected):
        read_toml(tmp_path / name)

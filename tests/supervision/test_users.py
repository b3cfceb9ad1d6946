"""Programs of two users: what one makes, the other reaches; nothing else."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfusion.cli.main import _cli
from medfusion.errors import UsageError
from medfusion.supervision.users import let_through, own, refuse_readers

NODE, LINK = "daemon", "nobody"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def as_user(user: str, *command: str) -> bool:
    return (
        subprocess.run(command, user=user, group=user_group(user), extra_groups=[]).returncode == 0
    )


def user_group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


@pytest.fixture
def in_reach() -> Iterator[Path]:
    """A folder that other users reach; pytest's own ones are closed to them."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@root_only
def test_what_the_node_makes_the_link_reaches_but_does_not_list(in_reach: Path) -> None:
    run = in_reach / "run"
    run.mkdir(0o700)
    own(run, NODE)
    let_through(run, LINK)
    assert as_user(NODE, "/usr/bin/touch", str(run / "node.sock"))
    made = (run / "node.sock").stat()
    assert made.st_gid == user_group(LINK)  # although the Node's user is not in that group
    assert as_user(LINK, "/usr/bin/test", "-e", str(run / "node.sock"))
    assert not as_user(LINK, "/usr/bin/ls", str(run))
    assert not as_user(LINK, "/usr/bin/touch", str(run / "other"))


@root_only
def test_a_site_that_the_link_can_read_is_refused(in_reach: Path) -> None:
    site = in_reach / "site"
    site.mkdir()
    site.chmod(0o755)
    with pytest.raises(UsageError, match="can read it"):
        refuse_readers(LINK, site)
    site.chmod(0o711)  # not listed, but entered
    with pytest.raises(UsageError, match="can read it"):
        refuse_readers(LINK, site)
    site.chmod(0o750)
    refuse_readers(LINK, site)


@pytest.mark.parametrize("link", [[], ["--link-user", NODE]])
def test_a_node_user_needs_another_user_for_the_link(tmp_path: Path, link: list[str]) -> None:
    arguments = ["site", "start", str(tmp_path), "--site", str(tmp_path), "--node-user", NODE]
    result = CliRunner().invoke(_cli, [*arguments, *link])
    assert isinstance(result.exception, UsageError)
    assert "add --link-user" in str(result.exception)

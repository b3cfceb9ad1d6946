import subprocess
import sys
from pathlib import Path

import pytest

from client.node.state_lock import alone
from medfusion.errors import FederationError

_HOLD = """
import sys, time
from pathlib import Path
from client.node.state_lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FederationError, match="stop it first"), alone(tmp_path):
            pass
        holder.kill()
    with alone(tmp_path):
        pass
    with alone(tmp_path):
        pass

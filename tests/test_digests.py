"""A file's digest is remembered, but not beyond a change of the file."""

import hashlib
import os
import time

from medfusion.digests import file_sha256


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = path.stat()
    assert file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    time.sleep(0.05)  # a clock's tick
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest()

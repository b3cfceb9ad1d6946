"""Files that a model's options name: their content tells two runs apart."""

import pytest

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.local_files import local_files_sha256
from medfusion.models.options import LogisticOptions, MedFusionNetOptions, TextOptions

TASK = Task.parse(
    {
        "task": {"name": "files", "kind": "multilabel"},
        "text": {"max_tokens": 8},
        "features": {"age": {"kind": "numeric", "low": 0, "high": 1}},
        "labels": {"names": ["died"]},
    },
    where="test",
)


def digest(task: Task = TASK, **options) -> str:
    return local_files_sha256(MedFusionNetOptions(**options), task)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    return folder


def test_most_models_name_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")  # not what the name means
    assert local_files_sha256(LogisticOptions(), TASK) == ""
    for encoder in ("tiny", "minilm", "someone/encoder-of-the-hub"):
        assert digest(text=TextOptions(encoder=encoder)) == ""


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_model_folder_counts_with_weights_and_description(model, name):
    before = digest(init=str(model))
    assert before == digest(init=str(model / "model.safetensors"))
    (model / name).write_bytes(b"other")
    assert digest(init=str(model)) != before
    assert digest(init=str(model / "model.safetensors")) != before


def test_a_file_of_weights_counts_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "weights.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"one")
    before = digest(init="weights.pth")
    assert before == digest(init=str(cached))
    cached.write_bytes(b"other")
    assert digest(init="weights.pth") != before
    with pytest.raises(ConfigError, match="no file"):
        digest(init="absent.pth")


@pytest.mark.parametrize("name", ["tokenizer.json", "new.json"])
def test_an_encoders_folder_counts_with_every_file(tmp_path, name):
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / file).write_text("{}")
    before = digest(text=TextOptions(encoder=str(tmp_path)))
    assert before
    (tmp_path / name).write_text("{ }")
    assert digest(text=TextOptions(encoder=str(tmp_path))) != before


def test_an_encoder_that_the_model_does_not_read_does_not_count(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    text = TextOptions(encoder=str(tmp_path))
    without = TASK.model_copy(update={"text": None})
    assert digest(text=text)
    assert digest(text=text, modalities=("tabular",)) == ""
    assert digest(without, text=text) == ""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.options import LogisticOptions, MedFusionNetOptions, ModelOptions, TextOptions
from medfusion.models.registry import MODELS, build_model, build_tokenizer, modalities_of
from medfusion.models.spec import input_spec

TABULAR = Task.parse(
    {
        "task": {"name": "plain", "kind": "multilabel"},
        "features": {"age": {"kind": "numeric", "low": 0, "high": 120}},
        "labels": {"names": ["icu"]},
    },
    where="test",
)


def test_a_misspelt_key_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'exchang'.*did you mean 'exchange'"):
        MedFusionNetOptions.parse({"exchang": True}, where="config.toml [model]")


def test_modalities_are_brought_to_one_order():
    options = MedFusionNetOptions(modalities=["text", "image"])
    assert options.modalities == ("image", "text")


@pytest.mark.parametrize("modalities", [[], ["image", "image"]])
def test_no_modality_and_a_repeated_one_are_refused(modalities):
    with pytest.raises(ConfigError, match="expected at least one of image, tabular, text"):
        MedFusionNetOptions.parse({"modalities": modalities}, where="test")


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_modality_dropout_is_a_probability_below_one(rate):
    with pytest.raises(ConfigError, match="modality_dropout"):
        MedFusionNetOptions.parse({"modality_dropout": rate}, where="test")


def test_every_registered_model_is_chosen_by_its_name():
    adapter = TypeAdapter(ModelOptions)
    for name, entry in MODELS.items():
        assert type(adapter.validate_python({"name": name})) is entry.options


def test_without_a_choice_the_model_reads_what_the_task_offers():
    assert modalities_of(MedFusionNetOptions(), TABULAR) == ("tabular",)
    assert modalities_of(LogisticOptions(), TABULAR) == ("tabular",)


def test_a_modality_that_the_task_lacks_is_refused():
    options = MedFusionNetOptions(modalities=("tabular", "text"))
    with pytest.raises(ConfigError, match="reads text, but task 'plain' offers only tabular"):
        build_model(options, TABULAR, seed=0)


def test_a_model_without_text_has_no_tokenizer():
    assert build_tokenizer(MedFusionNetOptions(), TABULAR) is None
    assert build_tokenizer(LogisticOptions(), TABULAR) is None


def test_absent_parts_of_the_task_have_size_zero():
    spec = input_spec(TABULAR)
    assert (spec.columns, spec.labels, spec.column_values) == (1, 1, 4)
    assert (spec.image_channels, spec.image_size, spec.max_tokens) == (0, (0, 0), 0)


def test_text_options_name_an_encoder():
    with pytest.raises(ConfigError, match="encoder"):
        TextOptions.parse({"encoder": ""}, where="test")


def test_reading_options_loads_no_torch():
    code = (
        "import sys, medfusion.models.options, medfusion.models.registry;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'opacus')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

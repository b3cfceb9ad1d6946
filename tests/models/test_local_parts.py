import pytest
from tabular_cohort import write_ward
from torch import nn

from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.contract import trainable_state
from medfusion.models.local_parts import local_parts
from medfusion.models.options import HyperFusionOptions, LogisticOptions, MedFusionNetOptions
from medfusion.models.registry import build_model


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "cohort"
    write_cohort(folder, sites=1, patients=20, seed=0)
    return build_model(MedFusionNetOptions(), Task.load(folder / "task.toml"), seed=0)


def test_norms_are_the_parameters_of_normalisation_layers(net):
    kept = local_parts(net, "norms")
    for name, module in net.named_modules():
        for own, value in module.named_parameters(recurse=False):
            full = f"{name}.{own}"
            is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and value.requires_grad
            assert (full in kept) == is_norm, full


def test_the_head_is_what_single_labels_own(net):
    kept = local_parts(net, "head")
    assert "head.readout.table.weight" in kept
    assert "head.bias.weight" in kept
    assert kept < set(trainable_state(net))
    assert not any(name.startswith(("image", "tabular", "text")) for name in kept)
    assert local_parts(net, "none") == frozenset()


def test_a_model_that_would_share_or_keep_nothing_is_refused(tmp_path):
    config = load_config(write_ward(tmp_path, patients=3))
    model = build_model(LogisticOptions(), Task.load(config.run.task), seed=0)
    with pytest.raises(ConfigError, match="nothing to share beside it"):
        local_parts(model, "head")
    with pytest.raises(ConfigError, match="nothing to keep"):
        local_parts(model, "norms")


@pytest.mark.parametrize(
    ("fusion", "more"),
    [("film", set()), ("concat", {"columns.tabular.weight", "columns.tabular.bias"})],
)
def test_the_head_of_hyperfusion_is_its_last_layer(tmp_path, fusion, more):
    write_cohort(tmp_path / "cohort", sites=1, patients=20, seed=0)
    task = Task.load(tmp_path / "cohort" / "task.toml")
    model = build_model(HyperFusionOptions(fusion=fusion), task, seed=0)
    assert local_parts(model, "head") == {"head2.weight", "head2.bias"} | more

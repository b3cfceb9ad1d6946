from pathlib import Path

import pytest
from tabular_cohort import write_ward

from medfusion.comparison.arms import plan_arms, shown
from medfusion.errors import ConfigError, UsageError

NET = ("model.name=medfusion_net",)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_ward(tmp_path, patients=3)


def test_arms_cross_settings_and_regimes_in_order(config):
    arms = plan_arms(
        config,
        regimes=["federated", "local"],
        vary=["training.batch_size=4,8", "selection.method=none,local"],
    )
    found = [(a.regime, a.config.training.batch_size, a.config.selection.method) for a in arms]
    assert found == [
        (regime, size, method)
        for size in (4, 8)
        for method in ("none", "local")
        for regime in ("federated", "local")
    ]
    assert arms[0].settings == {"training.batch_size": 4, "selection.method": "none"}
    assert str(arms[-1]) == "local, training.batch_size=8, selection.method=local"


def test_without_vary_each_regime_is_an_arm(config):
    arms = plan_arms(config)
    assert [arm.regime for arm in arms] == ["pooled", "local", "federated"]
    assert all(arm.settings == {} for arm in arms)


def test_a_key_that_holds_a_list_takes_single_values_and_sums(config):
    arms = plan_arms(
        config,
        overrides=NET,
        regimes=["federated"],
        vary=["model.modalities=image,tabular,image+tabular"],
    )
    assert [arm.config.model.modalities for arm in arms] == [
        ("image",),
        ("tabular",),
        ("image", "tabular"),
    ]
    values = [arm.settings["model.modalities"] for arm in arms]
    assert values == [["image"], ["tabular"], ["image", "tabular"]]
    assert [shown(value) for value in values] == ["image", "tabular", "image+tabular"]


def test_a_plus_inside_a_number_or_a_name_is_no_list(config):
    rates = plan_arms(config, regimes=["local"], vary=["training.learning_rate=1e+2,1e-2"])
    assert [arm.config.training.learning_rate for arm in rates] == [100.0, 0.01]
    encoders = plan_arms(config, overrides=NET, regimes=["local"], vary=["model.text.encoder=a+b"])
    assert encoders[0].config.model.text.encoder == "a+b"


def test_a_key_that_takes_anything_takes_the_value_as_it_stands(config):
    arms = plan_arms(
        config,
        overrides=["strategy.name=fedprox"],
        regimes=["federated"],
        vary=["strategy.proximal_mu=0.1,1"],
    )
    assert [arm.config.strategy.settings["proximal_mu"] for arm in arms] == [0.1, 1]


def test_values_may_need_one_another(config):
    arms = plan_arms(
        config,
        overrides=["training.optimizer=adamw"],
        regimes=["pooled"],
        vary=["training.optimizer=sgd", "training.momentum=0.5,0.9"],
    )
    assert [arm.config.training.momentum for arm in arms] == [0.5, 0.9]


def test_fusions_vary_though_the_config_has_options_of_one(config):
    text = config.read_text()
    model = '[model]\nname = "hyperfusion"\nembedding = 16\n'
    config.write_text(text.replace('[model]\nname = "logistic"\n', model))
    arms = plan_arms(config, regimes=["local"], vary=["model.fusion=none,hyperfusion,film"])
    found = [(arm.config.model.fusion, arm.config.model.embedding) for arm in arms]
    assert found == [("none", 8), ("hyperfusion", 16), ("film", 8)]


def test_metrics_are_released_once_unless_the_config_says_otherwise(config):
    (arm,) = plan_arms(config, regimes=["federated"])
    assert arm.config.evaluation_rounds() == (2,)
    (arm,) = plan_arms(config, regimes=["federated"], overrides=["evaluation.every=1"])
    assert arm.config.evaluation_rounds() == (1, 2)


def test_a_node_alone_needs_no_quorum_and_no_strategy(config):
    arms = plan_arms(
        config,
        overrides=["strategy.name=fedprox", "strategy.proximal_mu=0.1", "server.min_sites=2"],
    )
    seen = {arm.regime: (arm.config.server.min_sites, arm.config.strategy.name) for arm in arms}
    assert seen == {"pooled": (1, "fedavg"), "local": (1, "fedavg"), "federated": (2, "fedprox")}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regimes": ["federate"]}, UsageError, "did you mean 'federated'"),
        ({"regimes": ["local", "local"]}, UsageError, "each once"),
        ({"regimes": [""]}, UsageError, "pooled, local, federated"),
        ({"regimes": ["personalised"]}, ConfigError, "makes no personal models"),
        ({"vary": ["training.batch_size"]}, UsageError, "KEY=A,B"),
        ({"vary": ["training.batch_size="]}, UsageError, "KEY=A,B"),
        ({"vary": ["training.batch_size=4,,8"]}, UsageError, "KEY=A,B"),
        ({"vary": ["training.batch_size=4,4"]}, UsageError, "one twice"),
        ({"vary": ["run.seed=1,2", "run.seed=3"]}, UsageError, "given twice"),
        ({"vary": ["simulation.sites=a,b"]}, UsageError, "same patients"),
        ({"vary": ["run.task=a,b"]}, UsageError, "same patients"),
        ({"vary": ["training.batchsize=4,8"]}, ConfigError, "did you mean 'batch_size'"),
        ({"vary": ["training.batch_size=4,many"]}, ConfigError, "many"),
        ({"overrides": ["training.batchsize=4"]}, ConfigError, "did you mean 'batch_size'"),
    ],
)
def test_bad_usage_is_explained(config, options, error, message):
    with pytest.raises(error, match=message):
        plan_arms(config, **options)


def test_what_is_between_sites_is_off_where_a_node_is_alone(config):
    overrides = (
        "server.min_sites=2",
        "server.secure_aggregation={threshold=2}",
        "personalisation.steps=3",
    )
    arms = plan_arms(
        config, regimes=["pooled", "local", "federated", "personalised"], overrides=overrides
    )
    for arm in arms:
        together = arm.regime in ("federated", "personalised")
        assert (arm.config.server.secure_aggregation is not None) == together
        assert arm.config.personalisation.steps == (3 if together else 0)
    packed = plan_arms(config, regimes=["local"], overrides=["compression.level=int8"])
    assert packed[0].config.compression.off

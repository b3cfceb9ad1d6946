import pytest
from fake_federation import Federation
from flwr.serverapp.strategy import FedAdam, FedProx, Krum

from medfusion.config import StrategyOptions
from medfusion.errors import ConfigError
from server.strategies import STRATEGIES, build_strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_built_by_name(name):
    extra = {"client_learning_rate": 0.1} if name == "qfedavg" else {}
    strategy = build_strategy(StrategyOptions(name=name, **extra), min_sites=3)
    assert type(strategy) is STRATEGIES[name]
    assert strategy.min_available_nodes == 3
    assert strategy.weighted_by_key == "num-examples"


def test_options_reach_the_strategy():
    adam = build_strategy(StrategyOptions(name="fedadam", eta=0.5, beta_1=0.7), min_sites=1)
    assert isinstance(adam, FedAdam)
    assert (adam.eta, adam.beta_1) == (0.5, 0.7)
    prox = build_strategy(StrategyOptions(name="fedprox", proximal_mu=0.3), min_sites=1)
    assert isinstance(prox, FedProx)
    assert prox.proximal_mu == 0.3
    krum = build_strategy(StrategyOptions(name="krum", num_malicious_nodes=1), min_sites=1)
    assert isinstance(krum, Krum)
    assert krum.num_malicious_nodes == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fedvag"}, "did you mean 'fedavg'"),
        ({"name": "fedadam", "etha": 1.0}, "did you mean 'eta'"),
        ({"name": "fedadam", "eta": "fast"}, "eta"),
        ({"name": "fedavg", "fraction_train": 1.5}, "fraction_train"),
        ({"name": "fedavg", "fraction_train": 0.0}, "fraction_train"),
        ({"name": "qfedavg"}, "missing key 'client_learning_rate'"),
        ({"name": "fedavg", "min_train_nodes": 1}, "unknown key 'min_train_nodes'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_strategy(StrategyOptions(**options), min_sites=1)


def test_labels_whose_rows_all_stay_at_the_sites_cannot_be_averaged(tmp_path):
    sets = ("model.name=medfusion_net", "personalisation.local=head")
    part = Federation(tmp_path, "strategy.name=label_aware", *sets)
    with pytest.raises(ConfigError, match="belongs to one label alone"):
        part.loop()

"""Flower's strategies by name, with their own options checked against their signatures."""

import inspect
from typing import Any

import flwr.serverapp.strategy as flower
from flwr.serverapp.strategy import Strategy
from pydantic import Field, create_model

from medfusion.config import StrategyOptions
from medfusion.errors import ConfigError, did_you_mean
from medfusion.options import Options
from medfusion.strategies.cyclic import Cyclic
from medfusion.strategies.feddyn import FedDyn
from medfusion.strategies.fednova import FedNova
from medfusion.strategies.label_aware import LabelAware
from medfusion.strategies.scaffold import Scaffold
from medfusion.transport.requests import ARRAYS, CONFIG, LOSS_KEY, WEIGHT_KEY

STRATEGIES: dict[str, type[Strategy]] = {
    "bulyan": flower.Bulyan,
    "cyclic": Cyclic,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "feddyn": FedDyn,
    "fedmedian": flower.FedMedian,
    "fednova": FedNova,
    "fedprox": flower.FedProx,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "fedyogi": flower.FedYogi,
    "krum": flower.Krum,
    "label_aware": LabelAware,
    "multikrum": flower.MultiKrum,
    "qfedavg": flower.QFedAvg,
    "scaffold": Scaffold,
}

# What the run loop sets itself, and hooks that a configuration cannot name.
_OWNED = {
    "min_train_nodes",
    "min_evaluate_nodes",
    "min_available_nodes",
    "fraction_evaluate",
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "train_loss_key",
    "selection_rule",
    "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn",
    "quorum",
}


def build_strategy(options: StrategyOptions, *, min_sites: int) -> Strategy:
    """Return the strategy called ``options.name`` with the options of its constructor.

    Raises
    ------
    ConfigError
        For an unknown name or option (with the nearest one), or a value of another type.
    """
    if options.name not in STRATEGIES:
        raise ConfigError(
            f"strategy.name = {options.name!r}: expected one of {', '.join(STRATEGIES)}"
            + did_you_mean(options.name, STRATEGIES)
        )
    cls = STRATEGIES[options.name]
    parameters = inspect.signature(cls).parameters
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            Field() if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for name, parameter in parameters.items()
        if name not in _OWNED
    }
    schema: type[Options] = create_model(f"{options.name}Options", __base__=Options, **fields)
    checked = schema.parse(options.settings, where=f"[strategy] {options.name}")
    fraction = getattr(checked, "fraction_train", 1.0)
    if not 0 < fraction <= 1:  # Flower would wait for more nodes than there are, or train nobody
        raise ConfigError(
            f"[strategy] {options.name}: fraction_train = {fraction}: expected above 0, at most 1"
        )
    ours: dict[str, Any] = {
        "min_train_nodes": min_sites,
        "min_evaluate_nodes": min_sites,
        "min_available_nodes": min_sites,
        "weighted_by_key": WEIGHT_KEY,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
        "train_loss_key": LOSS_KEY,
        "quorum": min_sites,
    }
    given = {name: value for name, value in ours.items() if name in parameters}
    try:
        return cls(**checked.model_dump(), **given)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"[strategy] {options.name}: {error}") from None

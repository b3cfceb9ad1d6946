from pathlib import Path

import pytest

from medfusion.config import config_text, load_config
from medfusion.errors import ConfigError
from medfusion.objectives.options import AsymmetricLoss, FocalLoss

CONFIG = """
[run]
name = "study"
task = "task.toml"
rounds = 7
[simulation]
sites = "sites/*"
[model]
name = "medfusion_net"
size = "small"
modalities = ["tabular", "image"]
[privacy]
shares = { selection = 0.2, training = 0.7, metrics = 0.1 }
[strategy]
name = "fedadam"
eta = 0.02
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    return file


def test_paths_are_relative_to_the_file_that_names_them(path):
    config = load_config(path)
    assert config.run.task == path.parent / "task.toml"
    assert config.simulation is not None
    assert config.simulation.sites == str(path.parent / "sites/*")


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("weights.pth", "{folder}/weights.pth"),  # a file beside the config
        ("published.pth", "published.pth"),  # none: a name in torchvision's cache
        ("other/model", "{folder}/other/model"),
        ("/abs/weights.pth", "/abs/weights.pth"),
    ],
)
def test_initial_weights_are_relative_to_the_config_or_a_name(path, init, expected):
    (path.parent / "weights.pth").touch()
    config = load_config(path, [f"model.init={init}", "model.size=121"])
    assert config.model.init == expected.format(folder=path.parent)
    assert config.model.size == "121"


def test_the_resolved_copy_reads_as_an_equal_config(path, tmp_path):
    config = load_config(path, ["run.name=a-b", "model.text.encoder='dir \"x\"'"])
    copy = tmp_path / "elsewhere" / "config.toml"
    copy.parent.mkdir()
    copy.write_text(config_text(config))
    assert load_config(copy) == config


def test_overrides_are_read_as_toml_or_as_plain_strings(path):
    config = load_config(
        path,
        ["run.rounds=3", "strategy.eta=0.5", "model.modalities=['text']", "selection.method=local"],
    )
    assert config.run.rounds == 3
    assert config.strategy.settings == {"eta": 0.5}
    assert config.model.modalities == ("text",)
    assert config.selection.method == "local"


def test_another_model_or_strategy_does_not_inherit_options(path):
    config = load_config(path, ["model.name=logistic", "strategy.name=fedavgm"])
    assert config.model.name == "logistic"
    assert config.strategy.settings == {}


def test_another_loss_does_not_inherit_constants(path, tmp_path):
    focal = ["training.loss.name=focal", "training.loss.gamma=1.5"]
    assert load_config(path).training.loss is None
    config = load_config(path, focal)
    assert config.training.loss == FocalLoss(gamma=1.5)
    assert load_config(path, [*focal, "training.loss.name=asymmetric"]).training.loss == (
        AsymmetricLoss()
    )
    copy = tmp_path / "copy.toml"
    copy.write_text(config_text(config))
    assert load_config(copy) == config


HYPERFUSION = """
[model]
name = "hyperfusion"
backbone = "vgg"
generated = ["head1"]
embedding = 16
rank = 2
"""


@pytest.fixture
def generating(path: Path) -> Path:
    head, _, tail = CONFIG.partition("[model]")
    path.write_text(head + HYPERFUSION + tail[tail.index("[privacy]") :])
    return path


def test_another_fusion_does_not_inherit_generated_layers(generating):
    config = load_config(generating, ["model.fusion=film"])
    assert (config.model.fusion, config.model.backbone) == ("film", "vgg")
    again = ["model.fusion=film", "model.fusion=hyperfusion", "model.width=8"]
    for overrides in ([], ["model.fusion=hyperfusion"], again):
        model = load_config(generating, overrides).model
        assert (model.generated, model.embedding, model.rank) == (("head1",), 16, 2)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.rank=3", "model.fusion=none"),
        ("model.fusion=none", "model.rank=3"),
        ("model={name='hyperfusion', rank=3}", "model.fusion=none"),
    ],
)
def test_generated_layers_that_are_asked_for_beside_another_fusion_are_refused(
    generating, overrides
):
    with pytest.raises(ConfigError, match="generates no layers: expected no rank, or fusion"):
        load_config(generating, overrides)


@pytest.mark.parametrize("key", ["name", "backbone"])
def test_small_images_are_refused_where_images_have_one_size(generating, key):
    overrides = ["model.name=mdf_net"] if key == "name" else []
    remedy = ", or model.backbone = 'resnet'" if key == "backbone" else ""
    said = (
        rf"small_images = 0.5: model.{key} = .* reads images of one size; "
        rf"expected 0 beside it{remedy}$"
    )
    with pytest.raises(ConfigError, match=said):
        load_config(generating, [*overrides, "training.small_images=0.5"])
    load_config(generating, ["model.backbone=resnet", "training.small_images=0.5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", r"unknown key 'training.learning_rat' \(did you mean 'learni"),
        ("model.sise=1", r"unknown key 'model.sise' \(did you mean 'size'"),
        ("model.text.encodr=1", r"'model.text.encodr' \(did you mean 'encoder'"),
        ("modle.size=1", r"unknown key 'modle' \(did you mean 'model'"),
        ("training.loss.gamma=1", r"missing key 'training.loss.name'"),
        ("model.name=logistik", r"model.name = 'logistik': expected one of .*did you mean 'logis"),
        ("training.loss.name=focall", r"training.loss.name = 'focall': .*did you mean 'focal'"),
        ("training.augmentation=strong", r"training.augmentation = 'strong': .*'none' or 'light'"),
        ("server.ema=1.0", r"server.ema = 1.0: .*less than 1"),
        ("training.batch_size=0", r"training.batch_size = 0: .*greater than or equal to 1"),
        ("run.name=../x", r"run.name"),
        ("rounds", r"expected section.key=value"),
        ("run.name.x=1", r"'name' is a value, not a section"),
        ("strategy.name=qfedavg", r"stays at the site under privacy"),
        ("privacy.shares.metrics=0.5", r"sum to 1"),
    ],
)
def test_mistakes_are_named_with_their_key(path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("overrides", "rounds"),
    [
        (["privacy.enabled=false"], (1, 2, 3, 4, 5, 6, 7)),
        (["privacy.enabled=true"], (7,)),
        (["privacy.enabled=true", "evaluation.every=3"], (3, 6, 7)),
        (["privacy.enabled=false", "evaluation.every=0"], (7,)),
        (["privacy.enabled=false", "evaluation.every=7"], (7,)),
    ],
)
def test_metrics_are_released_as_often_as_asked_and_always_last(path, overrides, rounds):
    assert load_config(path, overrides).evaluation_rounds() == rounds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run\n", "not valid TOML"),
        ("[run]\nname = 'caf\xe9'\n".encode("latin-1"), "not UTF-8"),
        (None, "no such file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, message):
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(file)
    assert str(file) in str(error.value)


SCAFFOLD = ("strategy.name=scaffold", "training.optimizer=sgd")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("strategy.name=scaffold",), "training.optimizer = 'sgd'"),
        (("strategy.name=fednova",), "how far a site's steps reach"),
        (("strategy.name=cyclic",), "server.min_sites = 1"),
        ((*SCAFFOLD, "training.schedule=cosine"), "training.schedule = 'constant'"),
        ((*SCAFFOLD, "training.rate_multipliers={head=0.1}"), "no training.rate_multipliers"),
        ((*SCAFFOLD, "training.momentum=0.9"), "training.momentum = 0"),
        ((*SCAFFOLD, "selection.method=local"), "'federated' or 'none'"),
        (
            (*SCAFFOLD, "personalisation.local=head", "personalisation.own_steps=1"),
            "own_steps = 0 beside it",
        ),
        (("strategy.name=feddyn", "selection.method=local"), "'federated' or 'none'"),
        (
            (
                "strategy.name=feddyn",
                "selection.method=none",
                "server.client_dp={clip=1, noise_multiplier=1}",
            ),
            "which server.client_dp hides",
        ),
    ],
)
def test_strategies_that_do_not_suit_the_steps_are_refused(path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["personalisation.own_steps=1"], "local = 'none' keeps nothing"),
        (["personalisation.pull=0.5"], "steps = 0"),
        (
            ["personalisation.local=head", "personalisation.own_steps=2", "training.steps=2"],
            "fewer than training.steps = 2",
        ),
    ],
)
def test_personalisation_that_would_do_nothing_is_refused(path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(path, overrides)


def test_strategies_that_suit_the_steps_are_read(path):
    assert load_config(path, SCAFFOLD).strategy.site_rule == "scaffold"
    momentum = ("strategy.name=fednova", "training.optimizer=sgd", "training.momentum=0.9")
    assert load_config(path, momentum).strategy.site_rule == "none"
    assert load_config(path, ["strategy.name=feddyn"]).strategy.site_rule == "feddyn"


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("regression", "calibration = 'isotonic'"),
        ("regression", "sensitivity = 0.8"),
        ("regression", "coverage = 0.8"),
        ("multiclass", "sensitivity = 0.8"),
    ],
)
def test_options_of_evaluation_that_do_nothing_for_a_kind_of_task_are_refused(path, kind, option):
    path.write_text(f"{CONFIG}\n[evaluation]\n{option}\n")
    options = load_config(path).evaluation
    options.check("multilabel")
    key = option.partition(" ")[0]
    with pytest.raises(ConfigError, match=rf"evaluation\.{key} = .* kind '{kind}'; expected it un"):
        options.check(kind)
    if key == "calibration":
        with pytest.raises(ConfigError, match="unset, or 'none'"):
            options.check(kind)


def test_nothing_is_calibrated_in_a_regression_and_its_options_may_say_so(path):
    path.write_text(f"{CONFIG}\n[evaluation]\ncalibration = 'none'\n")
    load_config(path).evaluation.check("regression")


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "regression", "detection"])
def test_the_defaults_of_evaluation_go_with_every_kind_of_task(path, kind):
    path.write_text(config_text(load_config(path)))  # as a run folder keeps them
    load_config(path).evaluation.check(kind)

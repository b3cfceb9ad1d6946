"""The typed requests that a Node serves, and how each travels in a Flower message.

A request is data only: settings are validated by the Node against its own installed classes;
no code, pickle or path comes from the wire.

=============  =================  ==========================================
request        message type       reply
=============  =================  ==========================================
describe       query.describe     `SiteDescription`
select         query.select       histograms (array ``histograms``)
train          train              trainable state, ``num-examples``
evaluate       evaluate           score histograms (array ``histograms``), after the last round
                                  [2 + G, ...]: of test patients, of calibration patients,
                                  and of G subgroups of the test patients
deliver        query.deliver      nothing but the acknowledgement
secagg         query.secagg       what one exchange of secure aggregation asks for
=============  =================  ==========================================

Beside that, a good reply carries a `Receipt` of the site's ledger, and a request the newest one
that the coordinator has of the site.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import Field

from medfusion.data.selection_options import SelectionOptions
from medfusion.errors import (
    ConfigError,
    DataError,
    FederationError,
    MedFusionError,
    StaleModelError,
    WaitingError,
)
from medfusion.federation.authority import content_to_sign
from medfusion.federation.signatures import PublicKey
from medfusion.federation.versions import check_coordinator, own_version
from medfusion.models.options import ModelOptions
from medfusion.options import Options
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.privacy.options import PrivacyOptions
from medfusion.strategies.rule_names import SiteRuleName
from medfusion.training.options import TrainingOptions
from medfusion.training.personalisation_options import PersonalisationOptions
from medfusion.transport.compression_options import CompressionOptions
from medfusion.transport.secagg_options import SecureAggregationOptions

RequestKind = Literal["describe", "select", "train", "evaluate", "deliver", "secagg"]

MESSAGE_TYPES: dict[RequestKind, str] = {
    "describe": "query.describe",
    "select": "query.select",
    "train": "train",
    "evaluate": "evaluate",
    "deliver": "query.deliver",
    "secagg": "query.secagg",
}

# Names of the records in a message: Flower's strategies expect the first three.
ARRAYS, CONFIG, METRICS, REPLY = "arrays", "config", "metrics", "reply"
RECEIPT = "receipt"
GUIDE = "guide"  # arrays that a strategy sends beside the model
SECAGG, MASKED = "secagg", "masked"
REQUEST_KEY, ROUND_KEY, MU_KEY = "request", "server-round", "proximal-mu"
COUNTED_KEY = "counted-round"
MODEL_KEY, BASE_KEY = "model-sha256", "base-sha256"
WEIGHT_KEY, LOSS_KEY = "num-examples", "train_loss"
CALIBRATION_KEY = "calibration"  # in the card that a model is delivered with
_HISTOGRAMS = "histograms"


class RunSettings(Options):
    """What a run asks of every site; the same in each of its requests.

    ``site_rule`` names what a site does in its steps for the strategy, and remembers for it;
    ``subgroups`` are what the last release counts apart, as in `medfusion.evaluation.subgroups`.
    """

    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    seed: int
    rounds: int = Field(ge=1)
    evaluations: int = Field(ge=1)
    task_sha256: str
    model: Annotated[ModelOptions, Field(discriminator="name")]
    selection: SelectionOptions
    training: TrainingOptions
    privacy: PrivacyOptions
    report_loss: bool = False
    site_rule: SiteRuleName = "none"
    secure_aggregation: SecureAggregationOptions | None = None
    compression: CompressionOptions = CompressionOptions()
    personalisation: PersonalisationOptions = PersonalisationOptions()
    subgroups: tuple[str, ...] = ()


class Request(Options):
    """A request without its arrays; ``selection`` and ``card`` are plain JSON data.

    ``frozen_sha256`` is the digest of the weights that do not travel: every side must hold the
    same ones. ``signature`` is the coordinator's, of `run_content`; ``version`` that of its
    MedFusion.
    """

    version: str = Field(default_factory=own_version)
    settings: RunSettings | None = None
    signature: str | None = None
    frozen_sha256: str | None = None
    selection: dict[str, Any] | None = None
    card: dict[str, Any] | None = None


class SiteDescription(Options):
    """The public facts of a site.

    ``label_coverage`` holds, for each label of the task in order, the declared share of its
    patients for whom the label is known; empty if all are. ``signer`` is the site's lasting public
    key, with which it signs in masked rounds.
    """

    site: str
    task: dict[str, Any]
    patients_public: int
    label_coverage: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    delta: float
    max_epsilon: float
    signer: PublicKey


@dataclass(frozen=True)
class Received:
    """A request as it reached the Node; ``signed`` are its settings as they travelled.

    ``guide`` is what the strategy sends beside the model; ``counted`` the last round whose reply
    of this site counted, 0 for none; ``secagg`` what secure aggregation tells and asks. With
    ``[compression.down]`` ``model_sha256`` names the model that the request is about, and
    ``base_sha256`` the one that the arrays lead on from; None: they are the model.
    """

    request: Request
    round: int
    proximal_mu: float
    arrays: ArrayRecord | None
    receipt: Receipt | None = None
    signed: dict[str, Any] | None = None
    guide: ArrayRecord | None = None
    counted: int = 0
    secagg: dict[str, Any] | None = None
    model_sha256: str | None = None
    base_sha256: str | None = None

    @classmethod
    def parse(cls, content: RecordDict) -> Self:
        """Read a message's content.

        Raises
        ------
        FederationError
            If it is no request, or the coordinator's version does not go with this one.
        ConfigError
            On anything unknown.
        """
        try:
            config = content.config_records[CONFIG]
            data = json.loads(str(config[REQUEST_KEY]))
            version = data.get("version")
            number = int(str(config.get(ROUND_KEY, 0)))
            proximal_mu = float(str(config.get(MU_KEY, 0.0)))
            counted = int(str(config.get(COUNTED_KEY, 0)))
            told = content.config_records.get(SECAGG)
            named, base = (config.get(key) for key in (MODEL_KEY, BASE_KEY))
            secagg = None if told is None else dict(json.loads(str(told["json"])))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            raise FederationError(
                "the request cannot be read; are all sides on one version?"
            ) from None
        # First: a newer coordinator may send what would be refused for other reasons.
        check_coordinator(version, own=own_version())
        return cls(
            request=Request.parse(data, where="request"),
            round=number,
            proximal_mu=proximal_mu,
            arrays=content.array_records.get(ARRAYS),
            receipt=read_receipt(content),
            signed=data.get("settings"),
            guide=content.array_records.get(GUIDE),
            counted=counted,
            secagg=secagg,
            model_sha256=None if named is None else str(named),
            base_sha256=None if base is None else str(base),
        )


def run_content(federation: str, settings: RunSettings) -> bytes:
    """Return what the coordinator of a federation signs, for the purpose "run", to start a run."""
    return content_to_sign(federation, settings.model_dump(mode="json"))


def request_config(request: Request) -> ConfigRecord:
    """Return the config record that carries ``request``."""
    return ConfigRecord({REQUEST_KEY: request.model_dump_json()})


def request_content(request: Request, arrays: ArrayRecord | None = None) -> RecordDict:
    """Return the content of a message that carries ``request``."""
    content = RecordDict({CONFIG: request_config(request)})
    if arrays is not None:
        content[ARRAYS] = arrays
    return content


def secagg_record(data: dict[str, Any]) -> dict[str, ConfigRecord]:
    """Return the record, by its name, that carries an exchange of secure aggregation."""
    return {SECAGG: ConfigRecord({"json": json.dumps(data)})}


def reply_with(data: dict[str, Any]) -> RecordDict:
    """Return a reply that carries JSON data only."""
    return RecordDict({REPLY: ConfigRecord({"json": json.dumps(data)})})


def read_reply(content: RecordDict) -> dict[str, Any]:
    """Return the JSON data of a reply."""
    data = json.loads(str(content.config_records[REPLY]["json"]))
    assert isinstance(data, dict)
    return data


def histogram_reply(histograms: NDArray[Any], weight: int) -> RecordDict:
    """Return a reply that carries one array of histograms."""
    return RecordDict(
        {
            ARRAYS: ArrayRecord({_HISTOGRAMS: Array(histograms)}),
            METRICS: MetricRecord({WEIGHT_KEY: weight}),
        }
    )


def read_histograms(content: RecordDict) -> NDArray[Any]:
    """Return the array of a histogram reply."""
    return content.array_records[ARRAYS][_HISTOGRAMS].numpy()


def receipt_record(receipt: Receipt) -> ConfigRecord:
    """Return the record, called `RECEIPT`, in which a receipt travels."""
    return ConfigRecord(receipt.model_dump())


def read_receipt(content: RecordDict) -> Receipt | None:
    """Return the receipt in a message; raises `ConfigError` if it is none."""
    record = content.config_records.get(RECEIPT)
    return None if record is None else Receipt.parse(dict(record), where="receipt")


_ERRORS: dict[str, type[MedFusionError]] = {
    # The first one that fits names an error: the special before the general.
    error.__name__: error
    for error in (ConfigError, DataError, WaitingError, StaleModelError, FederationError)
}


def error_reply(error: MedFusionError) -> RecordDict:
    """Return a reply that carries an error; our messages hold no patient data."""
    name = next((name for name, cls in _ERRORS.items() if isinstance(error, cls)), "DataError")
    return RecordDict({REPLY: ConfigRecord({"error": name, "message": str(error)})})


def read_error(content: RecordDict) -> MedFusionError | None:
    """Return the error that a reply carries, if it carries one."""
    record = content.config_records.get(REPLY)
    if record is None or "error" not in record:
        return None
    return _ERRORS.get(str(record["error"]), FederationError)(str(record["message"]))


assert set(MESSAGE_TYPES) == set(get_args(RequestKind))

"""The hospitals of the synthetic cohort: how they differ in patients, scanners and tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from medfusion.data.cohorts.synthetic_images import Scanner

_NAMES = ("alder", "birch", "cedar", "dogwood", "elm", "fir", "hazel", "juniper", "larch")


@dataclass(frozen=True, kw_only=True)
class Recoding:
    """How a hospital's table says one column: its name, and its unit or codes.

    ``codes`` maps the task's value to the local one. A local number is
    ``(number - offset) / scale``, so that `scale` and `offset` lead back to the task's unit.
    """

    name: str
    codes: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """One hospital.

    Attributes
    ----------
    bias
        Added to the intercepts of the labels' logits: more or fewer patients are ill.
    absent
        Task columns that the table does not have at all.
    missing_images, missing_features, unknown_labels
        Share of cells left blank.
    table, delimiter, decimal
        File of the studies and its form.
    """

    name: str
    bias: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    scanner: Scanner = field(default_factory=Scanner)
    absent: tuple[str, ...] = ()
    missing_images: float = 0.0
    missing_features: float = 0.0
    unknown_labels: float = 0.0
    table: str = "studies.csv"
    delimiter: str = ","
    decimal: str = "."
    recodings: Mapping[str, Recoding] = field(default_factory=dict)


_YES_NO = {"1": "ja", "0": "nein"}

_PROFILES = (
    Hospital(name="", missing_features=0.02, unknown_labels=0.02),
    Hospital(
        name="",
        bias=(0.5, 0.3, 0.3, 0.2, 0.4),
        scanner=Scanner(brightness=0.10, contrast=0.85, noise=0.04, blur=1),
        absent=("notes",),
        missing_features=0.02,
        unknown_labels=0.04,
        delimiter=";",
        decimal=",",
        recodings={
            "patient_id": Recoding(name="patientennummer"),
            "study_id": Recoding(name="untersuchung"),
            "image": Recoding(name="bild"),
            "age": Recoding(name="alter"),
            "sex": Recoding(name="geschlecht", codes={"F": "w", "M": "m"}),
            "smoker": Recoding(name="raucher", codes=_YES_NO),
            "temperature": Recoding(name="temperatur"),
            "crp": Recoding(name="CRP (mg/dl)", scale=10.0),
            "pneumonia": Recoding(name="pneumonie", codes=_YES_NO),
            "heart_failure": Recoding(name="herzinsuffizienz", codes=_YES_NO),
        },
    ),
    Hospital(
        name="",
        bias=(-0.4, -0.2, 0.0, -0.3, 0.2),
        scanner=Scanner(bits=16, sharpness=1.5, brightness=-0.10, contrast=1.15, noise=0.02),
        absent=("effusion",),
        missing_images=0.06,
        missing_features=0.04,
        unknown_labels=0.02,
        recodings={
            "sex": Recoding(name="gender", codes={"F": "Female", "M": "Male"}),
            "temperature": Recoding(name="temp_f", scale=5 / 9, offset=-160 / 9),
            "albumin": Recoding(name="albumin_g_dl", scale=10.0),
            "haematocrit": Recoding(name="hematocrit"),
            "notes": Recoding(name="clinical_history"),
        },
    ),
    Hospital(
        name="",
        bias=(0.1, 0.4, -0.3, 0.3, -0.2),
        scanner=Scanner(suffix=".jpg", sharpness=1.25, contrast=0.70, noise=0.04),
        missing_images=0.03,
        missing_features=0.08,
        unknown_labels=0.03,
        table="studies.parquet",
        recodings={
            "admission": Recoding(
                name="route", codes={"clinic": "1", "ambulance": "2", "transfer": "3"}
            ),
            "haematocrit": Recoding(name="hct_fraction", scale=100.0),
        },
    ),
)


def hospital(index: int) -> Hospital:
    """Return the hospital of an index; the same one in a cohort of any size.

    The first four are the ones that the profiles describe. Later ones reuse their tables,
    with another prevalence and a slightly different scanner.
    """
    round_, position = divmod(index, len(_NAMES))
    name = _NAMES[position] + (f"-{round_ + 1}" if round_ else "")
    profile = _PROFILES[index % len(_PROFILES)]
    turn = index // len(_PROFILES) % 3
    return replace(
        profile,
        name=name,
        bias=profile.bias[turn:] + profile.bias[:turn],
        scanner=replace(profile.scanner, brightness=profile.scanner.brightness + 0.04 * turn),
    )

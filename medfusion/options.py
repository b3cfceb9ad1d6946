"""Frozen options that refuse unknown keys, and the one reader of TOML files."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from medfusion.errors import ConfigError, did_you_mean

FileSchema = Annotated[Literal[1], Field(alias="schema")]
"""The version of a file's layout: key ``schema``, 1 where it is not written."""


class Options(BaseModel):
    """Base of every options class: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True
    )

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, where: str) -> Self:
        """Validate ``data``; ``where`` (file and section) heads the message on failure.

        Raises
        ------
        ConfigError
            Naming each offending key, what was expected, and the nearest valid name.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected names with values, found {type(data).__name__}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            lines = [_explain(cls, detail) for detail in error.errors()]
            raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def asked(options: Options, *keys: str) -> list[str]:
    """Return which of ``keys`` have another than their usual value.

    A resolved config names every key: what has its usual value was not asked for.
    """
    usual = type(options).model_fields
    return [key for key in keys if getattr(options, key) != usual[key].default]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; one that is missing, unreadable or no TOML becomes a `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:  # a folder, a name that is too long, no permission
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except ValueError:  # of the path, which may come from another file
        raise ConfigError(f"{str(path)!r}: a path cannot hold a zero byte") from None


def _explain(cls: type[BaseModel], detail: ErrorDetails) -> str:
    """One validation error in words."""
    names, owner = _walk(cls, [str(part) for part in detail["loc"]])
    key = ".".join(names)
    if detail["type"] == "extra_forbidden":
        fields = owner.model_fields.items() if owner else ()
        known = [field.alias or name for name, field in fields]
        return f"unknown key {key!r}" + did_you_mean(names[-1], known)
    if detail["type"] == "missing":
        return f"missing key {key!r}"
    if detail["type"] == "union_tag_not_found":
        return f"missing key '{key}.{str(detail['ctx']['discriminator']).strip(chr(39))}'"
    if detail["type"] == "union_tag_invalid":
        context = detail["ctx"]
        tag = str(context["tag"])
        expected = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        discriminator = str(context["discriminator"]).strip("'")
        return (
            f"{key}.{discriminator} = {tag!r}: expected one of {', '.join(expected)}"
            + did_you_mean(tag, expected)
        )
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not key:
        return message
    shown = detail["input"]
    if isinstance(shown, (str, int, float, bool)) or shown is None:
        return f"{key} = {shown!r}: {message}"
    return f"{key}: {message}"


def _walk(cls: type[BaseModel], location: list[str]) -> tuple[list[str], type[BaseModel] | None]:
    """Follow an error's location to the model that holds its last key.

    Returns the keys as the user wrote them, without the tags that pydantic adds for the
    members of a union, and that model (None where the location does not lead to one).
    """
    names: list[str] = []
    candidates: list[type[BaseModel]] = [cls]
    owner: type[BaseModel] | None = cls
    for part in location:
        tagged = [model for model in candidates if len(candidates) > 1 and _has_tag(model, part)]
        if tagged:
            candidates = tagged
            continue
        names.append(part)
        owner = candidates[0] if len(candidates) == 1 else None
        field = owner.model_fields.get(part) if owner else None
        if field is not None:
            candidates = _models_in(field.annotation)
    return names, owner


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    """Whether a member of a discriminated union answers to ``tag``."""
    return any(
        tag in getattr(field.annotation, "__args__", ()) for field in model.model_fields.values()
    )


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model class inside a (possibly generic) annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]

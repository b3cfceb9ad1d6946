"""What operators copy works: commands parse, paths exist, messages are those of the code."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from packaging.requirements import Requirement

from medfusion.cli.main import _cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RUNBOOK, README = DEPLOY / "RUNBOOK.md", ROOT / "README.md"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))


def code_lines(document: Path) -> list[str]:
    """Return the lines of code blocks, fenced or indented."""
    lines, fenced = [], False
    for line in document.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def whole_commands() -> Iterator[tuple[str, str]]:
    for document in (RUNBOOK, README):
        for line in code_lines(document):
            if found := re.match(r"(?:\S*/)?medfusion (.*)", line):
                yield document.name, found[1]
    for unit in UNITS:
        for found in re.finditer(r"^Exec\w+=\S*/medfusion (.*)$", unit.read_text(), re.M):
            yield unit.name, found[1]
    for name, service in compose()["services"].items():
        yield f"compose.yaml {name}", service["command"]


def mentioned_commands() -> Iterator[tuple[str, str]]:
    """Commands within a sentence: their names and options exist, though arguments are left out."""
    for path in (RUNBOOK, README, *UNITS, DEPLOY / "compose.yaml", *DOCKERFILES):
        text = re.sub(r"^```.*?^```|^    .*?$", "", path.read_text(), flags=re.M | re.S)
        for found in re.finditer(r"`[^`]*\bmedfusion ([a-z][^`]*)`", text):
            yield path.name, " ".join(found[1].split())


def parse(command: str, *, whole: bool) -> None:
    """Parse as the command line would; raises `click.UsageError`."""
    arguments = shlex.split(command, comments=True)
    found: Any = typer.main.get_command(_cli)
    context = click.Context(found, info_name="medfusion")
    while isinstance(found, click.Group):
        _, next_found, arguments = found.resolve_command(context, arguments)
        assert next_found is not None
        found, context = next_found, click.Context(next_found, parent=context)
    try:
        found.make_context(found.name, arguments, parent=context.parent)
    except click.MissingParameter:
        if whole:
            raise


def test_commands_parse() -> None:
    commands = [*whole_commands()]
    assert len(commands) > 20
    for where, command in commands:
        try:
            parse(command, whole=True)
        except click.UsageError as error:
            pytest.fail(f"{where}: medfusion {command}: {error.format_message()}")


def test_mentioned_commands_exist() -> None:
    commands = [*mentioned_commands()]
    assert len(commands) > 5
    for where, command in commands:
        try:
            parse(command, whole=False)
        except click.UsageError as error:
            pytest.fail(f"{where}: medfusion {command}: {error.format_message()}")


@pytest.mark.parametrize("wrong", ["site doctr KIT", "site doctor KIT --sit S", "site start KIT"])
def test_the_parser_refuses_what_is_wrong(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parse(wrong, whole=True)


def test_paths_exist() -> None:
    named = [
        (path.name, found[1])
        for path in (RUNBOOK, README, *UNITS, *DOCKERFILES, DEPLOY / "compose.yaml")
        for found in re.finditer(
            r"(?<![\w/.])((?:deploy|tests|medfusion|server|client)/[\w./-]*\w)", path.read_text()
        )
        if not found[1].startswith("server/nodes")  # of a federation's folder
    ]
    assert len(named) > 10
    for where, path in named:
        assert (ROOT / path).exists(), f"{where}: {path}"


def test_images_copy_what_is_there_and_take_pinned_bases() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    for path in DOCKERFILES:
        text = path.read_text()
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
            for source in line.split():
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored
        bases = re.findall(r"^FROM (\S+)", text, re.M)
        assert bases
        assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases)
        assert re.findall(r"^USER (\S+)", text, re.M) == ["10001:10001"]


def test_compose_publishes_the_fleet_port_alone() -> None:
    services = compose()["services"]
    for service in services.values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["cap_drop"] == ["ALL"]
    assert [port.split(":")[-1] for port in services["server"]["ports"]] == ["9092"]
    assert "ports" not in services["hospital"]
    mounts = {v["target"]: v for v in services["hospital"]["volumes"] if isinstance(v, dict)}
    assert mounts["/site"]["read_only"]


def test_constraints_satisfy_what_the_package_asks_for() -> None:
    lines = (DEPLOY / "constraints.txt").read_text().split()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for one in map(Requirement, project["dependencies"]):
        name = one.name.lower().replace("_", "-")
        assert pinned[name] in one.specifier, name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_understood(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/medfusion/bin/medfusion", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not complaints, complaints


def test_the_runbook_quotes_messages_of_the_code() -> None:
    source = " ".join(
        _source(path)
        for name in ("medfusion", "server", "client")
        for path in (ROOT / name).rglob("*.py")
    )
    rows = re.findall(r"^\| (`.*?) \|", RUNBOOK.read_text(), re.M)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 40
    for message in quoted:
        for part in re.split(r"\.\.\.|\b[NM]\b|\b\d+\b|'[^']*'|[\[\]():]", message):
            words = part.strip(" :.,=()")
            assert len(words) < 8 or words in source, f"{message!r}: {words!r}"


def _source(path: Path) -> str:
    """Return code with the parts of a text that is broken over lines joined."""
    text = re.sub(r"""["']\s*\n\s*[rf]{0,2}["']""", "", path.read_text())
    return re.sub(r"\{[^{}\n]*\}", "", text)

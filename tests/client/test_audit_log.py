import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.node.audit_log import HEAD, LOG, AuditLog
from medfusion.errors import AuditLogError


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path)
    for number in range(5):
        log.append("answered", "run-a", {"round": number})
    return log


def lines(folder: Path) -> list[bytes]:
    return (folder / LOG).read_bytes().splitlines(keepends=True)


def test_events_are_chained_and_read_back(tmp_path: Path, log: AuditLog) -> None:
    report = log.verify()
    assert report.broken is None
    assert not report.torn
    assert [event.details["round"] for event in report.events] == [0, 1, 2, 3, 4]
    assert [e.previous for e in report.events[1:]] == [e.hash for e in report.events[:-1]]
    assert (tmp_path / LOG).stat().st_mode & 0o777 == 0o600
    head = json.loads((tmp_path / HEAD).read_text())
    assert head == {"schema": 1, "count": 5, "hash": report.events[-1].hash}


def test_a_site_without_events_has_a_sound_log(tmp_path: Path) -> None:
    assert AuditLog(tmp_path).verify().events == ()


@pytest.mark.parametrize("damage", ["edit", "space", "remove", "insert", "swap", "rehash"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_change_is_found_at_its_line(
    tmp_path: Path, log: AuditLog, damage: str, place: int
) -> None:
    found = lines(tmp_path)
    expected = place + 1
    if damage == "edit":
        found[place] = found[place].replace(b"run-a", b"run-b")
    elif damage == "space":
        found[place] = found[place].replace(b": ", b":  ", 1)
    elif damage == "remove":
        del found[place]
    elif damage == "insert":
        found.insert(place, found[0] if place else found[1])
    elif damage == "swap":
        other = place - 1 if place else 1
        found[place], found[other] = found[other], found[place]
        expected = min(place, other) + 1
    else:  # an edited line with a hash that fits; the next line, or the head, does not
        other = AuditLog(tmp_path / "other")
        (tmp_path / "other").mkdir()
        for number in range(place + 1):
            other.append("answered", "run-a", {"round": number if number < place else 99})
        times = [json.loads(line)["at"] for line in found]
        if {json.loads(line)["at"] for line in lines(tmp_path / "other")} != set(times[:1]):
            pytest.skip("the clock's second changed")
        found[place] = lines(tmp_path / "other")[place]
        expected = min(place + 2, 5)
    (tmp_path / LOG).write_bytes(b"".join(found))
    report = log.verify()
    assert report.broken == expected
    assert len(report.events) == expected - 1
    with pytest.raises(AuditLogError, match=f"line {expected} "):
        log.require_sound()


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_removed_last_lines_are_missed(tmp_path: Path, log: AuditLog, kept: int) -> None:
    (tmp_path / LOG).write_bytes(b"".join(lines(tmp_path)[:kept]))
    report = log.verify()
    assert report.broken == kept + 1
    assert "the head knows 5 lines" in report.reason
    with pytest.raises(AuditLogError, match="not as it was left"):
        log.append("answered", None, {})


def test_a_log_that_is_gone_is_missed(tmp_path: Path, log: AuditLog) -> None:
    (tmp_path / LOG).unlink()
    assert log.verify().broken == 1
    with pytest.raises(AuditLogError, match="not as it was left"):
        log.append("answered", None, {})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_write_that_was_cut_anywhere_costs_nothing_before_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    log = AuditLog(folder)
    before = data.draw(st.integers(0, 2))
    for number in range(before):
        log.append("answered", "run", {"round": number})
    head = (folder / HEAD).read_bytes() if before else None
    log.append("answered", "run", {"round": 9})
    last = len(lines(folder)[-1])
    cut = data.draw(st.integers(0, last))
    content = (folder / LOG).read_bytes()
    (folder / LOG).write_bytes(content[: len(content) - cut])
    if head is None:  # the head is written after the line
        (folder / HEAD).unlink()
    else:
        (folder / HEAD).write_bytes(head)
    torn = 0 < cut < last
    assert log.verify().broken is None
    assert log.verify().torn is torn
    log.append("started", None, {})
    report = log.verify()
    assert report.broken is None
    assert not report.torn
    rounds = [event.details["round"] for event in report.events if event.event == "answered"]
    assert rounds == [*range(before), *([9] if cut == 0 else [])]
    repaired = [event.details for event in report.events if event.event == "repaired"]
    assert repaired == ([{"bytes": last - cut}] if torn else [])
    assert report.events[-1].event == "started"


def test_a_block_of_zeros_that_a_power_cut_left_is_repaired(tmp_path: Path, log: AuditLog) -> None:
    with (tmp_path / LOG).open("ab") as file:
        file.write(bytes(40) + b"\n")
    assert log.verify().torn
    log.append("started", None, {})
    assert [e.event for e in log.verify().events[5:]] == ["repaired", "started"]


def test_an_acknowledged_line_is_never_taken_for_a_torn_one(tmp_path: Path, log: AuditLog) -> None:
    for damaged in ((tmp_path / LOG).read_bytes()[:-1], (tmp_path / LOG).read_bytes()[:-9]):
        (tmp_path / LOG).write_bytes(damaged)
        assert log.verify().broken == 5
        with pytest.raises(AuditLogError, match="not as it was left"):
            log.append("started", None, {})
        assert (tmp_path / LOG).read_bytes() == damaged


def _append(folder: Path, number: int) -> None:
    AuditLog(folder).append("answered", None, {"round": number})


def test_two_processes_append_in_turn(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_append, [tmp_path] * 24, range(24)))
    report = AuditLog(tmp_path).verify()
    assert report.broken is None
    assert sorted(event.details["round"] for event in report.events) == list(range(24))


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path, log: AuditLog) -> None:
    (tmp_path / LOG).rename(tmp_path / "elsewhere")
    (tmp_path / LOG).mkdir()
    with pytest.raises(AuditLogError, match="nothing leaves the site"):
        log.append("started", None, {})


def test_an_event_is_on_the_disk_before_the_head_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    order: list[str] = []
    genuine = os.fsync

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    AuditLog(tmp_path).append("started", None, {})
    assert order[:2] == [LOG, tmp_path.name]
    assert order[2].startswith(f".{HEAD}")

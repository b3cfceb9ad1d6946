import grp
import os
import re
import signal
import socket as sockets
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from kits import write_kits
from tabular_cohort import write_ward

from client.app import Handler, node_at
from client.node.service import NodeService, run, start_service
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.errors import ConfigError, DataError, FederationError, UsageError
from medfusion.transport.packing import from_bytes, pack, packed, to_bytes
from medfusion.transport.requests import (
    Request,
    error_reply,
    read_error,
    read_reply,
    reply_with,
    request_content,
)

Serve = Callable[..., Handler]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sock"


@pytest.fixture
def serve(path: Path) -> Iterator[Serve]:
    """Start services of handlers at ``path``; return what a relay calls them with."""
    servers: list[grpc.Server] = []

    def start(handle: Handler, **options: object) -> Handler:
        servers.append(start_service(NodeService(handle), path, **options))
        return relay_to(path)

    yield start
    for server in servers:
        server.stop(0).wait()


def relay_to(path: Path) -> Handler:
    return node_at(str(path))


def echo(kind: str, content: RecordDict) -> RecordDict:
    return RecordDict({**content, "kind": ConfigRecord({"kind": kind})})


def test_a_request_of_any_size_reaches_the_node_and_comes_back(serve: Serve) -> None:
    weights = np.random.default_rng(0).normal(size=1_200_000)  # 9.6 MB; gRPC's own limit is 4
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)})})
    reply = serve(echo)("train", content)
    assert reply.config_records["kind"]["kind"] == "train"
    np.testing.assert_array_equal(reply.array_records["arrays"]["w"].numpy(), weights)


def test_what_is_asked_packed_is_answered_packed(serve: Serve) -> None:
    content = RecordDict({"config": ConfigRecord({"number": 3})})
    answer = packed(serve(echo)("train", pack(to_bytes(content))))
    assert answer is not None
    assert from_bytes(answer) == echo("train", content)


def test_an_error_of_the_node_arrives_as_a_reply(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    call = serve(lambda kind, content: error_reply(FederationError("not today")))
    error = read_error(call("train", RecordDict()))
    assert isinstance(error, FederationError)
    assert "'train' failed: not today" in caplog.text


def test_one_request_at_a_time(serve: Serve) -> None:
    under_way = most = 0

    def handle(kind: str, content: RecordDict) -> RecordDict:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.05)
        under_way -= 1
        return RecordDict()

    call = serve(handle)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: call("train", RecordDict()), range(8)))
    assert most == 1


def test_the_thread_that_serves_has_the_sites_number_of_threads(serve: Serve) -> None:
    asked = torch.get_num_threads() + 1
    call = serve(lambda *_: reply_with({"threads": torch.get_num_threads()}), threads=asked)
    assert read_reply(call("train", RecordDict())) == {"threads": asked}


def test_damaged_and_foreign_calls_are_refused(serve: Serve, path: Path) -> None:
    asked: list[str] = []

    def handle(kind: str, content: RecordDict) -> RecordDict:
        asked.append(kind)
        return RecordDict()

    serve(handle)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        for method, data, code in (
            ("/medfusion.Node/train", b"\xff secret", grpc.StatusCode.INVALID_ARGUMENT),
            ("/other.Service/train", b"", grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(data)
            assert caught.value.code() == code
            assert "secret" not in caught.value.details()
    assert not asked


def test_the_socket_is_the_owners_alone(serve: Serve, path: Path) -> None:
    serve(echo)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_group_may_be_let_in(serve: Serve, path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    serve(echo, group=group.gr_name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_gid == group.gr_gid


def test_a_socket_that_nobody_serves_is_replaced(serve: Serve, path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    assert serve(echo)("train", RecordDict())


def test_a_socket_in_use_stays_with_its_service(serve: Serve, path: Path) -> None:
    call = serve(lambda *_: reply_with({"first": True}))
    with pytest.raises(UsageError, match="another service listens there"):
        serve(echo)
    assert read_reply(call("train", RecordDict())) == {"first": True}


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("file", {}, "not a socket"),
        ("none/node.sock", {}, "folder that this user may write to"),
        ("x" * 108, {}, "at most 107 bytes"),
        ("node.sock", {"group": "no-such-group"}, "no such group"),
    ],
)
def test_a_path_or_group_that_cannot_serve_is_refused(
    tmp_path: Path, place: str, options: dict[str, str], message: str
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match=message):
        start_service(NodeService(echo), tmp_path / place, **options)
    assert (tmp_path / "file").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_relay_gives_up_on_an_absent_node(path: Path) -> None:
    with pytest.raises(ConnectionError, match="no Node listens"):
        node_at(str(path), patience=0.2)("train", RecordDict())


def test_the_relay_notices_a_node_that_ends_during_a_call(path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def handle(kind: str, content: RecordDict) -> RecordDict:
        begun.set()
        go.wait(10)
        return RecordDict()

    server = start_service(NodeService(handle), path)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(relay_to(path), "train", RecordDict())
        assert begun.wait(10)
        server.stop(0).wait()
        with pytest.raises(ConnectionError, match="the Node did not answer"):
            reply.result(10)
        go.set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cohort = tmp_path_factory.mktemp("service") / "cohort"
    write_cohort(cohort, sites=1, patients=20, seed=0)
    (site,) = (cohort / "sites").iterdir()
    return site


@pytest.fixture(scope="module")
def kit(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = site.parents[1] / "task.toml"
    return write_kits(tmp_path_factory.mktemp("kits"), task, [site.name]) / "sites" / site.name


def command(site: Path, kit: Path, path: Path) -> list[str]:
    module = ["-P", "-m", "client.node.service"]
    return [sys.executable, *module, str(site), "--kit", str(kit), "--socket", str(path)]


def test_the_service_serves_its_site_alone_until_sigterm(
    site: Path, kit: Path, path: Path, tmp_path: Path
) -> None:
    served = command(site, kit, path)
    service = subprocess.Popen(served, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        reply = relay_to(path)("describe", request_content(Request()))
        again = command(site, kit, tmp_path / "second.sock")
        second = subprocess.run(again, capture_output=True, text=True, timeout=60)
    finally:
        service.send_signal(signal.SIGTERM)
        _, log = service.communicate(timeout=30)
    assert read_reply(reply)["site"] == site.name
    assert second.returncode == 1
    assert second.stderr.startswith("error: ")
    assert "another Node serves this site" in second.stderr
    assert service.returncode == 0
    assert not path.exists()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO ", line) for line in log.splitlines()
    )
    assert "'describe'" in log


def test_a_site_without_positives_is_refused_at_the_start(tmp_path: Path, path: Path) -> None:
    site = write_ward(tmp_path / "ward").parent / "sites" / "north"
    table = site / "studies.csv"
    header, *rows = table.read_text().splitlines()
    negative = [row.rsplit(",", 2)[0] + ",0,0" for row in rows]
    table.write_text("\n".join([header, *negative]) + "\n")
    with pytest.raises(DataError, match="at least one positive"):
        run(site, path, kit=tmp_path / "kit", group=None)
    assert not path.exists()


def test_a_kit_of_another_task_is_refused(site: Path, tmp_path: Path, path: Path) -> None:
    other = write_ward(tmp_path / "ward").parent / "task.toml"
    kits = write_kits(tmp_path / "federation", other, ["north"])
    with pytest.raises(ConfigError, match="another task"):
        run(site, path, kit=kits / "sites" / "north", group=None)


_SLOW = """
import sys, time
import client.node.service as service
service._GRACE_SECONDS = {grace}
def slow(node, kind, content):
    print("begun", flush=True)
    time.sleep({seconds})
    return content
service.Node.handle = slow
sys.exit(service.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("grace", "seconds", "code"), [(20, 0.5, 0), (0.2, 60, 1)])
def test_the_last_request_has_a_while_to_finish(
    site: Path, kit: Path, path: Path, grace: float, seconds: float, code: int
) -> None:
    script = _SLOW.format(grace=grace, seconds=seconds)
    service = subprocess.Popen(
        [sys.executable, "-c", script, *command(site, kit, path)[4:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(relay_to(path), "train", RecordDict({"a": ConfigRecord({"b": 1})}))
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == "begun\n"
        finally:
            service.send_signal(signal.SIGINT)
            _, log = service.communicate(timeout=30)
        if code:
            with pytest.raises(ConnectionError):
                reply.result(10)
        else:
            assert reply.result(10).config_records["a"]["b"] == 1
    assert service.returncode == code
    assert ("ended before the last request was finished" in log) == bool(code)
    assert not path.exists()

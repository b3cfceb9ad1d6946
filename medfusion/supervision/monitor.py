"""How the supervised programs are, over HTTP on the loopback: ``/healthz`` and ``/metrics``."""

import threading
from collections.abc import Callable, Iterable, Iterator
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from medfusion.errors import UsageError
from medfusion.supervision.supervisor import Supervisor

Figures = Callable[[], dict[str, float]]
"""What else is to be told: numbers by name, taken anew for each request."""


class Monitor(Collector):
    """Serves ``/healthz`` (200 if all programs run steadily, else 503) and ``/metrics``.

    Parameters
    ----------
    figures
        Further gauges, named ``medfusion_...`` once told.
    """

    def __init__(self, supervisor: Supervisor, figures: Figures) -> None:
        self._supervisor = supervisor
        self._figures = figures
        registry = CollectorRegistry()
        registry.register(self)
        self._metrics = make_wsgi_app(registry)

    def collect(self) -> Iterator[Metric]:
        """Give all gauges; called by Prometheus' library."""
        up = GaugeMetricFamily("medfusion_program_up", "1 if it runs", labels=["program"])
        again = GaugeMetricFamily(
            "medfusion_program_restarts", "Times it was started again", labels=["program"]
        )
        for name, runs in self._supervisor.up.items():
            up.add_metric([name], float(runs))
            again.add_metric([name], self._supervisor.restarts[name])
        yield up
        yield again
        for name, value in self._figures().items():
            yield GaugeMetricFamily(f"medfusion_{name}", name.replace("_", " "), value=value)

    def start(self, port: int) -> int:
        """Listen on the loopback, in a thread that ends with the process; return the port.

        Raises
        ------
        UsageError
            If the port is taken.
        """
        try:
            server = make_server("127.0.0.1", port, self._answer, WSGIServer, handler_class=_Silent)
        except OSError as error:
            raise UsageError(f"--monitor-port {port}: {error.strerror}; choose another") from None
        threading.Thread(target=server.serve_forever, daemon=True, name="monitor").start()
        return int(server.server_port)

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        down = [name for name, steady in self._supervisor.steady.items() if not steady]
        if path != "/healthz":
            status, text = "404 Not Found", "expected /healthz or /metrics\n"
        elif down:
            status, text = (
                "503 Service Unavailable",
                f"not steady: {', '.join(down)}\n",
            )
        else:
            status, text = "200 OK", "ok\n"
        start(status, [("Content-Type", "text/plain")])
        return [text.encode()]


class _Silent(WSGIRequestHandler):
    """Leaves no line in the log for each look."""

    def log_message(self, format: str, *args: object) -> None:
        pass

"""What a person watching a run sees: a bar over the rounds and a line per site."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from medfusion.errors import MedFusionError, WaitingError
from medfusion.evaluation.measures import Headline, Measures


class RunProgress:
    """Shows a run on a terminal; without one, prints a line per round, with its ``headline``."""

    def __init__(self, console: Console, headline: Headline = Measures.headline) -> None:
        self._console = console
        self._headline = headline
        self._bars = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._run: TaskID | None = None
        self._sites: dict[str, TaskID] = {}
        self._waiting: set[str] = set()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, sites: Iterable[str], *, rounds: int, done: int) -> None:
        """Set up the bars once the sites are known; ``done`` rounds are from a checkpoint."""
        self._run = self._bars.add_task("rounds", total=rounds, completed=done, note="")
        for name in sites:
            self._sites[name] = self._bars.add_task(
                f"  {name}", total=rounds, completed=done, note=""
            )
        if done and not self._console.is_terminal:
            self._say(f"resumed after round {done} of {rounds}")

    def phase(self, text: str) -> None:
        """Say what the run is doing now."""
        if self._run is not None:
            self._bars.update(self._run, note=text)
        if not self._console.is_terminal:
            self._say(text)

    def note(self, text: str) -> None:
        """Say something once, above the bars."""
        self._say(text)

    def warn(self, text: str) -> None:
        """Say what a person should know, above the bars."""
        self._say(f"warning: {text}")

    def site_replied(
        self, name: str, *, round: int, seconds: float, error: MedFusionError | None
    ) -> None:
        """Bring a site's bar to the round that it has answered.

        That a site waits for approval is said once, until it answers otherwise.
        """
        waits = isinstance(error, WaitingError)
        if name in self._sites:
            note = "waiting" if waits else "failed" if error else f"{seconds:.1f} s"
            self._bars.update(self._sites[name], completed=round, note=note)
        if not waits:
            self._waiting.discard(name)
            if error is not None:
                self._say(f"site {name} failed: {error}")
        elif name not in self._waiting:
            self._waiting.add(name)
            self._say(f"site {name} waits: {error}")

    def round_done(self, line: dict[str, Any], *, rounds: int) -> None:
        """Advance the bar of rounds with what was measured."""
        metrics = line["metrics"]
        figure = metrics[self._headline.key] if metrics else None
        shown = f"{self._headline.name} {figure:.3f}" if figure is not None else ""
        if self._run is not None:
            self._bars.update(self._run, completed=line["round"], note=shown)
        if not self._console.is_terminal:
            self._say(f"round {line['round']}/{rounds}  {line['seconds']:.1f} s  {shown}".rstrip())

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

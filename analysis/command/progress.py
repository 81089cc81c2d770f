"""What `tla figures` shows while Snakemake works: one line that is rewritten, or one for each finished job."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from analysis.scales.costs import duration_text
from analysis.scales.plan import Plan

# Seconds of a job at mini on two cores: says before the first of a kind has ended how the kinds compare.
_USUAL = {
    "train": 15, "evaluate": 12, "extract": 2, "extract_train": 2, "project": 9, "landscape": 4, "notebook": 8,
    "manifest": 3,
}  # fmt: skip
_LAST_LINES = 15


class Progress:
    """Follows the jobs of a pipeline by what Snakemake says of them.

    Parameters
    ----------
    plan : Plan
        Its artefacts name the jobs.
    logs : Path
        Folder of the jobs' logs, for the last line.
    stream : file
        A terminal gets one line that is rewritten.
    clock : callable
        Seconds.
    """

    def __init__(
        self, plan: Plan, logs: Path, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan, self.logs, self.stream, self.clock = plan, logs, stream or sys.stdout, clock
        self.live = self.stream.isatty()
        self.began = clock()
        self.todo: Counter[str] = Counter()  # rule -> jobs that have not ended
        self.running: dict[int, tuple[str, str, float, list[str]]] = {}  # job -> rule, name, since when, logs
        self.took: dict[str, list[float]] = {}  # rule -> seconds of the jobs that have ended
        self.failed: list[str] = []
        self.warned: list[str] = []  # logs
        self.most_at_once = 1

    def show(self, event: dict[str, Any] | None) -> None:
        """Take in what Snakemake has said, or that it has said nothing for a second."""
        kind = event["event"] if event else ""
        if kind == "run_info" and not self.todo:
            self.todo.update({rule: n for rule, n in event["stats"].items() if rule not in ("total", "all")})
            self.total = self.todo.total()
        elif kind == "job_info" and event["rule_name"] != "all":
            name = self._name(event)
            if name in self.failed:  # the profile has Snakemake try again
                self.failed.remove(name)
                if self.live:
                    self._rewrite("")
                self._print(f"Trying again: {name}")
            self.running[event["jobid"]] = (event["rule_name"], name, self.clock(), event["log"] or [])
            self.most_at_once = max(self.most_at_once, len(self.running))
        elif kind == "job_finished" and event["job_id"] in self.running:
            self._ended(event["job_id"])
        elif kind == "job_error":
            self._failed(event)
        if self.live and self.todo:
            self._rewrite(self._line())

    def close(self, status: int) -> None:
        """Say what was made."""
        if self.live:
            self._rewrite("")
        jobs_done = sum(map(len, self.took.values()))
        figures = self.plan.scale.figures_dir
        if status == 0:
            took = f"{jobs_done} made in {duration_text(self.clock() - self.began)}"
            took = took if jobs_done else "nothing was left to make"
            self._print(f"{self.plan.scale.name} is complete: {took}.")
            self._print(f"Figures and tables: {figures / 'index.html'}; notebooks: {figures / 'notebooks'}")
        elif jobs_done:
            self._print(f"{jobs_done} made before that.")
        if jobs_done or self.failed:
            self._print(f"What the jobs said: {self.logs}")
        if self.warned:
            ellipsis = ", ..." if len(self.warned) > 3 else ""
            self._print(f"{len(self.warned)} of them warned: {', '.join(self.warned[:3])}{ellipsis}")

    def time_left(self) -> float | None:
        """Seconds, by the jobs of each kind that have ended; None before the first has."""
        known = {rule: sum(took) / len(took) for rule, took in self.took.items()}
        if not known:
            return None
        pace = sum(map(sum, self.took.values())) / sum(_USUAL.get(r, 5) * len(t) for r, t in self.took.items())
        seconds = {rule: known.get(rule, pace * _USUAL.get(rule, 5)) for rule in self.todo}
        rest = sum(n * seconds[rule] for rule, n in self.todo.items())
        rest -= sum(min(self.clock() - since, seconds[rule]) for rule, _, since, _ in self.running.values())
        return max(rest, 1.0) / self.most_at_once

    def _ended(self, job: int) -> None:
        rule, name, since, logs = self.running.pop(job)
        self.warned += [log for log in logs if "Warning: " in self._text(log)]
        self.todo[rule] -= 1
        self.took.setdefault(rule, []).append(self.clock() - since)
        if not self.live:
            self._print(f"{self._count()} {name} ({duration_text(self.took[rule][-1])}){self._left()}")

    def _failed(self, event: dict[str, Any]) -> None:
        self.running.pop(event["jobid"], None)
        name = self._name(event)
        if self.live:
            self._rewrite("")
        self._print(f"FAILED: {name}: {event['shellcmd'].partition(' > ')[0]}", sys.stderr)
        for log in event["log"] or ():
            for line in self._text(log).splitlines()[-_LAST_LINES:]:
                self._print(f"  {line}", sys.stderr)
        self.failed.append(name)

    def _text(self, log: str) -> str:
        path = self.plan.scale.root / log
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def _name(self, event: dict[str, Any]) -> str:
        artefact = self.plan.artefacts.get(next(iter(event["output"] or ()), ""))
        if artefact is None or artefact.kind == artefact.name:
            return event["rule_name"]
        return f"{artefact.kind} {artefact.name}"

    def _count(self) -> str:
        return f"{self.plan.scale.name} {self.total - self.todo.total()}/{self.total}"

    def _left(self) -> str:
        left = self.time_left()
        return "" if left is None or not self.todo.total() else f", about {duration_text(left)} left"

    def _line(self) -> str:
        now = ", ".join(name for _, name, *_ in self.running.values())
        return f"{self._count()}{self._left()}: {now or '...'}"

    def _rewrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        short = line if len(line) <= width else line[: width - 3] + "..."
        self.stream.write(f"\r{short:<{width}}" + ("" if line else "\r"))
        self.stream.flush()

    def _print(self, text: str, stream: TextIO | None = None) -> None:
        print(text, file=stream or self.stream, flush=True)

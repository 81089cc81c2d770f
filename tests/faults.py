"""A campaign of faults on a small project: kills, full disks, damaged files, two of everything. `make faults` runs it.

    OMP_NUM_THREADS=1 python tests/faults.py [--share 0.1] [--seed 1] [--only kills ...]

A table says what was tried and what came out; the exit status is 1 where something was lost, a number was wrong, or a
traceback was shown. The moments, limits and bits are drawn from the seed; what a moment meets is the machine's.
"""

import argparse
import contextlib
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from tiny import REPOSITORY, project_folder, tiny_training, use_few_images

from analysis.command import main as cli
from analysis.scales.plan import Artefact, Plan
from analysis.scales.scale import load_scale
from tla_core import training_loop
from tla_core.checkpoint import CheckpointError, load_tensors

# Of a whole campaign.
KILLS, PIPELINE_KILLS, FULL_DISKS, DAMAGES, PAIRS = 200, 4, 20, 100, 12
NOTEBOOK = "table3_distance_ratios"
# Artefact kind -> what tells whether it was made as before; a notebook holds times, so its figures do.
KINDS = {
    "model": "{path}", "representations": "{path}", "class maps": "{path}", "accuracies": "{path}",
    "notebook": "figures/mini/table3.csv",
}  # fmt: skip
# File -> the commands that read it. What is measured has no checksum in metrics.jsonl, only lines.
READ_BY = {
    "runs/mini/mnist/um/seed0/model.safetensors": ("status", "repair RUN", "extract RUN --eps 0.3"),
    "runs/mini/mnist/um/seed0/state.safetensors": ("repair RUN",),
    "runs/mini/mnist/um/seed0/config.json": ("status", "runs", "extract RUN --eps 0.3"),
    "runs/mini/mnist/um/seed0/metrics.jsonl": ("repair RUN", "runs"),
    "results/mini/mnist/um/seed0/representations-eps0.3.safetensors": ("project RUN --eps 0.3 --scale mini",),
    "results/mini/mnist/um/seed0/class-maps-eps0.3.safetensors": ("status",),
    "results/mini/mnist/um/seed0/accuracy-test.json": ("status",),
    "results/mini/mnist/um/seed0/accuracy-test.safetensors": ("EVALUATE",),
    "figures/mini/table3.json": ("redraw table3 --check", "manifest", "reproduction --scale mini --out out.md"),
    "figures/mini/detection-cifar10.safetensors": ("redraw detection-cifar10 --check",),
    "figures/mini/table3.csv": ("manifest",),
    "figures/mini/manifest.json": ("status",),
    "figures/mini/notebooks/" + NOTEBOOK + ".ipynb": ("status",),
    "workflow/scales/mini.yaml": ("status",),
}
BAD = "BAD: "


class Campaign:
    """A project in which everything is made, and what came of each fault in a copy of it."""

    def __init__(self, folder: Path, seed: int, share: float, kinds: Sequence[str]) -> None:
        self.folder, self.seed, self.share, self.kinds = folder, seed, share, kinds
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        long = tiny_training(epochs=30, batch_size=40, pool_size=20)
        self.made = project_folder(
            folder / "made", notebooks=[NOTEBOOK, "fig1_3_false_classes", "main_accuracy"], methods=["um", "at"],
            analysis_images={"mnist": 400},
            overrides=dict.fromkeys(("um", "at"), long),
            accuracy={"methods": ["um", "at"], "images": 20, "long_images": 10, "restarts": 1,
                      "strongest": {"images": 10, "steps": 2, "targets": 1}},
        )  # fmt: skip
        for name in ("notebooks", "workflow"):
            no_scales = shutil.ignore_patterns("scales")
            shutil.copytree(REPOSITORY / name, self.made / name, dirs_exist_ok=True, ignore=no_scales)
        # One notebook is executed; the others are there for what they read.
        made = Plan(load_scale("mini", self.made)).artefacts
        self.artefacts = {
            path: each
            for path, each in made.items()
            if each.kind in kinds and (each.kind != "notebook" or NOTEBOOK in path)
        }
        for artefact in self.artefacts.values():
            began = time.monotonic()
            status, text = self.run(self.made, command_of(artefact))
            if status:
                raise RuntimeError(f"{artefact.command} failed before any fault: {text}")
            self.seconds[artefact.path] = time.monotonic() - began
        if set(kinds) != set(KINDS):
            return
        # A figure, with what it was drawn from.
        for path in (REPOSITORY / "figures" / "small").glob("detection-cifar10.*"):
            shutil.copy(path, self.made / "figures" / "mini")
        self.run(self.made, ["manifest"])  # which lists what the other notebooks would make

    def copy(self) -> Path:
        shutil.rmtree(self.folder / "trial", ignore_errors=True)
        return shutil.copytree(self.made, self.folder / "trial")

    def draw(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{what}")

    def times(self, count: int) -> range:
        return range(max(round(count * self.share), 1))

    def note(self, what: str, outcome: str, example: str = "") -> None:
        self.outcomes[what][outcome] += 1
        if outcome.startswith(BAD):
            self.examples.setdefault(f"{what}: {outcome}", example)

    def of_kind(self, kind: str) -> Artefact:
        return next(each for each in self.artefacts.values() if each.kind == kind)

    def start(self, root: Path, command: Sequence[str], limit: int | None = None, log: str = "out.log") -> int:
        """A fork of this process, which has imported everything, does it; its process id."""
        sys.stdout.flush()
        if process := os.fork():
            return process
        status = 70
        with contextlib.suppress(BaseException):
            with (self.folder / log).open("wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.chdir(root)
            os.environ["TLA_ROOT"] = str(root)
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status = _main(command)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    def run(self, root: Path, command: Sequence[str], limit: int | None = None) -> tuple[int, str]:
        """Exit status, and what it said."""
        status = wait(self.start(root, command, limit))
        return status, self.said()

    def said(self, log: str = "out.log") -> str:
        return (self.folder / log).read_text(errors="replace")

    def same(self, root: Path, artefact: Artefact) -> bool:
        proof = KINDS[artefact.kind].format(path=artefact.path)
        return (root / proof).is_file() and (root / proof).read_bytes() == (self.made / proof).read_bytes()


def _main(command: Sequence[str]) -> int:
    try:
        return cli.main(list(command))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command_of(artefact: Artefact) -> list[str]:
    quiet = ["--no-progress"] if artefact.kind in ("model", "representations", "class maps", "accuracies") else []
    return [*shlex.split(artefact.command)[1:], *quiet]


def remove(root: Path, artefact: Artefact) -> None:
    """Take away what an artefact consists of."""
    path = root / artefact.path
    if artefact.kind == "model":
        shutil.rmtree(path.parent)
    for each in path.parent.glob(f"{path.stem}*"):
        each.unlink()
    for each in (root / "figures" / "mini").glob("table3*") if artefact.kind == "notebook" else ():
        each.unlink()


def damaged_files(root: Path) -> list[str]:
    """Files of tensors that are there and not whole."""
    damaged = []
    for path in [*root.rglob("runs/**/*.safetensors"), *root.rglob("results/**/*.safetensors")]:
        try:
            load_tensors(path)
        except CheckpointError:
            damaged.append(path.name)
    return damaged


def kills(campaign: Campaign) -> None:
    """Each kind of command, killed again and again at random moments, and then let go on to its end."""
    shares = {"model": 0.4, "representations": 0.2, "class maps": 0.15, "accuracies": 0.2, "notebook": 0.05}
    for kind, share in shares.items():
        if kind not in campaign.kinds:
            continue
        artefact, what = campaign.of_kind(kind), f"{kind} killed"
        draw, root = campaign.draw(what), campaign.copy()
        remove(root, artefact)
        for _ in campaign.times(round(KILLS * share)):
            process = campaign.start(root, command_of(artefact))
            time.sleep(draw.uniform(0, campaign.seconds[artefact.path]))
            signum = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            os.kill(process, signum)
            status = wait(process)
            if damaged := damaged_files(root):
                campaign.note(what, f"{BAD}half-written files", ", ".join(damaged))
            elif "Traceback" in campaign.said() and kind != "notebook":  # the kernel's own, in its log
                campaign.note(what, f"{BAD}a traceback after {signal.Signals(signum).name}", campaign.said())
            elif status == 0:
                campaign.note(what, "had ended before" if campaign.same(root, artefact) else f"{BAD}another result")
                remove(root, artefact)
            else:
                campaign.note(what, "nothing half-written")
        finish(campaign, root, artefact, what)


def finish(campaign: Campaign, root: Path, artefact: Artefact, what: str) -> None:
    """The same command goes on to its end: with the same bytes."""
    status, text = campaign.run(root, command_of(artefact))
    if status:
        campaign.note(what, f"{BAD}the same command does not go on", text)
    elif not campaign.same(root, artefact):
        campaign.note(what, f"{BAD}another result after all", text)
    elif leftovers := [*root.rglob(".*.tmp"), *root.rglob("*.running.ipynb")]:
        campaign.note(what, "ended with the same bytes, and leftovers that `tla clean` lists", str(leftovers))
    else:
        campaign.note(what, "ended with the same bytes")


def full_disks(campaign: Campaign) -> None:
    """No file may become larger than a random share of what is to be written."""
    kinds = [kind for kind in campaign.kinds if kind != "notebook"]
    draw = campaign.draw("full disks")
    for number in campaign.times(FULL_DISKS):
        artefact = campaign.of_kind(kinds[number % len(kinds)])
        root, what = campaign.copy(), f"{artefact.kind} on a full disk"
        remove(root, artefact)
        limit = draw.randint(1, max((campaign.made / artefact.path).stat().st_size - 1, 2))
        status, text = campaign.run(root, command_of(artefact), limit)
        if status == 0:
            campaign.note(what, f"{BAD}status 0", text)
        elif "Traceback" in text:
            campaign.note(what, f"{BAD}a traceback", text)
        elif "could not write" not in text and limit > len(text):
            campaign.note(what, f"{BAD}no file is named", f"{limit} bytes: {text}")
        finish(campaign, root, artefact, what)


def damages(campaign: Campaign) -> None:
    """Bits flipped, ends cut off, other contents: every command that reads the file names it or is not affected."""
    draw, intact = campaign.draw("damages"), {}
    for number in campaign.times(DAMAGES):
        name = list(READ_BY)[number % len(READ_BY)]
        kind = draw.choice(("bit", "bit", "cut", "empty", "text", "zeros"))
        if name.endswith(("metrics.jsonl", ".yaml")) and kind == "bit":  # any other number is as good as this one
            kind = "cut"
        for words in READ_BY[name]:
            command = words.replace("RUN", "runs/mini/mnist/um/seed0").split()
            if words == "EVALUATE":
                command = command_of(campaign.of_kind("accuracies"))
            if words not in intact:
                root = campaign.copy()
                intact[words] = campaign.run(root, command)
            root = campaign.copy()
            path = root / name
            content = path.read_bytes()
            path.write_bytes(damage(content, kind, draw))
            status, text = campaign.run(root, command)
            campaign.note(
                f"{Path(name).name}: {kind}", judge(status, text, path, content, intact[words]), f"tla {words}: {text}"
            )


def damage(content: bytes, kind: str, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return {
        "bit": content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
        "cut": content[:place],
        "empty": b"",
        "text": b"not what it was\n",
        "zeros": bytes(len(content)),
    }[kind]


def judge(status: int, text: str, path: Path, content: bytes, intact: tuple[int, str]) -> str:
    """What came of a command that read a damaged file."""
    if "Traceback" in text:
        return f"{BAD}a traceback"
    # What the command prints of an intact file too, such as where results are stored, names nothing.
    new = "\n".join(line for line in text.splitlines() if line not in intact[1].splitlines())
    if path.name in new or path.parent.name + ":" in new:
        return "named"
    if path.read_bytes() == content:
        return "mended"
    if (status, text) == intact:
        return "the same answer"
    return f"{BAD}{'an error without the file' if status else 'another answer, status 0'}"


def pairs(campaign: Campaign) -> None:
    """Two processes do the same at once."""
    kinds = campaign.kinds
    for number in campaign.times(PAIRS):
        artefact = campaign.of_kind(kinds[number % len(kinds)])
        root, what = campaign.copy(), f"{artefact.kind} by two at once"
        remove(root, artefact)
        processes = [campaign.start(root, command_of(artefact), log=f"{k}.log") for k in range(2)]
        statuses = [wait(process) for process in processes]
        texts = [campaign.said(f"{k}.log") for k in range(2)]
        if any("Traceback" in text for text in texts):
            campaign.note(what, f"{BAD}a traceback", "\n".join(texts))
        elif 0 not in statuses:
            campaign.note(what, f"{BAD}neither ended well", "\n".join(texts))
        elif not campaign.same(root, artefact):
            campaign.note(what, f"{BAD}another result")
        else:
            campaign.note(what, "both made it" if statuses == [0, 0] else "the second was refused")


def pipelines(campaign: Campaign) -> None:
    """`tla figures` killed at random moments: its jobs end with it, and the next call goes on."""
    draw, root, what = campaign.draw("pipeline"), campaign.copy(), "the pipeline killed"
    for name in ("runs", "results", "figures"):
        shutil.rmtree(root / name)
    command = [sys.executable, "-m", "analysis.command", "figures", "--cores", "2"]
    environment = {**os.environ, "TLA_ROOT": str(root), "PYTHONPATH": str(REPOSITORY)}
    for number in range(len(campaign.times(PIPELINE_KILLS)) + 1):
        with (campaign.folder / "out.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        if number == len(campaign.times(PIPELINE_KILLS)):
            status = process.wait()
            campaign.note(what, f"{BAD}the same command does not go on" if status else "ended", campaign.said())
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(5, 60))
            campaign.note(what, "had ended before")
            return
        everything = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        process.wait()
        left = psutil.wait_procs(everything, timeout=60)[1]
        if left:
            campaign.note(what, f"{BAD}processes are left", str([each.cmdline() for each in left]))
        elif damaged := damaged_files(root):
            campaign.note(what, f"{BAD}half-written files", ", ".join(damaged))
        else:
            campaign.note(what, "no process is left, nothing half-written")


SECTIONS: dict[str, Callable[[Campaign], None]] = {
    "kills": kills, "full-disks": full_disks, "damages": damages, "pairs": pairs, "pipelines": pipelines,
}  # fmt: skip


@contextlib.contextmanager
def campaign(folder: Path, seed: int, share: float, kinds: Sequence[str]) -> Iterator[Campaign]:
    """With few images, states that are saved all the time, and one thread, since forks have no others."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch, 100, 400)
        patch.setattr(training_loop, "SAVE_EVERY_SECONDS", 0.1)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield Campaign(folder, seed, share, kinds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of a whole campaign, such as 0.1")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of what is made")
    settings = parser.parse_args()
    print(f"seed {settings.seed}, share {settings.share}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tla-faults-") as folder, campaign(
        Path(folder), settings.seed, settings.share, settings.kinds
    ) as tried:
        for name in settings.only:
            began = time.monotonic()
            SECTIONS[name](tried)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    width = max(map(len, tried.outcomes))
    for what, counted in sorted(tried.outcomes.items()):
        print(f"{what:<{width}}  " + "; ".join(f"{count} {outcome}" for outcome, count in counted.items()))
    for what, example in tried.examples.items():
        print(f"\n{what}\n{example.strip()[-1500:]}")
    total = sum(map(Counter.total, tried.outcomes.values()))
    print(f"\n{total} outcomes, {len(tried.examples)} kinds of them bad. The seed was {settings.seed}.")
    return int(bool(tried.examples))


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("set OMP_NUM_THREADS=1: the forks of a process with more threads would hang.")
    sys.exit(main())

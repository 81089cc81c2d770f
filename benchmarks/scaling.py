"""Whether an image costs the same however many there are, in time and in memory."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

import tla_core as tla
from benchmarks.inputs import ROOT, Setup, test_images, untrained_model
from benchmarks.timing import Line, times_in_turn

# A thin network and one step, so that what `evaluate` itself does weighs most.
WIDTH = 1 / 32
ATTACK = tla.AttackConfig(eps=0.3, step_size=0.3, steps=1)


def cost_per_image(setup: Setup) -> Iterator[Line]:
    """One evaluation of many images beside several of few, for each image."""
    few, many = setup.sizes
    repeats = max(1, min(10, many // few))
    large, small = _evaluation(setup, many), _evaluation(setup, few)

    def several() -> None:
        for _ in range(repeats):
            small()

    small()  # the warm-up: one of many images takes as long as all that is warmed
    times = times_in_turn(large, {"": several}, pairs=setup.pairs, device=setup.device, warm_up=False)[""]
    setup.say("memory of one evaluation, each in a process of its own")
    memory = {n: peak_memory(n) for n in setup.sizes}
    yield Line(
        f"evaluate, {many:,} images, per image", f"{few:,} images",
        tuple((ours / many, peer / few / repeats) for ours, peer in times),
        {
            "network": f"Table 1, width {WIDTH:g}, untrained", "attack": str(ATTACK), "images": many,
            "repeats_of_peer": repeats,
            "peak_memory_mb": {f"{n:,}": round(used, 1) for n, used in memory.items()},
            "memory": "peak of a process that evaluates once, on the CPU, less the images (uint8); freed blocks of"
            " 128 KiB and more are returned to the system (glibc)",
        }, own=True,
    )  # fmt: skip


def peak_memory(n: int) -> float:
    """Megabytes that a process needs at most to evaluate n images, less the images themselves."""
    command = [sys.executable, "-m", "benchmarks.scaling", str(n), str(torch.get_num_threads())]
    # glibc keeps freed blocks in a heap that fragments by up to 100 MB, at random; above this size it returns them.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def _evaluation(setup: Setup, n: int):
    images, labels = test_images(n)
    model = untrained_model(setup, "lenet", images, width=WIDTH)
    with torch.no_grad():  # its own answers as labels: every image is attacked
        labels = torch.cat([model(part.to(setup.device).float() / 255).argmax(1).cpu() for part in images.split(1000)])

    def evaluation() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an untrained model fails a masking check
            tla.evaluate(model, images, labels, {"PGD": ATTACK}, early_stop=False)

    return evaluation


def _main(n: int, threads: int) -> None:
    torch.set_num_threads(threads)
    _evaluation(Setup(), n)()
    json.dump((_peak_bytes() - test_images(1)[0].numel() * n) / 1e6, sys.stdout)


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss begins with the memory of the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))

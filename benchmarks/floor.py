"""The least time that a run's arithmetic can take: its operations at the rate of the machine's matrix products."""

import statistics

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.timing import Run, seconds


def count_operations(run: Run) -> int:
    """Floating-point operations of the matrix products and convolutions of a run, forward and backward.

    What runs in inference mode is not counted.
    """
    with _OperationCounter() as counter:
        run()
    return counter.total


def matrix_rate(device: torch.device, *, size: int = 1024, products: int = 2) -> float:
    """Floating-point operations per second of the product of two square float32 matrices, the median of three."""
    left, right = (torch.randn(size, size, device=device) for _ in range(2))

    def multiply() -> None:
        for _ in range(products):
            left @ right

    multiply()
    return products * 2 * size**3 / statistics.median(seconds(multiply, device) for _ in range(3))


class _OperationCounter(TorchDispatchMode):
    # torch's FlopCounterMode follows the modules as well, and its hooks break where an attack asks for the gradient of
    # the images alone.
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result

"""The training loop. What it draws depends on (seed, step) alone, so a resumed run equals an uninterrupted one."""

import contextlib
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from tla_core.batches import BatchSource
from tla_core.checkpoint import load_tensors, pack_state, save_tensors, unpack_state
from tla_core.collapse import describe_triplets, triplet_warning
from tla_core.config import TrainConfig
from tla_core.datasets import ImageDataset
from tla_core.distributed import (
    RankError,
    average_over_ranks,
    broadcast_from_first,
    first_says,
    gather_rows,
    rank_and_size,
    share_of_rows,
)
from tla_core.evaluation import evaluate
from tla_core.methods import STEPS, StepLoss, as_step_loss
from tla_core.naming import import_object
from tla_core.run_folder import RunFolder
from tla_core.run_records import not_a_number
from tla_core.runtime import derive_seed, end_asked, full_precision, torch_threads
from tla_core.schedule import learning_rate, make_optimizer, ramped_attack, split_holdout
from tla_core.validation import check_label_range, scale_images

LOG_EVERY_STEPS = 25
SAVE_EVERY_SECONDS = 60.0
EVALUATED_AT_ONCE = 256


class TrainingDivergedError(RuntimeError):
    """The loss is no longer finite; the last good state is kept."""


class TrainingLoop:
    """One run: the state that a step changes, and how it is stored."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, record: dict, model: nn.Module, dataset: ImageDataset, device,
        tensorboard: bool,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.record, self.model, self.device = config, folder, record, model, device
        self.rank, self.processes = rank_and_size()
        rows, held_out = split_holdout(dataset.labels, config.holdout, config.seed)
        self.source = BatchSource(
            dataset.images[rows], dataset.labels[rows], batch_size=config.batch_size, seed=config.seed, device=device,
            augmentation=config.augmentation, rank=self.rank, world_size=self.processes,
        )  # fmt: skip
        self.held_out = (dataset.images[held_out], dataset.labels[held_out])
        self.n_classes = len(dataset.class_names)
        self.total_steps = config.iterations or config.epochs * self.source.steps_per_epoch
        self.optimizer = make_optimizer(model, config)
        self.step_function = import_object(config.step) if config.step else STEPS[config.method]
        self.average = _moving_average(model, config.averaging) if config.averaging else None
        self.step = 0
        self.best: dict[str, Tensor] = {}
        self.selected: dict[str, float] = {}
        self.threads = torch.get_num_threads()
        self.saved_at = time.monotonic()
        self.saved_step = -1
        self.tensorboard = tensorboard

    def run(self, progress: bool) -> None:
        old_processes = self._restore() if self.folder.state_path.exists() else self.processes
        broadcast_from_first([*self.model.parameters(), *self.model.buffers()])
        if self.rank == 0:
            self.folder.keep_metrics_until(self.step)
            if 0 < self.step < self.total_steps:
                self._warn_of_changes(old_processes)
        with torch_threads(self.threads):
            if self.step == 0:
                self._check_outputs()
            if self.step < self.total_steps:
                self._steps(progress)
        if self.rank == 0:
            self.folder.restore_model()
        first_says(True)  # the model is written before any process returns

    def _steps(self, progress: bool) -> None:
        name = f"{self.config.method} on {self.record['data']['name']}"
        with (
            # Where several processes train, one of them must not stop without the others.
            end_asked() if self.processes == 1 else contextlib.nullcontext(lambda: False) as must_end,
            _tensorboard(self.folder.path, self.step, self.tensorboard and self.rank == 0) as self.writer,
            tqdm(
                total=self.total_steps,
                initial=self.step,
                desc=name,
                unit="step",
                disable=not progress or self.rank > 0,
                mininterval=0.5,
            ) as bar,
            self._out_of_memory_explained(),
        ):
            while self.step < self.total_steps:
                loss = self._one_step()
                bar.update()
                ends = self.step % self.source.steps_per_epoch == 0 or self.step == self.total_steps
                if self.step % LOG_EVERY_STEPS == 0 or ends:
                    self._log(loss)
                if ends:
                    self._select(-(-self.step // self.source.steps_per_epoch), bar)
                    self._watch_triplets()
                ending = must_end()
                if ends or ending or time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS:
                    self._save()
                if ending:
                    break
        if self.step < self.total_steps:
            raise KeyboardInterrupt  # where the signal itself has another effect

    def _one_step(self) -> StepLoss:
        config, share = self.config, self.step / self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, share)
        # Dropout, and the noise of TLA, draw from torch's own generator.
        torch.manual_seed(derive_seed(config.seed, "step", self.step, *([self.rank] if self.rank else [])))
        self.model.train()
        attack = ramped_attack(config, self.step, self.total_steps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = as_step_loss(self.step_function(self.model, self.source, self.step, config, attack))
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        # A GPU is not waited for at each step; what diverges in between is found before it is saved.
        if (self.device.type == "cpu" or self.step % LOG_EVERY_STEPS == 0) and not torch.isfinite(loss.total):
            self._diverged(f"the loss ({loss.total.item()})")
        average_over_ranks([p.grad for p in self.model.parameters() if p.grad is not None])
        # Each process has the statistics of its share; attacks and the pool need the same ones everywhere. In float64,
        # so that what is constant stays the same number.
        average_over_ranks(list(self.model.buffers()), torch.float64)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return loss

    def _log(self, loss: StepLoss) -> None:
        step = self.step - 1
        self._record(
            {
                "step": self.step,
                "epoch": round(self.step / self.source.steps_per_epoch, 4),
                "loss": round(loss.total.item(), 6),
                "terms": {name: round(term.item(), 6) for name, term in loss.terms.items()},
                **({"triplets": describe_triplets(loss.triplets)} if loss.triplets else {}),
                "learning_rate": learning_rate(self.config, step / self.total_steps),
                "eps": ramped_attack(self.config, step, self.total_steps).eps,
                "time": round(time.time(), 3),
            }
        )

    def _record(self, record: dict[str, Any]) -> None:
        """One line of the metrics; with several processes, of the share of the first."""
        if self.rank:
            return
        self.folder.append_metrics(record)
        if self.writer is not None:
            values = dict(record)
            for part in ("terms", "triplets", "holdout"):
                values |= record.get(part, {})
            for name, value in values.items():
                if name not in ("step", "time") and isinstance(value, (int, float)):
                    group = "holdout" if "holdout" in record else "training"
                    self.writer.add_scalar(f"{group}/{name}", value, record["step"])

    def _select(self, epoch: int, bar) -> None:
        """Keep these weights if they are the best on the held-out images; a later epoch wins a tie."""
        held_out: dict[str, float] = {}
        model = self.model if self.average is None else self.average.module
        if len(self.held_out[1]):
            outcomes = self._held_out_outcomes(model.eval())
            held_out = {name: gather_rows(outcome).double().mean().item() for name, outcome in outcomes.items()}
            self._record({"step": self.step, "epoch": epoch, "holdout": held_out})
            bar.set_postfix({name: f"{value:.3f}" for name, value in held_out.items()}, refresh=False)
        key, best_key = ((h.get("robust", 0.0), h.get("clean", 0.0)) for h in (held_out, self.selected))
        if not self.best or key >= best_key:
            self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            self.selected = {"epoch": epoch, **held_out}

    def _watch_triplets(self) -> None:
        """Warn once of triplets that do nothing or draw all together, and note it in the metrics."""
        metrics = self.folder.metrics() if self.rank == 0 else []
        message = triplet_warning(metrics, self.config, self.source.steps_per_epoch, self.total_steps)
        if message and not any("warning" in record for record in metrics):
            self.folder.append_metrics({"step": self.step, "warning": message})
            warnings.warn(f"{self.folder.path}: {message}", stacklevel=5)

    def _held_out_outcomes(self, model: nn.Module) -> dict[str, Tensor]:
        """Which of this process's share of the held-out images are classified correctly: clean, and attacked."""
        attacks = {} if self.config.method == "um" else {"robust": self.config.selection_attack}
        images, labels = (share_of_rows(part) for part in self.held_out)
        if not len(labels):  # more processes than images
            return {name: torch.zeros(0, dtype=torch.bool) for name in ("clean", *attacks)}
        size = EVALUATED_AT_ONCE
        while True:
            try:
                with full_precision(self.device):
                    return evaluate(model, images, labels, attacks, batch_size=size, checks=False).correct
            except (RuntimeError, MemoryError) as error:
                # How many at once changes no outcome, so that a training that fits need not stop here.
                if not _is_out_of_memory(error) or size <= self.source.batch_size:
                    raise
            size //= 2

    def _save(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            self._diverged("a weight")
        if name := not_a_number(self.model.state_dict(), self.record):
            self._diverged(name)
        self.saved_at, self.saved_step = time.monotonic(), self.step
        if self.rank:
            return
        save_tensors(
            self.folder.state_path,
            pack_state(self.model, self.optimizer, self.best, self.average),
            {
                "kind": "state",
                "step": self.step,
                "finished": self.step == self.total_steps,
                "threads": self.threads,
                "processes": self.processes,
                "selected": self.selected,
                "run": {key: self.record[key] for key in ("identity", "config", "data", "start")},
            },
        )

    def _restore(self) -> int:
        """Go on from the stored state; returns how many processes it was made by."""
        tensors, metadata = load_tensors(self.folder.state_path)
        self.best = unpack_state(tensors, self.model, self.optimizer, self.average)
        self.step, self.selected, self.threads = metadata["step"], metadata["selected"], metadata["threads"]
        self.saved_step = self.step
        return metadata.get("processes", 1)

    def _warn_of_changes(self, processes: int) -> None:
        """Warn of a run that goes on in other circumstances than it began in, and note it in the metrics."""
        changes = {}
        if processes != self.processes:
            changes[f"made by {processes} process(es), goes on with {self.processes} from step {self.step}"] = (
                "each takes a share of another size of the batch, and batch norm with it, so that the result is not"
                " that of a run on one number of devices."
            )
        old_machine, new_machine = (_machine(record["environment"]) for record in (self.folder.record(), self.record))
        if different := [part for part in old_machine if old_machine[part] not in (None, new_machine[part])]:
            old_words, new_words = (
                ", ".join(f"{part} {machine[part]}" for part in different) for machine in (old_machine, new_machine)
            )
            changes[f"begun with {old_words}, goes on with {new_words} from step {self.step}"] = (
                "the result is not bit for bit that of an uninterrupted run."
            )
        for change, consequence in changes.items():
            warnings.warn(f"{self.folder.path} was {change}: {consequence}", stacklevel=4)
            note = {"step": self.step, "note": change}
            if note not in self.folder.metrics():  # of a resumption that was interrupted as well
                self.folder.append_metrics(note)

    def _check_outputs(self) -> None:
        """One image through the model, so that a wrong number of classes is told before the first step."""
        self.model.eval()
        with torch.no_grad():
            logits = self.model(scale_images(self.source.images[:1]))
        check_label_range(torch.tensor([self.n_classes - 1]), logits.cpu())

    @contextlib.contextmanager
    def _out_of_memory_explained(self):
        """Say what to try instead; the state that was stored last stays as it is."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            size = self.source.batch_size
            saved = f"The state of step {self.saved_step} is kept in {self.folder.path}"
            smaller = size // 2 // self.processes * self.processes
            advice = f"Try batch_size={smaller}" if smaller >= 2 * self.processes else "Try a network of less width"
            if self.config.method.startswith("tla"):
                advice += " or a smaller pool_size"
            raise torch.OutOfMemoryError(
                f"out of memory on {self.device} at step {self.step}, with batches of {size} images."
                f" {saved if self.saved_step >= 0 else 'No state had been saved yet'}: the same command goes on where"
                f" more memory is free. {advice}, which is another training: in another folder, or with `--replace`;"
                " or more devices by torchrun, which share the batch."
            ) from error

    def _diverged(self, quantity: str) -> None:
        saved = f"The state of step {self.saved_step} is kept in {self.folder.path}"
        raise TrainingDivergedError(
            f"{quantity} is not finite at step {self.step} (epoch {self.step // self.source.steps_per_epoch + 1})."
            f" {saved if self.saved_step >= 0 else 'No state had been saved yet'}."
            f" Lower learning_rate (now {self.config.learning_rate:g}), or check the images and the model for NaN."
        )


def _machine(environment: dict[str, Any]) -> dict[str, str | None]:
    """What rounding depends on; None if it is not known."""
    device = environment.get("device")
    return {
        "torch": environment["versions"].get("torch"),
        "device": None if device == "unknown" else device,
        "processor": environment.get("cpu_capability"),
    }


def _moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of a model's weights and statistics, which is selected and stored in its place."""
    average_floats = get_ema_multi_avg_fn(decay)

    def update(average, current, n_averaged):
        if average[0].is_floating_point():
            average_floats(average, current, n_averaged)
        else:  # how many batches batch norm has seen: torch would cut the average off to a whole number
            torch._foreach_copy_(average, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


@contextlib.contextmanager
def _tensorboard(folder: Path, step: int, enabled: bool):
    """A writer of TensorBoard's event files that goes on after `step`, or None."""
    if not enabled:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1) as writer:
        yield writer


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether it is an error of an allocation; torch has a type for those of its own GPU memory only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    known = ("out of memory", "allocate memory", "ALLOC_FAILED")
    return not isinstance(error, RankError) and any(text in str(error) for text in known)

"""The training loop. What it draws depends on (seed, step) alone, so a resumed run equals an uninterrupted one."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tla_core.batches import BatchSource
from tla_core.checkpoint import CheckpointError, load_tensors, pack_state, save_tensors, unpack_state
from tla_core.config import TrainConfig
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.evaluation import evaluate
from tla_core.methods import STEPS, StepLoss
from tla_core.models import build_model
from tla_core.run_folder import RunFolder, run_record
from tla_core.runtime import derive_seed, pick_device, torch_threads
from tla_core.schedule import learning_rate, make_optimizer, ramped_attack, split_holdout
from tla_core.validation import check_label_range, scale_images

LOG_EVERY_STEPS = 25
SAVE_EVERY_SECONDS = 60.0


class TrainingDivergedError(RuntimeError):
    """The loss is no longer finite; the last good state is kept."""


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies, and the records of its ``metrics.jsonl``: of some steps, and of the held-out images."""

    run_dir: Path
    metrics: list[dict[str, Any]]

    def __repr__(self) -> str:
        held_out = [record["holdout"] for record in self.metrics if record.get("holdout")]
        best = max((h.get("robust", h["clean"]) for h in held_out), default=None)
        return f"TrainResult({str(self.run_dir)!r}" + (f", best held-out accuracy {best:.3f})" if held_out else ")")


def train(
    config: TrainConfig,
    out_dir: Path | str,
    *,
    model: nn.Module | None = None,
    dataset: ImageDataset | None = None,
    init_from: Path | str | None = None,
    device: str | torch.device = "auto",
    resume: bool = True,
    replace: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a model, or go on with a training that was interrupted.

    Parameters
    ----------
    config : TrainConfig
    out_dir : Path or str
        Folder of the run. If it holds an unfinished run of the same settings, that one is resumed; a finished one is
        returned as it is.
    model : nn.Module, optional
        Images in [0, 1] -> logits, trained in place of the preset's network from the weights that it has. It ends
        with the weights of the last step; `load_model` gives the selected ones. Of the network, a run's identity
        holds the layout only: train other initial weights in another folder.
    dataset : ImageDataset, optional
        In place of the configuration's training set.
    init_from : Path or str, optional
        Run folder whose weights the training starts from.
    device : str or torch.device
        No part of the run's identity.
    resume : bool
        False moves a run of the same settings aside and starts again.
    replace : bool
        True moves a run with another configuration, data or start aside; otherwise it is refused.
    progress : bool
        Show a progress bar.

    Returns
    -------
    TrainResult

    Raises
    ------
    FileNotFoundError
        If `init_from` holds no finished run.
    RunConflictError
        If the folder holds a run with another configuration, or another process trains there.
    TrainingDivergedError
        If the loss is not finite. The last good state stays.
    DatasetError, CheckpointError
        If the data or a stored state cannot be trusted.
    """
    device = pick_device(device)
    dataset = load_dataset(config.dataset, "train") if dataset is None else dataset
    folder = RunFolder(out_dir)
    record = run_record(config, dataset, model, init_from, device)
    before = folder.record()
    if before is not None and (replace if before["identity"] != record["identity"] else not resume):
        folder.move_aside()
    with folder.locked():
        folder.start(record)
        if folder.model_path.exists():
            return TrainResult(folder.path, folder.metrics())
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(config.seed, "init"))
            model = _fresh_model(config, dataset) if model is None else model
            if init_from is not None:
                _load_weights(model, load_tensors(RunFolder(init_from).finished_model())[0], init_from)
            model = model.to(device, memory_format=torch.channels_last)  # see benchmarks/
            _Training(config, folder, record, model, dataset, device).run(progress)
    return TrainResult(folder.path, folder.metrics())


def load_model(run_dir: Path | str, *, device: str | torch.device = "cpu", model: nn.Module | None = None) -> nn.Module:
    """Load the selected weights of a run.

    Parameters
    ----------
    run_dir : Path or str
    device : str or torch.device
    model : nn.Module, optional
        The user's own network, for a run that trained one.

    Returns
    -------
    nn.Module
        In eval mode, images in [0, 1] -> logits.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no finished run, or its file cannot be trusted.
    ValueError
        If the run trained a network of the user's and `model` was not passed, or is another one.
    """
    path = RunFolder(run_dir).finished_model()
    weights, metadata = load_tensors(path)
    if metadata.get("kind") != "model":
        raise CheckpointError(f"{path} does not hold the weights of a run. Got a file of {metadata.get('kind')!r}.")
    if model is None:
        if metadata["start"]["network"] != "preset":
            raise ValueError(f"{run_dir} trained a network of the user's. Pass it: load_model(run_dir, model=...).")
        data = metadata["data"]
        settings = TrainConfig.from_dict(metadata["config"])
        model = build_model(
            settings.network, width=settings.width, in_channels=data["channels"], image_size=data["image_size"],
            n_classes=data["classes"],
        )  # fmt: skip
    _load_weights(model, weights, run_dir)
    return model.to(pick_device(device)).eval()


class _Training:
    """One run: the state that a step changes, and how it is stored."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, record: dict, model: nn.Module, dataset: ImageDataset, device
    ) -> None:
        self.config, self.folder, self.record, self.model, self.device = config, folder, record, model, device
        kept, held_out = split_holdout(dataset.labels, config.holdout, config.seed)
        self.source = BatchSource(
            dataset.images[kept], dataset.labels[kept], batch_size=config.batch_size, seed=config.seed, device=device
        )
        self.held_out = (dataset.images[held_out], dataset.labels[held_out])
        self.n_classes = len(dataset.class_names)
        self.total_steps = config.epochs * self.source.steps_per_epoch
        self.optimizer = make_optimizer(model, config)
        self.step = 0
        self.best: dict[str, Tensor] = {}
        self.selected: dict[str, float] = {}
        self.threads = torch.get_num_threads()
        self.saved_at = time.monotonic()
        self.saved_step = -1

    def run(self, progress: bool) -> None:
        if self.folder.state_path.exists():
            self._restore()
        self.folder.keep_metrics_until(self.step)
        with torch_threads(self.threads):
            if self.step == 0:
                self._check_outputs()
            if self.step < self.total_steps:
                self._steps(progress)
        self.folder.restore_model()

    def _steps(self, progress: bool) -> None:
        name = f"{self.config.method} on {self.record['data']['name']}"
        with tqdm(
            total=self.total_steps, initial=self.step, desc=name, unit="step", disable=not progress, mininterval=0.5
        ) as bar:
            while self.step < self.total_steps:
                loss = self._one_step()
                bar.update()
                epoch, rest = divmod(self.step, self.source.steps_per_epoch)
                if self.step % LOG_EVERY_STEPS == 0 or rest == 0:
                    self._log(loss)
                if rest == 0:
                    self._select(epoch, bar)
                if rest == 0 or time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS:
                    self._save()

    def _one_step(self) -> StepLoss:
        config, share = self.config, self.step / self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, share)
        # Dropout, and the noise of TLA, draw from torch's own generator.
        torch.manual_seed(derive_seed(config.seed, "step", self.step))
        self.model.train()
        attack = ramped_attack(config, self.step, self.total_steps)
        loss = STEPS[config.method](self.model, self.source, self.step, config, attack)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        # A GPU is not waited for at each step; what diverges in between is found before it is saved.
        if (self.device.type == "cpu" or self.step % LOG_EVERY_STEPS == 0) and not torch.isfinite(loss.total):
            self._diverged(f"the loss ({loss.total.item()})")
        self.optimizer.step()
        self.step += 1
        return loss

    def _log(self, loss: StepLoss) -> None:
        step = self.step - 1
        self.folder.append_metrics(
            {
                "step": self.step,
                "epoch": round(self.step / self.source.steps_per_epoch, 4),
                "loss": round(loss.total.item(), 6),
                "terms": {name: round(term.item(), 6) for name, term in loss.terms.items()},
                "learning_rate": learning_rate(self.config, step / self.total_steps),
                "eps": ramped_attack(self.config, step, self.total_steps).eps,
                "time": round(time.time(), 3),
            }
        )

    def _select(self, epoch: int, bar) -> None:
        """Keep these weights if they are the best on the held-out images; a later epoch wins a tie."""
        held_out: dict[str, float] = {}
        if len(self.held_out[1]):
            attacks = {} if self.config.method == "um" else {"robust": self.config.selection_attack}
            self.model.eval()
            held_out = evaluate(self.model, *self.held_out, attacks, batch_size=256).accuracy
            self.folder.append_metrics({"step": self.step, "epoch": epoch, "holdout": held_out})
            bar.set_postfix({name: f"{value:.3f}" for name, value in held_out.items()}, refresh=False)
        key, best_key = ((h.get("robust", 0.0), h.get("clean", 0.0)) for h in (held_out, self.selected))
        if not self.best or key >= best_key:
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            self.selected = {"epoch": epoch, **held_out}

    def _save(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            self._diverged("a weight")
        save_tensors(
            self.folder.state_path,
            pack_state(self.model, self.optimizer, self.best),
            {
                "kind": "state",
                "step": self.step,
                "finished": self.step == self.total_steps,
                "threads": self.threads,
                "selected": self.selected,
                "run": {key: self.record[key] for key in ("identity", "config", "data", "start")},
            },
        )
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def _restore(self) -> None:
        tensors, metadata = load_tensors(self.folder.state_path)
        self.best = unpack_state(tensors, self.model, self.optimizer)
        self.step, self.selected, self.threads = metadata["step"], metadata["selected"], metadata["threads"]
        self.saved_step = self.step

    def _check_outputs(self) -> None:
        """One image through the model, so that a wrong number of classes is told before the first step."""
        self.model.eval()
        with torch.no_grad():
            logits = self.model(scale_images(self.source.images[:1]))
        check_label_range(torch.tensor([self.n_classes - 1]), logits.cpu())

    def _diverged(self, what: str) -> None:
        kept = f"The state of step {self.saved_step} is kept in {self.folder.path}"
        raise TrainingDivergedError(
            f"{what} is not finite at step {self.step} (epoch {self.step // self.source.steps_per_epoch + 1})."
            f" {kept if self.saved_step >= 0 else 'No state had been saved yet'}."
            f" Lower learning_rate (now {self.config.learning_rate:g}), or check the images and the model for NaN."
        )


def _fresh_model(config: TrainConfig, dataset: ImageDataset) -> nn.Module:
    _, channels, height, width = dataset.images.shape
    if height != width:
        raise ValueError(f"the preset's network takes square images. Got {height} x {width}; crop, or pass model=.")
    sizes = {"in_channels": channels, "image_size": height, "n_classes": len(dataset.class_names)}
    return build_model(config.network, width=config.width, **sizes)


def _load_weights(model: nn.Module, weights: dict[str, Tensor], run_dir: Path | str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split("\n\t")[:2])  # the first of the tensors that torch lists
        raise ValueError(f"the weights of {run_dir} are those of another network: {what}") from error

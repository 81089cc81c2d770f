"""The results that are stored of a run: for each kind its path, what its metadata must say, and how it is made.

A result belongs to a checkpoint and to settings; where its metadata says otherwise it is stale. What is current is not
made again.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.representations import RepresentationSet
from analysis.scales import targets
from analysis.scales.targets import results_dir
from analysis.shards import shards_beside
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import CheckpointError, file_sha256, load_tensors
from tla_core.config import TrainConfig, canonical_json
from tla_core.dataset_download import OTHER_COPIES, other_copy
from tla_core.datasets import ImageDataset
from tla_core.distributed import first_says, process_group, rank_and_size, wait_for_others
from tla_core.run_folder import RunFolder
from tla_core.runtime import pick_device
from tla_core.schedule import split_holdout


def run_config(run_dir: Path | str) -> TrainConfig:
    """The settings of a run.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    """
    record = RunFolder(run_dir).record()
    if record is None:
        raise FileNotFoundError(f"{run_dir} holds no run: there is no config.json. Train one with `tla train`.")
    return TrainConfig.from_dict(record["config"])


def run_images(run_dir: Path | str, split: str) -> ImageDataset:
    """The images of a split of a run's dataset.

    Parameters
    ----------
    run_dir : Path or str
    split : {"test", "train", "holdout"}
        ``"holdout"``: the training images that the run held out. It did not learn from them, but the epoch was chosen
        by them; what is chosen by them needs no test image.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    ValueError
        If the run held out no images, or was trained on others than its dataset has: on a dataset that was passed to
        `tla_core.train`, or on these very images where others are asked for.
    """
    from tla_core.datasets import load_dataset

    config, trained_on = run_config(run_dir), data_of_run(run_dir)
    data = load_dataset(config.dataset, "train" if split == "holdout" else split)
    _check_images(run_dir, trained_on, data, split)
    if split != "holdout":
        return data
    if not config.holdout:
        raise ValueError(
            f"{run_dir} held out none of its training images (holdout 0). Train it with some, such as"
            " `tla train ... --holdout 300`, or use another split."
        )
    if data.checksum != trained_on["checksum"]:
        raise ValueError(
            f"{run_dir} was trained on {trained_on['source']} with {trained_on['images']:,} images, and not on what"
            f" {config.dataset} is here: {data.source} with {len(data):,}. What it held out is among the former: set"
            " TLA_DATA to where they lie."
        )
    return data.subset(split_holdout(data.labels, config.holdout, config.seed)[1])


def data_of_run(run_dir: Path | str) -> dict[str, Any]:
    """What the record of a run says of the images that it was trained on.

    Raises
    ------
    ValueError
        If they are not those of the dataset that its settings name: the run must not be measured on that dataset.
    """
    dataset, data = run_config(run_dir).dataset, RunFolder(run_dir).record()["data"]
    if not _same_photographs(dataset, data["name"]):
        raise _other_images(run_dir, data, f"{dataset}, which its settings name,")
    return data


def _check_images(run_dir: Path | str, trained_on: dict[str, Any], data: ImageDataset, split: str) -> None:
    """ValueError where images are not of the dataset that the run was trained on, or are its training images."""
    trained_shape = tuple(trained_on[key] for key in ("channels", "image_size", "classes"))
    shape = (*data.images.shape[1:3], len(data.class_names))
    if shape != trained_shape or not _same_photographs(data.name, trained_on["name"]):
        raise _other_images(run_dir, trained_on, f"what is here, {data},")
    if split == "test" and data.checksum == trained_on["checksum"]:
        raise ValueError(
            f"{run_dir} was trained on these very images: {data}. Expected others to measure it on: give the folder"
            " train and test folders, and train again."
        )


def _same_photographs(name: str, other: str) -> bool:
    return name == other or OTHER_COPIES.get(name) == other or OTHER_COPIES.get(other) == name


def _other_images(run_dir: Path | str, trained_on: dict[str, Any], images: str) -> ValueError:
    size = "x".join(str(trained_on[key]) for key in ("channels", "image_size", "image_size"))
    description = f"{trained_on['images']:,} images {size} of {trained_on['classes']} classes"
    return ValueError(
        f"{run_dir} was trained on {trained_on['name']!r} ({trained_on['source']}: {description}), and {images} is"
        " another dataset. Name the images to measure it on: `tla evaluate RUN --data DATA`, or"
        " tla.evaluate(tla.load_model(RUN), images, labels)."
    )


def of_checkpoint(run_dir: Path | str) -> dict[str, Any]:
    """The checksum of the weights, and the copy of the dataset that is measured on, if it is not the run's own."""
    return {
        "checkpoint_sha256": file_sha256(RunFolder(run_dir).finished_model()),
        "other_copy": other_copy(run_config(run_dir).dataset),
    }


def different_settings(metadata: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The settings in which metadata differ from what is expected."""
    return [key for key, value in expected.items() if canonical_json(metadata.get(key)) != canonical_json(value)]


def is_current(path: Path, expected: dict[str, Any]) -> bool:
    """Whether the file says that it is what is expected; a missing, truncated or altered one is not."""
    try:
        _, metadata = load_tensors(path)
    except (FileNotFoundError, CheckpointError):
        return False
    return not different_settings(metadata.get("meta", metadata), expected)


def target_of_run(run_dir: Path | str, target: targets.Target) -> tuple[Path, dict[str, Any]]:
    """Path of a result of a run, and what its metadata must say."""
    data_of_run(run_dir)  # refuses a run on the user's own images, even if it has results already
    return results_dir(run_dir) / target.file, {**of_checkpoint(run_dir), **target.settings}


# Representations ------------------------------------------------------------------------------------------------------


def representations_target(
    run_dir: Path | str, eps: float | None = None, images: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Path of a run's test representations, and what their metadata must say: this checkpoint, attack and images."""
    return target_of_run(run_dir, targets.representations(run_config(run_dir), eps, images))


def extract_run(
    run_dir: Path | str, eps: float | None = None, *, split: str = "test", images: int | None = None,
    device: str = "auto", progress: bool = True,
) -> Path:  # fmt: skip
    """Extract and store representations of a run: of the test images, clean and attacked, or of the training images.

    What is finished outlives an interruption, and the processes of `torchrun` share the work, see `analysis.extract`.

    Parameters
    ----------
    run_dir : Path or str
    eps : float, optional
        Perturbation level; by default that of the dataset's attack.
    split : {"test", "train"}
    images : int, optional
        Test images at the most, evenly spread over the set; by default all.
    device : str
    progress : bool

    Returns
    -------
    Path
    """
    from analysis.extraction import extract
    from tla_core.training import load_model

    test = split == "test"
    target = targets.representations(run_config(run_dir), eps, images) if test else targets.train_representations()
    path, expected = target_of_run(run_dir, target)
    with process_group(pick_device(device)):
        first = rank_and_size()[0] == 0
        if first_says(first and is_current(path, expected)):
            return path
        config = run_config(run_dir)
        data = run_images(run_dir, split)
        n = len(data.labels)
        n_images = min(images or n, n) if test else n
        rows = torch.arange(n_images) * n // n_images
        with shards_beside(path) as shards:
            reps = extract(
                load_model(run_dir, device=device),
                data.images[rows],
                data.labels[rows],
                indices=rows,
                attack=AttackConfig(**expected["attack"]) if test else None,
                class_names=data.class_names,
                meta={**expected, "dataset": data.name, "split": split, "source": data.source, "method": config.method},
                shards=shards,
                progress=progress and first,
            )
            if first:
                reps.save(path)
            wait_for_others()
    return path


# Maps -----------------------------------------------------------------------------------------------------------------


def project_run(
    run_dir: Path | str, eps: float | None, settings: dict[str, Any], *, n_jobs: int = 1, progress: bool = True
) -> Path:
    """Make and store the class maps of a run; its representations must be there. Settings are those of `map_class`."""
    from analysis.maps import map_classes, save_maps

    source, _ = representations_target(run_dir, eps)
    path, expected = target_of_run(run_dir, targets.class_maps(run_config(run_dir), eps, settings))
    if not is_current(path, expected):
        maps = map_classes(RepresentationSet.load(source), n_jobs=n_jobs, progress=progress, **settings)
        save_maps(path, maps, expected)
    return path


def project_pairs_run(run_dir: Path | str, eps: float | None, settings: dict[str, Any]) -> Path:
    """Make and store the maps of class pairs of a run; settings are ``pairs`` and those of `map_pair`."""
    from analysis.maps import map_pair, save_pair_maps

    source, _ = representations_target(run_dir, eps)
    path, expected = target_of_run(run_dir, targets.pair_maps(run_config(run_dir), eps, settings))
    if not is_current(path, expected):
        reps = RepresentationSet.load(source)
        projection = {key: value for key, value in settings.items() if key != "pairs"}
        save_pair_maps(path, [map_pair(reps, *pair, **projection) for pair in settings["pairs"]], expected)
    return path


# Landscapes -----------------------------------------------------------------------------------------------------------


OF_RISE = "rise/"  # the names of coarser landscapes, which are not drawn, begin with it


def landscape_run(run_dir: Path | str, settings: dict[str, Any], *, device: str = "auto") -> Path:
    """Make and store the input-space landscapes of a run around a few test images, in the same directions for each run.

    Parameters
    ----------
    run_dir : Path or str
    settings : dict
        ``images``, their number, evenly spread over the test set, which may be none; ``radius`` in units of the
        dataset's eps; ``resolution``; and ``rise``: the ``images`` and ``resolution`` of coarser landscapes, of which
        only the rise is read.
    device : str

    Returns
    -------
    Path
    """
    from analysis.landscape import input_landscape, save_landscapes
    from tla_core.training import load_model

    path, expected = target_of_run(run_dir, targets.landscapes(run_config(run_dir), settings))
    if is_current(path, expected):
        return path
    data = run_images(run_dir, "test")
    model = load_model(run_dir, device=device)
    landscapes = {}
    for prefix, grid in (("", settings), (OF_RISE, settings["rise"])):
        rows = np.arange(grid["images"]) * len(data.labels) // max(grid["images"], 1)
        shape = {"radius": settings["radius"] * expected["eps"], "resolution": grid["resolution"]}
        for place, row in enumerate(rows.tolist()):
            image, label = data.images[row], int(data.labels[row])
            landscapes[f"{prefix}{row}"] = input_landscape(model, image, label, random_state=place, **shape)
    save_landscapes(path, landscapes, expected)
    return path

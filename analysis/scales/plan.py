"""The plan of a scale: every run and result, what it needs, the command that makes it, what it must say of itself.

The Snakefile, `Results` and `tla status` read this, and repeat nothing of it.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.scales import targets
from analysis.scales.scale import Scale, accuracy_flags
from tla_core.protocol import analysis_levels

KINDS = (
    "model", "representations", "train representations", "class maps", "pair maps", "landscapes", "accuracies",
    "notebook", "manifest",
)  # fmt: skip

# Dataset, method with its variant, seed.
Run = tuple[str, str, int]


@dataclass(frozen=True)
class Artefact:
    """One file that a scale consists of, with what belongs to it.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    path : str
        Below the root of the project; of a training the path of its model.
    command : str
        What makes it, to be run in the root; every word is quoted for a shell.
    needs : tuple of str
        Paths of the artefacts that must be made before.
    run : (str, str, int), optional
        Dataset, method with its variant, and seed; None for notebooks and the manifest.
    eps : str
        Perturbation level, as in file names; empty for what has none.
    settings : dict
        What its metadata must say, beside the weights that it was made from.
    """

    kind: str
    path: str
    command: str
    needs: tuple[str, ...] = ()
    run: Run | None = None
    eps: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people: ``mnist/tla/seed0 eps 0.3``, or the name of a notebook."""
        if self.run is None:
            return Path(self.path).stem
        dataset, method, seed = self.run
        return f"{dataset}/{method}/seed{seed}" + (f" eps {self.eps}" if self.eps else "")


class Plan:
    """What a scale consists of: what its notebooks read, and all main runs.

    Each method returns one artefact of a run. It may be one that no notebook of the scale reads.

    Parameters
    ----------
    scale : Scale
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._known: dict[str, Artefact] = {}

    @cached_property
    def artefacts(self) -> dict[str, Artefact]:
        """Path -> artefact, of all that the scale consists of; each stands behind what it needs."""
        fresh_plan = Plan(self.scale)  # this one also knows what callers have asked for beyond the scale
        for run in fresh_plan._runs(self.scale.datasets, self.scale.methods):
            fresh_plan.model(run)
        fresh_plan.manifest()
        artefacts = sorted(fresh_plan._known.values(), key=lambda artefact: KINDS.index(artefact.kind))
        return {artefact.path: artefact for artefact in artefacts}

    def needs(self, artefact: Artefact) -> list[Artefact]:
        """The artefacts that must be made before an artefact of this plan."""
        return [self._known.get(path) or self.artefacts[path] for path in artefact.needs]

    # Of a run ---------------------------------------------------------------------------------------------------------

    def model(self, run: Run) -> Artefact:
        """A training."""
        dataset, method, seed = run
        config, needs = self.scale.config(*run), []
        command = ["tla", "train", self.scale.preset(dataset, method), "--seed", seed]
        command += ["--out", _folder(self.scale, run), *self.scale.flags(dataset, method)]
        if config.fine_tune:
            start = (dataset, "at", seed)
            command += ["--init-from", _folder(self.scale, start)]
            needs = [self.model(start)]
        path = f"{_folder(self.scale, run)}/model.safetensors"
        return self._add("model", path, [*command, "--replace"], needs, run, settings={"identity": config.identity})

    def representations(self, run: Run, eps: float | None = None) -> Artefact:
        """Of the test images, at a perturbation level; by default that of the dataset's attack."""
        images = self.scale.images_at(run[0], run[1], eps, run[2])
        target = targets.representations(self.scale.config(*run), eps, images)
        eps = target.settings["attack"]["eps"]
        command = ["tla", "extract", _folder(self.scale, run), "--eps", f"{eps:g}"]
        command += ["--images", images] if images else []
        return self._result("representations", run, target, command, [self.model(run)], eps)

    def train_representations(self, run: Run) -> Artefact:
        """Of the clean training images."""
        command = ["tla", "extract", _folder(self.scale, run), "--split", "train"]
        return self._result(
            "train representations", run, targets.train_representations(), command, [self.model(run)]
        )  # fmt: skip

    def class_maps(self, run: Run, eps: float | None = None) -> Artefact:
        """Maps of each class; where the scale names pairs of classes, the same command makes those of the pairs."""
        target = targets.class_maps(self.scale.config(*run), eps, self.scale.map_settings())
        if self.scale.pair_settings(run[0]):
            self.pair_maps(run, eps)
        return self._map("class maps", run, target)

    def pair_maps(self, run: Run, eps: float | None = None) -> Artefact:
        """Maps of the scale's pairs of classes.

        Raises
        ------
        ValueError
            If it names none of the dataset.
        """
        settings = self.scale.pair_settings(run[0])
        if settings is None:
            raise ValueError(f"the scale {self.scale.name!r} names no class_pairs of {run[0]}.")
        return self._map("pair maps", run, targets.pair_maps(self.scale.config(*run), eps, settings))

    def _map(self, kind: str, run: Run, target: targets.Target) -> Artefact:
        eps = target.settings["attack"]["eps"]
        command = ["tla", "project", _folder(self.scale, run), "--eps", f"{eps:g}", "--scale", self.scale.name]
        return self._result(kind, run, target, command, [self.representations(run, eps)], eps)

    def landscapes(self, run: Run) -> Artefact:
        """The loss around some test images."""
        settings = self.scale.landscape_of(run[0], run[2])
        command = ["tla", "landscape", _folder(self.scale, run), "--scale", self.scale.name]
        command += [] if settings["images"] else ["--rise-only"]
        target = targets.landscapes(self.scale.config(*run), settings)
        return self._result("landscapes", run, target, command, [self.model(run)])

    def accuracies(self, run: Run) -> Artefact:
        """The accuracy table. A run outside the main table gets only the columns that sweeps use."""
        options, needs = self.scale.accuracy_options(*run), [self.model(run)]
        if options["black_box"]:
            copy = (run[0], *options["black_box"])
            options["black_box"] = _folder(self.scale, copy)
            needs.append(self.model(copy))
        command = ["tla", "evaluate", _folder(self.scale, run), *accuracy_flags(options)]
        # The outcomes of each image lie beside it, and outlive a job of Snakemake's that is repeated.
        return self._result("accuracies", run, targets.Target("accuracy-test.json", options), command, needs)

    # Of the scale -----------------------------------------------------------------------------------------------------

    def notebook(self, name: str) -> Artefact:
        """An executed notebook."""
        readers = self._reads()
        artefacts = readers[name]() if name in readers else [each for read in readers.values() for each in read()]
        needs = {artefact.path: artefact for artefact in artefacts}
        path = f"figures/{self.scale.name}/notebooks/{name}.ipynb"
        command = ["tla", "notebooks", name, "--scale", self.scale.name]
        return self._add("notebook", path, command, [needs[path] for path in sorted(needs)])

    def manifest(self) -> Artefact:
        """Which files show which figure, and the page that shows them."""
        notebooks = [self.notebook(name) for name in self.scale.notebooks]
        path = f"figures/{self.scale.name}/manifest.json"
        return self._add("manifest", path, ["tla", "manifest", "--scale", self.scale.name], notebooks)

    def _reads(self) -> dict[str, Callable[[], list[Artefact]]]:
        """Notebook -> what it reads. One that is not here reads everything that the others do."""
        # Which runs each part of the supplement shows.
        scale = self.scale
        all_runs = self._runs(scale.datasets, scale.methods)
        first_seed_runs = self._runs(scale.datasets, scale.methods, 1)
        table_runs = [run for dataset in scale.datasets for run in scale.table_runs(dataset)]
        neighbour_runs = self._runs(scale.neighbour_datasets, scale.methods)
        map_runs = self._runs([scale.dataset_of("maps")], scale.methods)
        drawn_runs = self._runs([scale.dataset_of("maps")], scale.methods, 1)
        defended_methods = [method for method in scale.methods if method != "um"]
        landscape_runs = self._runs([scale.dataset_of("landscapes")], defended_methods)
        # Captions say how the seed that is shown stands among the others.
        seed_note_runs = landscape_runs if len(scale.seeds_of(scale.dataset_of("landscapes"))) > 1 else []
        sweep_methods = dict.fromkeys(method for name in scale.sweeps for method in scale.sweep(name).values())
        sweep_runs = [run for method in sweep_methods for run in scale.sweep_runs(method)]
        sweep_runs += scale.spread_runs() if scale.sweeps else []

        # What of these runs is read more than once.
        def at_main_level(runs: Iterable[Run]) -> list[Artefact]:
            return [self.representations(run) for run in runs]

        def note_accuracies(runs: Iterable[Run]) -> list[Artefact]:
            # Captions compare the attack with the strongest one, where accuracies are made anyway.
            measured_runs = table_runs if "main_accuracy" in scale.notebooks else []
            return [self.accuracies(run) for run in runs if run in measured_runs]

        def maps() -> list[Artefact]:
            return [self.class_maps(run) for run in drawn_runs] + at_main_level(map_runs) + note_accuracies(drawn_runs)

        def pairs() -> list[Artefact]:
            return [self.pair_maps(run) for run in drawn_runs if scale.pair_settings(run[0])] + maps()

        return {
            "00_quickstart": lambda: [self.model(run) for run in self._runs(scale.datasets[:1], ("um", "tla"), 1)],
            "fig1_3_false_classes": maps,
            "fig4_6_class_pairs": pairs,
            "fig7_retrieval": lambda: at_main_level(map_runs) + note_accuracies(drawn_runs),
            "fig8_loss_landscape": lambda: (
                [self.landscapes(run) for run in landscape_runs] + at_main_level(seed_note_runs)
            ),
            "table1_2_architectures": list,
            "table3_distance_ratios": lambda: (
                [self.representations(run, eps) for run in first_seed_runs for eps in self._levels(run[0])]
                + at_main_level(all_runs)
                + note_accuracies(first_seed_runs)
            ),
            "table4_6_hyperparameters": lambda: (
                [self.accuracies(run) for run in sweep_runs] + at_main_level(sweep_runs)
            ),
            "main_accuracy": lambda: [self.accuracies(run) for run in table_runs],
            "knn_and_detection": lambda: (
                at_main_level(neighbour_runs)
                + [self.train_representations(run) for run in neighbour_runs]
                + note_accuracies(self._runs(scale.neighbour_datasets, scale.methods, 1))
            ),
            "your_own_model": list,
            "explore_embeddings": lambda: at_main_level(map_runs),
        }

    def _runs(self, datasets: Sequence[str], methods: Sequence[str], seeds: int | None = None) -> list[Run]:
        """Runs of all seeds of each dataset, or of the first so many."""
        return [
            (dataset, method, seed)
            for dataset in datasets
            for method in methods
            for seed in self.scale.seeds_of(dataset)[:seeds]
        ]

    def _levels(self, dataset: str) -> tuple[float, ...]:
        return analysis_levels(self.scale.config(dataset, self.scale.methods[0]))

    def _result(
        self, kind: str, run: Run, target: targets.Target, command: list[Any], needs: list[Artefact],
        eps: float | None = None,
    ) -> Artefact:  # fmt: skip
        path = f"results/{self.scale.name}/{run[0]}/{run[1]}/seed{run[2]}/{target.file}"
        return self._add(kind, path, command, needs, run, "" if eps is None else f"{eps:g}", target.settings)

    def _add(
        self, kind: str, path: str, command: list[Any], needs: list[Artefact], run: Run | None = None, eps: str = "",
        settings: dict[str, Any] | None = None,
    ) -> Artefact:  # fmt: skip
        words = shlex.join(map(str, command))
        artefact = Artefact(kind, path, words, tuple(need.path for need in needs), run, eps, settings or {})
        return self._known.setdefault(path, artefact)


def _folder(scale: Scale, run: Run) -> str:
    """Of a training, below the root."""
    return f"runs/{scale.name}/{run[0]}/{run[1]}/seed{run[2]}"

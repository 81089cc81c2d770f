"""Enumerates what a scale consists of, as the pipeline makes it: every run and result, and the command for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from analysis.scales.scale import Scale, accuracy_flags
from tla_core.protocol import ANALYSIS_LEVELS, analysis_attack

KINDS = (
    "model", "representations", "train representations", "class maps", "pair maps", "landscapes", "accuracies",
    "notebook", "manifest",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One file that a scale consists of, with what belongs to it.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    path : str
        Below the root of the project; of a training the path of its model.
    command : str
        What makes it, to be run in the root.
    needs : tuple of str
        Paths of the items that must be made before.
    dataset, method : str
        Empty for notebooks and the manifest; the method with its variant.
    seed : int, optional
    eps : str
        Perturbation level, as in file names; empty for what has none.
    """

    kind: str
    path: str
    command: str
    needs: tuple[str, ...] = ()
    dataset: str = ""
    method: str = ""
    seed: int | None = None
    eps: str = ""

    @property
    def name(self) -> str:
        """For people: ``mnist/tla/seed0 eps 0.3``, or the name of a notebook."""
        if not self.method:
            return Path(self.path).stem
        return f"{self.dataset}/{self.method}/seed{self.seed}" + (f" eps {self.eps}" if self.eps else "")


def scale_items(scale: Scale) -> tuple[Item, ...]:
    """Everything that a scale consists of, as the pipeline makes it: what its notebooks read, and all main runs.

    Pair maps are items of their own here; in the pipeline they come with the class maps.
    """
    return _Items(scale).all()


class _Items:
    """Collects the items of a scale; each method adds what it returns the paths of, and what that needs."""

    def __init__(self, scale: Scale) -> None:
        self.scale, self.found = scale, {}
        self.of_table = [run for dataset in scale.datasets for run in scale.table_runs(dataset)]

    def all(self) -> tuple[Item, ...]:
        for run in self.runs(self.scale.datasets, self.scale.methods):
            self.model(*run)
        notebooks = [self.notebook(name) for name in self.scale.notebooks]
        path = f"figures/{self.scale.name}/manifest.json"
        self.found[path] = Item("manifest", path, f"tla manifest --scale {self.scale.name}", tuple(notebooks))
        return tuple(sorted(self.found.values(), key=lambda item: KINDS.index(item.kind)))

    def runs(
        self, datasets: Sequence[str], methods: Sequence[str], seeds: int | None = None
    ) -> list[tuple[str, str, int]]:
        """Runs of all seeds of each dataset, or of the first so many."""
        return [
            (dataset, method, seed)
            for dataset in datasets
            for method in methods
            for seed in self.scale.seeds_of(dataset)[:seeds]
        ]

    def levels(self, dataset: str) -> list[str]:
        return [f"{eps:g}" for eps in ANALYSIS_LEVELS[self.scale.config(dataset, self.scale.methods[0]).dataset]]

    def main_level(self, dataset: str) -> str:
        return f"{analysis_attack(self.scale.config(dataset, self.scale.methods[0])).eps:g}"

    def add(self, kind: str, run: tuple[str, str, int], file: str, command: str, needs=(), eps: str = "") -> str:
        top = "runs" if kind == "model" else "results"
        path = f"{top}/{self.scale.name}/{run[0]}/{run[1]}/seed{run[2]}/{file}"
        self.found[path] = Item(kind, path, " ".join(command.split()), tuple(needs), *run, eps)
        return path

    def folder(self, run: tuple[str, str, int]) -> str:
        return quote(f"runs/{self.scale.name}/{run[0]}/{run[1]}/seed{run[2]}")

    def model(self, dataset: str, method: str, seed: int) -> str:
        run, scale = (dataset, method, seed), self.scale
        start, needs = "", []
        if scale.config(*run).fine_tune:
            start, needs = f"--init-from {self.folder((dataset, 'at', seed))}", [self.model(dataset, "at", seed)]
        command = f"tla train {scale.preset(dataset, method)} --seed {seed} --out {self.folder(run)}"
        command += f" {scale.flags(dataset, method)} {start} --replace"
        return self.add("model", run, "model.safetensors", command, needs)

    def representations(self, run: tuple[str, str, int], eps: str) -> str:
        command, name = f"tla extract {self.folder(run)} --eps {eps}", f"representations-eps{eps}.safetensors"
        if images := self.scale.images_at(run[0], run[1], float(eps), run[2]):
            command += f" --images {images}"
        return self.add("representations", run, name, command, [self.model(*run)], eps)

    def train_representations(self, run: tuple[str, str, int]) -> str:
        command = f"tla extract {self.folder(run)} --split train"
        name = "representations-train.safetensors"
        return self.add("train representations", run, name, command, [self.model(*run)])

    def maps(self, run: tuple[str, str, int]) -> str:
        eps = self.main_level(run[0])
        command = f"tla project {self.folder(run)} --eps {eps} --scale {self.scale.name}"
        needs = [self.representations(run, eps)]
        if self.scale.pair_settings(run[0]):
            self.add("pair maps", run, f"pair-maps-eps{eps}.safetensors", command, needs, eps)
        return self.add("class maps", run, f"class-maps-eps{eps}.safetensors", command, needs, eps)

    def landscapes(self, run: tuple[str, str, int]) -> str:
        few = "" if self.scale.landscape_of(run[0], run[2])["images"] else "--rise-only"
        command = f"tla landscape {self.folder(run)} --scale {self.scale.name} {few}"
        return self.add("landscapes", run, "landscapes.safetensors", command, [self.model(*run)])

    def accuracy(self, run: tuple[str, str, int]) -> str:
        options, needs = self.scale.accuracy_options(*run), [self.model(*run)]
        if options["black_box"]:
            copy = (run[0], *options["black_box"])
            options["black_box"] = f"runs/{self.scale.name}/{copy[0]}/{copy[1]}/seed{copy[2]}"
            needs.append(self.model(*copy))
        command = f"tla evaluate {self.folder(run)} {accuracy_flags(options)}"
        return self.add("accuracies", run, "accuracy-test.json", command, needs)

    def notebook(self, name: str) -> str:
        path, command = f"figures/{self.scale.name}/notebooks/{name}.ipynb", f"tla notebooks {name}"
        reads = self.reads()
        needs = sorted({each for part in ([reads[name]] if name in reads else reads.values()) for each in part()})
        self.found[path] = Item("notebook", path, f"{command} --scale {self.scale.name}", tuple(needs))
        return path

    def reads(self) -> dict[str, Callable[[], list[str]]]:
        """Notebook -> what it reads. One that is not here reads everything that the others do."""
        scale = self.scale
        every, of_first = self.runs(scale.datasets, scale.methods), self.runs(scale.datasets, scale.methods, 1)
        of_neighbours = self.runs(scale.neighbour_datasets, scale.methods)
        of_maps = self.runs([scale.dataset_of("maps")], scale.methods)
        mapped = self.runs([scale.dataset_of("maps")], scale.methods, 1)
        landscapes = scale.dataset_of("landscapes")
        of_landscapes = self.runs([landscapes], [method for method in scale.methods if method != "um"])
        beside_landscapes = of_landscapes if len(scale.seeds_of(landscapes)) > 1 else []
        swept = dict.fromkeys(method for name in scale.sweeps for method in scale.sweep(name).values())
        of_sweeps = [run for method in swept for run in scale.sweep_runs(method)]
        of_sweeps += scale.spread_runs() if scale.sweeps else []

        def maps() -> list[str]:
            return [self.maps(run) for run in mapped]

        def at_main_level(runs: list[tuple[str, str, int]]) -> list[str]:
            return [self.representations(run, self.main_level(run[0])) for run in runs]

        def noted(runs: list[tuple[str, str, int]]) -> list[str]:
            # Captions say by them how far the attack is from the strongest, where they are made anyway.
            made = self.of_table if "main_accuracy" in scale.notebooks else []
            return [self.accuracy(run) for run in runs if run in made]

        return {
            "00_quickstart": lambda: [
                self.model(*run) for run in self.runs(scale.datasets[:1], ("um", "tla"), 1)
            ],
            "fig1_3_false_classes": lambda: maps() + at_main_level(of_maps) + noted(mapped),
            "fig4_6_class_pairs": lambda: maps() + at_main_level(of_maps) + noted(mapped),
            "fig7_retrieval": lambda: at_main_level(of_maps) + noted(mapped),
            "fig8_loss_landscape": lambda: (
                [self.landscapes(run) for run in of_landscapes] + at_main_level(beside_landscapes)
            ),
            "table1_2_architectures": list,
            "table3_distance_ratios": lambda: (
                [self.representations(run, eps) for run in of_first for eps in self.levels(run[0])]
                + at_main_level(every)
                + noted(of_first)
            ),
            "table4_6_hyperparameters": lambda: (
                [self.accuracy(run) for run in of_sweeps] + at_main_level(of_sweeps)
            ),
            "main_accuracy": lambda: [self.accuracy(run) for run in self.of_table],
            "knn_and_detection": lambda: (
                at_main_level(of_neighbours)
                + [self.train_representations(run) for run in of_neighbours]
                + noted(self.runs(scale.neighbour_datasets, scale.methods, 1))
            ),
            "your_own_model": list,
            "explore_embeddings": lambda: at_main_level(of_maps),
        }

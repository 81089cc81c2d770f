"""The files that describe the environment agree: pyproject.toml, constraints.txt, environment.yml and the oracles'.

Each check is a function from file contents to a list of problems, empty when all is well, so that the tests can also
hand it spoilt copies and see that it objects.
"""

import copy
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
ORACLES = (ROOT / "requirements-oracles.txt").read_text()

# What conda calls by another name than the package index does.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "snakemake": "snakemake-minimal"}
NOT_ON_CONDA = {"pyautoattack"}
MODELS = "models"  # the extra for models of other libraries: neither pinned nor in environment.yml
FAISS = {"faiss-cpu", "faiss-gpu"}


# --- readers -----------------------------------------------------------------------------------------------------


def named(requirements):
    """{canonical name: lower bound and the like, as text} of requirement lines such as ``"torch>=2.11"``."""
    parsed = [Requirement(line) for line in requirements]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in parsed}


def core(project):
    return named(project["project"]["dependencies"])


def extras(project):
    return {extra: named(lines) for extra, lines in project["project"]["optional-dependencies"].items()}


def all_named(project, leave_out=()):
    """Everything the project names, in the core and in each extra not left out."""
    found = core(project)
    for extra, requirements in extras(project).items():
        if extra not in leave_out:
            found |= requirements
    return found


def lines_of(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pins_of(text):
    """{canonical name: pinned version} of the lines that are exactly ``name==version``, markers allowed."""
    pins = {}
    for line in lines_of(text):
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)(\s*;.*)?", line)
        if match:
            pins[canonicalize_name(match[1])] = match[2]
    return pins


# --- checks ------------------------------------------------------------------------------------------------------


def environment_problems(project, environment):
    """Where environment.yml and pyproject.toml (core and every extra but cpu and models) differ."""
    problems, conda = [], {}
    for spec in (entry for entry in environment["dependencies"] if isinstance(entry, str)):
        try:
            parsed = MatchSpec(spec, strict=True)
        except Exception as error:  # rattler's exceptions have no common public class
            problems.append(f"{spec!r} is not a conda spec: {error}")
            continue
        conda[parsed.name.normalized] = str(parsed.version or "")
    sections = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    from_pip = named(line for section in sections for line in section)

    expected = {"python": project["project"]["requires-python"], "pip": ""} | named(project["build-system"]["requires"])
    expected_from_pip = {}
    for name, bound in all_named(project, leave_out=["cpu", MODELS]).items():
        if name in NOT_ON_CONDA:
            expected_from_pip[name] = bound
        else:
            expected[CONDA_NAMES.get(name, name)] = bound
    for kind, wanted, got in (("conda", expected, conda), ("pip", expected_from_pip, from_pip)):
        problems += [f"{kind}: {name}{wanted[name]} is missing" for name in sorted(wanted.keys() - got.keys())]
        problems += [f"{kind}: {name} is not in pyproject.toml" for name in sorted(got.keys() - wanted.keys())]
        problems += [
            f"{kind}: {name} is {got[name]!r} here and {wanted[name]!r} in pyproject.toml"
            for name in sorted(wanted.keys() & got.keys())
            if got[name] != wanted[name]
        ]
    if sections and "pip" not in conda:
        problems.append("a pip section needs pip among the packages")
    return problems


def constraint_problems(project, constraints, oracles):
    """Whether constraints.txt pins all that is named, within its bounds, once each, and by version alone."""
    pins, problems = pins_of(constraints), []
    seen = set()
    for line in lines_of(constraints):
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)(\s*;.*)?", line)
        if not match:
            problems.append(f"{line!r} is not name==version")
        elif (key := (canonicalize_name(match[1]), (match[3] or "").strip())) in seen:
            problems.append(f"{match[1]} is pinned twice")
        else:
            seen.add(key)
    for name, bound in all_named(project, leave_out=[MODELS]).items():
        if name not in pins:
            problems.append(f"{name} is not pinned")
        elif not Requirement(f"{name}{bound}").specifier.contains(pins[name]):
            problems.append(f"{name}=={pins[name]} does not satisfy {bound}")
    problems += [
        f"{name} is {pins[name]} here and {version} in requirements-oracles.txt"
        for name, version in pins_of(oracles).items()
        if pins.get(name, version) != version
    ]
    return problems


def address_problems(*texts):
    """Registries are the user's own setting: no file names one."""
    pattern = re.compile(r"\S*://\S*|--(?:extra-)?index-url|--find-links|--trusted-host|^\s*-[if]\s.*", re.MULTILINE)
    return [f"names an address: {found!r}" for text in texts for found in pattern.findall(text)]


def faiss_problems(project):
    """faiss-cpu and faiss-gpu own the same module: [cpu] and [gpu] have one each, nothing else has any."""
    problems = [f"the core names {name}" for name in sorted(FAISS & core(project).keys())]
    wanted = {"cpu": {"faiss-cpu"}, "gpu": {"faiss-gpu"}}
    for extra, requirements in extras(project).items():
        got = FAISS & requirements.keys()
        if got != wanted.get(extra, set()):
            problems.append(f"[{extra}] names {sorted(got)} instead of {sorted(wanted.get(extra, set()))}")
    return problems + [f"[{extra}] is missing" for extra in sorted(wanted.keys() - extras(project).keys())]


def torch_problems(torch, torchvision, requirement):
    """Whether two versions were released together: torch 2.N with torchvision 0.(N + 15), and as it says itself.

    torchvision's metadata has a lower bound on torch only, so the numbers have to be compared as well.
    """
    problems = []
    if not requirement.specifier.contains(torch):
        problems.append(f"torchvision {torchvision} requires {requirement}, not torch {torch}")
    if (Version(torch).major, Version(torch).minor + 15) != (2, Version(torchvision).minor):
        problems.append(f"torchvision {torchvision} was not released with torch {torch}")
    return problems


def package_problems(project, root):
    """Whether pyproject.toml lists the packages in the tree, the folders with an __init__.py, and no others."""
    listed = set(project["tool"]["setuptools"]["packages"])
    files = [file for top in ("tla_core", "analysis") for file in (root / top).rglob("__init__.py")]
    found = {".".join(file.parent.relative_to(root).parts) for file in files}
    problems = [f"{name} is not listed" for name in sorted(found - listed)]
    return problems + [f"{name} is listed, but has no __init__.py" for name in sorted(listed - found)]


# --- the files as they are ---------------------------------------------------------------------------------------


def test_environment_yml_names_what_pyproject_names():
    assert environment_problems(PYPROJECT, ENVIRONMENT) == []


def test_constraints_pin_what_pyproject_names():
    assert constraint_problems(PYPROJECT, CONSTRAINTS, ORACLES) == []


def test_no_registry_is_named():
    texts = [CONSTRAINTS, ORACLES] + [(ROOT / name).read_text() for name in ("environment.yml", "Makefile", ".ci/run")]
    assert address_problems(*texts) == []


def test_one_faiss_in_each_extra_and_none_in_the_core():
    assert faiss_problems(PYPROJECT) == []


def test_pyproject_lists_the_packages_in_the_tree():
    assert package_problems(PYPROJECT, ROOT) == []


def test_lower_bounds_of_torch_and_torchvision_belong_together():
    bounds = {name: core(PYPROJECT)[name].removeprefix(">=") for name in ("torch", "torchvision")}
    assert torch_problems(**bounds, requirement=Requirement("torch")) == []


def test_pinned_torch_and_torchvision_belong_together():
    pins = pins_of(CONSTRAINTS)
    installed = Version(importlib.metadata.version("torchvision")).base_version
    if (Path(sys.prefix) / "conda-meta").is_dir() and installed != pins["torchvision"]:
        pytest.skip("a conda environment does not follow constraints.txt")
    assert installed == pins["torchvision"], "the environment is not the one that constraints.txt describes: make env"
    requirements = [Requirement(line) for line in importlib.metadata.requires("torchvision")]
    [on_torch] = [requirement for requirement in requirements if requirement.name == "torch"]
    assert torch_problems(pins["torch"], pins["torchvision"], on_torch) == []


def test_torchvision_finds_its_compiled_operators():
    # The sign of two wheels that do not belong together: torchvision imports, or even not, without torchvision::nms.
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


# --- spoilt copies -----------------------------------------------------------------------------------------------


def with_conda(old, new):
    environment = copy.deepcopy(ENVIRONMENT)
    environment["dependencies"] = [new if entry == old else entry for entry in environment["dependencies"]]
    environment["dependencies"] = [entry for entry in environment["dependencies"] if entry is not None]
    assert environment != ENVIRONMENT
    return environment


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("pytorch >=2.11", None, "pytorch>=2.11 is missing"),
        ("pytorch >=2.11", "torch >=2.11", "torch is not in pyproject.toml"),
        ("numpy >=2.0", "numpy >=1.26", "numpy is '>=1.26' here and '>=2.0' in pyproject.toml"),
        ("numpy >=2.0", "numpy >=2.0,<", "'numpy >=2.0,<' is not a conda spec"),
        ("numpy >=2.0", "numpy is new", "'numpy is new' is not a conda spec"),
        ("faiss-gpu >=1.14", "faiss-cpu >=1.9", "faiss-gpu>=1.14 is missing"),
        ("python >=3.11", "python >=3.10", "python is '>=3.10' here"),
        ("setuptools >=77", "setuptools >=61", "setuptools is '>=61' here"),
        ("pip", None, "pip is missing"),
        ({"pip": ["pyautoattack>=0.2"]}, None, "pyautoattack>=0.2 is missing"),
        ({"pip": ["pyautoattack>=0.2"]}, {"pip": ["pyautoattack>=0.2", "faiss>=1"]}, "faiss is not in pyproject.toml"),
    ],
)
def test_a_spoilt_environment_yml_is_found(old, new, expected):
    assert expected in "\n".join(environment_problems(PYPROJECT, with_conda(old, new)))


def test_a_package_added_to_pyproject_alone_is_found():
    project = copy.deepcopy(PYPROJECT)
    project["project"]["optional-dependencies"]["dev"].append("hypothesis>=6")
    assert environment_problems(project, ENVIRONMENT) == ["conda: hypothesis>=6 is missing"]
    assert constraint_problems(project, CONSTRAINTS, ORACLES) == ["hypothesis is not pinned"]


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (r"^torch==.*\n", "", "torch is not pinned"),
        (r"^torch==.*", "torch==2.10.0", "torch==2.10.0 does not satisfy >=2.11"),
        (r"^torch==(.*)", r"torch==\1+cpu", "is not name==version"),
        (r"^torch==.*", "torch>=2.11", "'torch>=2.11' is not name==version"),
        (r"^torch==(.*)", r"torch==\1\ntorch==\1", "torch is pinned twice"),
        (r"^gitpython==.*", "gitpython==3.0.0", "gitpython is 3.0.0 here"),
        (r"^faiss-gpu==.*\n", "", "faiss-gpu is not pinned"),
        (r"^torch==.*", "torch @ https://example.org/torch.whl", "is not name==version"),
    ],
)
def test_spoilt_constraints_are_found(pattern, replacement, expected):
    spoilt, count = re.subn(pattern, replacement, CONSTRAINTS, flags=re.MULTILINE | re.IGNORECASE)
    assert count == 1
    assert expected in "\n".join(constraint_problems(PYPROJECT, spoilt, ORACLES))


def test_a_marker_makes_two_pins_of_one_package_possible():
    two = r'tqdm==\1; python_version < "3.12"\ntqdm==\1; python_version >= "3.12"'
    both = re.sub(r"^tqdm==(.*)", two, CONSTRAINTS, flags=re.MULTILINE)
    assert both != CONSTRAINTS
    assert constraint_problems(PYPROJECT, both, ORACLES) == []


@pytest.mark.parametrize(
    "line", ["--index-url https://example.org/simple", "-i example", "--find-links wheels", "torch @ file:///wheels/x"]
)
def test_a_named_registry_is_found(line):
    assert address_problems(CONSTRAINTS + line + "\n")


@pytest.mark.parametrize(
    ("extra", "line", "expected"),
    [
        (None, "faiss-cpu>=1.9", "the core names faiss-cpu"),
        ("gpu", "faiss-cpu>=1.9", "[gpu] names ['faiss-cpu', 'faiss-gpu'] instead of ['faiss-gpu']"),
        ("dev", "faiss-cpu>=1.9", "[dev] names ['faiss-cpu'] instead of []"),
    ],
)
def test_a_second_faiss_is_found(extra, line, expected):
    project = copy.deepcopy(PYPROJECT)
    tables = project["project"]
    (tables["optional-dependencies"][extra] if extra else tables["dependencies"]).append(line)
    assert faiss_problems(project) == [expected]


@pytest.mark.parametrize(("torch", "torchvision"), [("2.13.0", "0.29.2"), ("2.15.0", "0.29.2"), ("2.14.1", "0.28.0")])
def test_torch_and_torchvision_of_different_releases_are_found(torch, torchvision):
    assert torch_problems(torch, torchvision, Requirement("torch>=2.14.0"))


def test_a_package_missing_from_pyproject_is_found(tmp_path):
    for name in PYPROJECT["tool"]["setuptools"]["packages"]:
        folder = tmp_path.joinpath(*name.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    assert package_problems(PYPROJECT, tmp_path) == []
    (tmp_path / "analysis" / "display" / "__init__.py").unlink()
    (tmp_path / "analysis" / "new").mkdir()
    (tmp_path / "analysis" / "new" / "__init__.py").touch()
    expected = ["analysis.new is not listed", "analysis.display is listed, but has no __init__.py"]
    assert package_problems(PYPROJECT, tmp_path) == expected

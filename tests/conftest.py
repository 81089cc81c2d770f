"""Fixtures that several test files share, and when the slowest confirmations run."""

import hashlib
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from tla_core.decoded_cache import user_cache_folder

ARCHIVES_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
# archive -> (where to unpack it below the root, what is there afterwards)
ARCHIVES = {
    "mnist-raw.tar.gz": (".", "MNIST"),
    "cifar10-images.tar.gz": ("cifar10-jpeg", "cifar10-jpeg"),
    "tiny-imagenet-200-subset.tar.gz": (".", "tiny-imagenet-200"),
}


# What confirmations confirm anew at a larger size, more often, or with more than this machine has: `make test-all` runs
# them and notes of which sources; `.ci/run` runs them where these have changed since.
CONFIRMED = Path(__file__).with_name("confirmed.json")
CONFIRMED_SOURCES = ("tla_core", "checkpoints", "figures/small", "analysis/display", "analysis/tables.py")

# The files that take longest, first: two processes that share the files end together when short ones come last. Without
# xdist's --no-loadscope-reorder, which `make test` gives, those with the fewest tests would be last, however long.
SLOWEST_FIRST = (
    "slurm", "notebooks", "distributed", "report", "site", "explorer_layout", "pipeline", "explorer_browser",
    "benchmarks", "training", "faults", "model_cards", "explorer_lab", "explorer_views", "training_kill", "job_server",
    "shards",
    "evaluation", "pipeline_end", "projection", "inventory", "sweeps", "square", "redraw", "results", "register",
    "models_table", "any_method", "accuracy", "demo",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--confirm", choices=("never", "changed", "always"), default="never",
        help="run the slowest confirmations: never, where their sources changed, or always, and note that they passed",
    )  # fmt: skip


def sources_of(item) -> str:
    """What a confirmation is of: files and folders, which its marker gives as `of`; empty for other tests."""
    marker = item.get_closest_marker("confirmation")
    return " ".join(marker.kwargs.get("of", CONFIRMED_SOURCES)) if marker else ""


def digest_of(sources: str) -> str:
    """Of the files that the confirmations read, by name and content."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for source in sources.split():
        files = [root / source] if (root / source).is_file() else (root / source).rglob("*")
        for file in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
            if "results" not in file.parts:  # what `tla evaluate` leaves beside a published run
                digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def confirmed() -> dict[str, str]:
    """The digest of each group of sources when its confirmations last passed."""
    return json.loads(CONFIRMED.read_text()) if CONFIRMED.is_file() else {}


def pytest_collection_modifyitems(config, items):
    marked = {item: sources_of(item) for item in items if sources_of(item)}
    when, noted = config.getoption("--confirm"), confirmed()
    left_out = {
        sources
        for sources in set(marked.values())
        if when == "never" or (when == "changed" and noted.get(sources) == digest_of(sources))
    }
    deselected = [item for item, sources in marked.items() if sources in left_out]
    config.hook.pytest_deselected(items=deselected)
    places = {f"test_{name}.py": place for place, name in enumerate(SLOWEST_FIRST)}
    kept = [item for item in items if item not in deselected]
    items[:] = sorted(kept, key=lambda item: places.get(item.path.name, len(places)))  # else in the order they have
    for item, sources in marked.items():
        item.user_properties.append(("confirmation", sources))


def pytest_sessionfinish(session, exitstatus):
    """Note what was confirmed: of a run of all tests that passed, the groups of which nothing was skipped."""
    config = session.config
    whole = not config.option.keyword and config.args == config.getini("testpaths")
    if config.getoption("--confirm") == "never" or not whole or exitstatus or hasattr(config, "workerinput"):
        return
    outcomes = config.pluginmanager.get_plugin("terminalreporter").stats
    ran, skipped = (
        {value for report in outcomes.get(kind, ()) for name, value in report.user_properties if name == "confirmation"}
        for kind in ("passed", "skipped")
    )
    if ran - skipped:
        noted = confirmed() | {sources: digest_of(sources) for sources in sorted(ran - skipped)}
        CONFIRMED.write_text(json.dumps(noted, indent=2) + "\n")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def browser():
    """A Chromium; for the tests of the explorer."""
    from explorer_sets import launched

    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder with MNIST/raw, cifar10-jpeg and tiny-imagenet-200: TLA_DATA, or the archives unpacked once."""
    if given := os.environ.get("TLA_DATA"):
        missing = [name for _, name in ARCHIVES.values() if not Path(given, name).is_dir()]
        if missing:
            pytest.skip(f"TLA_DATA={given} has no {', '.join(missing)}")
        return Path(given)
    root = user_cache_folder()
    if all((root / name).is_dir() for _, name in ARCHIVES.values()):
        return root
    if not (ARCHIVES_FOLDER / "SHA256SUMS").is_file():
        pytest.skip(f"no real data: TLA_DATA is not set, and there is no {ARCHIVES_FOLDER}")
    lines = (ARCHIVES_FOLDER / "SHA256SUMS").read_text().splitlines()
    checksums = {name: checksum for checksum, name in (line.split() for line in lines)}
    root.mkdir(parents=True, exist_ok=True)
    for archive, (below, name) in ARCHIVES.items():
        if not (root / name).is_dir():
            _unpack(ARCHIVES_FOLDER / archive, checksums[archive], root, below, name)
    return root


def _unpack(archive: Path, checksum: str, root: Path, below: str, name: str) -> None:
    if not archive.is_file():
        pytest.skip(f"no real data: {archive} is missing")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != checksum:
        pytest.skip(f"{archive} is damaged: got sha256 {found}, expected {checksum}")
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as temporary:
        with tarfile.open(archive) as file:
            file.extractall(Path(temporary, below), filter="data")
        try:
            os.replace(Path(temporary, name), root / name)
        except OSError:
            assert (root / name).is_dir(), "another process unpacked it meanwhile, or it could not be renamed"

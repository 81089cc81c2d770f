"""The cluster profiles: their rules are those of the Snakefile, and dry runs of Snakemake accept them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from tiny import REPOSITORY, project_folder

PROFILES = REPOSITORY / "workflow" / "profiles"
NAMES = ("local", "slurm")
PLUGINS = {"slurm": ("snakemake_executor_plugin_slurm",)}
ON_A_GPU = {"train", "extract", "extract_train", "landscape", "evaluate"}


def profile(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text(encoding="utf-8"))


def rules():
    text = (REPOSITORY / "workflow" / "Snakefile").read_text(encoding="utf-8")
    return set(re.findall(r"^rule (\w+):", text, re.M)) - {"all"}


def uncommented(name):
    """The same profile with what it offers in comments."""
    text = (PROFILES / name / "config.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"^( *)# ( *(?:[\w-]+:(?: .*)?|- .*))$", r"\1\2", text, flags=re.M))


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_that_is_given_resources_is_one_of_the_snakefile(name):
    assert set(profile(name).get("set-resources", {})) <= rules()


def test_jobs_that_run_a_network_get_one_gpu_and_no_others_do():
    resources = profile("slurm")["set-resources"]
    assert {rule for rule, wanted in resources.items() if wanted.get("gpu")} == ON_A_GPU
    assert all(resources[rule]["gpu"] == 1 for rule in ON_A_GPU)


def test_on_slurm_no_job_with_a_gpu_counts_its_tasks_and_every_rule_has_its_time():
    resources = profile("slurm")["set-resources"]
    assert all(resources[rule]["tasks"] == 0 for rule in ON_A_GPU)
    assert set(resources) == rules()
    assert all("runtime" in wanted for wanted in resources.values())


def test_on_slurm_one_line_says_how_many_gpus_and_one_how_much_memory():
    text = (PROFILES / "slurm" / "config.yaml").read_text(encoding="utf-8")
    assert len(re.findall(r"^ *gpu:", text, re.M)) == 1
    without = yaml.safe_load(text.replace("gpu: 1", "gpu: 0"))["set-resources"]
    assert not any(wanted.get("gpu") for wanted in without.values())
    memory = yaml.safe_load(text)["default-resources"]["mem_mb"]
    assert [eval(memory, {"attempt": attempt}) for attempt in (1, 2, 3)] == [8000, 15000, 15000]
    own = {
        rule: wanted["mem_mb"] for rule, wanted in yaml.safe_load(text)["set-resources"].items() if "mem_mb" in wanted
    }
    assert own == {"manifest": 2000}


def test_what_the_local_profile_offers_in_comments_is_valid_too():
    offered = uncommented("local")
    assert offered["resources"] == ["gpu=1"]
    assert set(offered["set-resources"]) == ON_A_GPU


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_accepts_the_profile(name, tmp_path):
    missing = [plugin for plugin in PLUGINS.get(name, ()) if importlib.util.find_spec(plugin) is None]
    if missing:
        pytest.skip(f"{name}: not installed: {', '.join(missing)}")
    shutil.copytree(REPOSITORY / "workflow", tmp_path / "workflow")
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    project_folder(tmp_path)
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--directory", str(tmp_path)]
    command += ["--profile", str(tmp_path / "workflow" / "profiles" / name), "--config", "scale=mini", "-n"]
    environment = {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "This was a dry-run" in ran.stdout + ran.stderr
    (resources,) = set(re.findall(r"rule train:\n(?:    .*\n)*?    resources: (.*)", ran.stdout + ran.stderr)) or {""}
    assert ("gpu=1" in resources) == (name != "local")
    assert ("tasks=0" in resources) == (name == "slurm")

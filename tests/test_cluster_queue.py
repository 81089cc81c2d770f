"""Jobs that an earlier pipeline has left in SLURM's queue, as `squeue` tells of them; tests/cluster has a real one."""

import os

import pytest

from analysis.command import cluster_queue
from analysis.command.cluster_queue import submitted_jobs, wait_for_jobs
from analysis.scales.lock import PipelineError


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Give `squeue` the answers of successive calls; the last one is repeated."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "bin").mkdir()

    def answers(*texts, status=0):
        for number, text in enumerate(texts):
            (tmp_path / f"answer-{number}").write_text(text)
        lines = [
            "#!/bin/sh", f"cd {tmp_path}", "echo >> calls", "number=$(($(wc -l < calls) - 1))",
            f"[ $number -lt {len(texts)} ] || number={len(texts) - 1}", "cat answer-$number", f"exit {status}",
        ]  # fmt: skip
        (tmp_path / "bin" / "squeue").write_text("\n".join(lines) + "\n")
        (tmp_path / "bin" / "squeue").chmod(0o755)

    yield answers


def line(number, log):
    """As `--Format` prints it: in columns, filled with blanks."""
    return f"{number:<30}{log!s:<4000}\n"


def test_only_jobs_of_this_project_count(squeue, tmp_path):
    root = tmp_path / "a project"
    squeue(
        line(17, root / ".snakemake/slurm_logs/rule_train/mnist_tla_0/%j.log")
        + line(18, root / ".snakemake/slurm_logs/rule_manifest/18.log")
        + line(19, tmp_path / "another/.snakemake/slurm_logs/rule_train/mnist_tla_0/19.log")
        + line(20, "/dev/null")
        + "21\n"
    )
    assert submitted_jobs(root) == {"17": "train mnist_tla_0", "18": "manifest"}


def test_where_no_slurm_is_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submitted_jobs(tmp_path) == {}


def test_it_waits_until_they_have_ended_and_says_so_once(squeue, tmp_path, capsys):
    jobs = [line(n, tmp_path / f".snakemake/slurm_logs/rule_train/mnist_um_{n}/{n}.log") for n in (7, 8)]
    squeue("".join(jobs), "".join(jobs), jobs[1], "")
    wait_for_jobs(tmp_path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "7 (train mnist_um_7), 8 (train mnist_um_8)" in said and "`scancel 7 8`" in said
    assert (tmp_path / "calls").read_text().count("\n") == 4


def test_a_slurm_that_does_not_answer_is_asked_again_and_named(squeue, tmp_path):
    squeue("", status=1)
    with pytest.raises(PipelineError, match=r"SLURM does not say which jobs.*`squeue --me` answers"):
        submitted_jobs(tmp_path)
    assert (tmp_path / "calls").read_text().count("\n") == cluster_queue._ATTEMPTS

"""The launchers for clusters, as text: nothing here talks to one."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cluster

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/countdown_cpu.py:smoke"
ARGUMENTS = [CONFIG, "--workdir=/mnt/runs/a b", "--config.seed=1"]
LAUNCH = (
    f"python -m experiments.launch --processes=auto {CONFIG}"
    " '--workdir=/mnt/runs/a b' --config.seed=1"
)


def test_a_tpu_slice_is_created_filled_and_started_on_all_workers():
    create, archive, copy, install, run = cluster.tpu_vm(
        ARGUMENTS, "math", "us-west4-a", "v5litepod-64", share="10.0.0.2:/runs", spot=True
    )
    assert shlex.join(create) == (
        "gcloud compute tpus tpu-vm create math --zone=us-west4-a"
        " --accelerator-type=v5litepod-64 --version=v2-alpha-tpuv5-lite --spot"
    )
    assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
    assert copy[-3:] == ["math:", "--zone=us-west4-a", "--worker=all"]
    assert all("--worker=all" in command for command in (copy, install, run))
    assert "mount -t nfs 10.0.0.2:/runs /mnt/runs" in install[-1] and "jax[tpu]" in install[-1]
    assert f"nohup {LAUNCH} > ~/launch.log" in run[-1] and run[-1].endswith("&")
    plain = cluster.tpu_vm(ARGUMENTS, "math", "us-west4-a", "v6e-16")
    assert "--spot" not in plain[0] and "mount" not in plain[3][-1]
    for command in (install, run):  # what the machine's shell gets is a program
        text = command[-1].removeprefix("--command=")
        assert subprocess.run(["bash", "-n", "-c", text]).returncode == 0


def test_a_slice_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match=r"--machine='v99-8' begins with none of v4-, v5litepod-"):
        cluster.tpu_vm(ARGUMENTS, "math", "z", "v99-8")


def test_gke_gets_one_jobset_that_is_started_again():
    (command,) = cluster.gke(
        ARGUMENTS, "math", "z", "v5p-128", "mine", "registry/image:1", slices=2
    )
    assert command[:3] == ["xpk", "workload", "create"]
    assert f"--command={LAUNCH}" in command and "--num-slices=2" in command
    assert "--max-restarts=100" in command and "--docker-image=registry/image:1" in command


def test_slurm_runs_one_process_per_node_and_requeues_what_was_stopped(tmp_path):
    script = cluster.slurm(ARGUMENTS, "math", 4, 12, ["--partition=a100", "--gpus-per-node=8"])
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=math\n#SBATCH --nodes=4\n")
    assert "#SBATCH --partition=a100\n#SBATCH --gpus-per-node=8\n\n" in script
    assert f"\nsrun {LAUNCH}\n" in script
    calls = tmp_path / "calls"
    for name, status in (("srun", 143), ("scontrol", 0)):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/bash\necho {name} "$@" >> {calls}\nexit {status}\n')
        tool.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "77"}
    done = subprocess.run(["bash"], input=script, text=True, env=path)
    assert done.returncode == 143
    assert calls.read_text().splitlines() == [
        "srun " + LAUNCH.replace("'", ""),
        "scontrol requeue 77",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine=tpu_vm", "--", *ARGUMENTS], "--engine=tpu_vm needs --zone."),
        (["--engine=slurm", "--", "--config=x"], "--workdir=… is missing"),
        (["--engine=gke", "--zone=z", "--machine=v6e-8", "--", *ARGUMENTS], "needs --cluster."),
        (
            ["--engine=slurm", "--", "--config=configs/math_llama32_3b.py", "--workdir=/r/x"],
            "--config.device.pretrained=… is missing",
        ),
        (
            ["--engine=slurm", "--", *ARGUMENTS, "--config.sede=2"],
            '--config.sede is not in the config. Did you mean "seed"',
        ),
        (
            ["--engine=slurm", "--", *ARGUMENTS, "--workdir=runs/x"],
            "--workdir=runs/x must be an absolute path",
        ),
        (
            ["--engine=slurm", "--", "--config=configs/regimes_cpu.py", "--workdir=/r/x"],
            "--config is for experiments.regimes, not for experiments.launch.",
        ),
    ],
)
def test_what_is_missing_is_told(flags, message):
    done = run(*flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_prints_and_runs_nothing():
    done = run("--engine=tpu_vm", "--zone=z", "--machine=v4-8", "--dry_run", "--", *ARGUMENTS)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert not (ROOT / cluster.SOURCE).exists()
    done = run("--engine=slurm", "--dry_run", "--", *ARGUMENTS)
    assert done.stdout == cluster.slurm(ARGUMENTS, "offload", 1, 24)


def run(*flags):
    command = [sys.executable, "-m", "experiments.cluster", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

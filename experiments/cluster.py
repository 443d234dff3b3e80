r"""Starts `experiments.launch` on machines that somebody else manages: Cloud TPU, GKE or SLURM.

    python -m experiments.cluster --engine=tpu_vm --name=math --zone=us-west4-a \
        --machine=v5litepod-64 --share=10.0.0.2:/runs --dry_run -- \
        --config=configs/math_llama32_3b.py --workdir=/mnt/runs/math \
        --config.device.pretrained=/mnt/runs/Llama-3.2-3B-Instruct \
        --config.task.files=/mnt/runs/data/math

What follows `--` goes to the launcher. With `--dry_run` the commands, or the batch script, are
printed and nothing is run. Workdir, checkpoint and data must be in folders that all machines share.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from experiments.flags import MISTAKES, sentence
from offload_jax.settings import check_program, require

ENGINE = flags.DEFINE_enum(
    "engine",
    None,
    ["tpu_vm", "gke", "slurm"],
    "tpu_vm: a Cloud TPU slice by gcloud; gke: a JobSet by xpk; slurm: a batch job by sbatch.",
)
NAME = flags.DEFINE_string("name", "offload", "Of the slice, workload or job.")
MACHINE = flags.DEFINE_string("machine", None, "tpu_vm, gke: the slice, such as v5litepod-64.")
ZONE = flags.DEFINE_string("zone", None, "tpu_vm, gke: Google Cloud's zone.")
SPOT = flags.DEFINE_bool("spot", False, "tpu_vm: cheaper, may be taken away; the run goes on.")
SHARE = flags.DEFINE_string("share", None, "tpu_vm: NFS share, mounted at /mnt/runs everywhere.")
CLUSTER = flags.DEFINE_string("cluster", None, "gke: the cluster's name.")
IMAGE = flags.DEFINE_string("image", None, "gke: a container image with this project installed.")
SLICES = flags.DEFINE_integer("slices", 1, "gke: how many slices.", lower_bound=1)
NODES = flags.DEFINE_integer("nodes", 1, "slurm: machines; one process on each.", lower_bound=1)
HOURS = flags.DEFINE_integer("hours", 24, "slurm: time limit.", lower_bound=1)
OPTIONS = flags.DEFINE_multi_string("option", [], "slurm: a further #SBATCH option, repeatable.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be run.")

# Of the slice's virtual machines, by the beginning of --machine.
RUNTIMES = {
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}
SOURCE = "offload_jax.tar.gz"

Command = list[str]


def check_settings(arguments: Command) -> None:
    """Raises ValueError at settings with which the launcher could not begin on a cluster.

    A checkpoint and data that only the cluster has cannot be looked at from here.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    for name in ("workdir", "processes"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    try:
        rest = values(["launch", *arguments])
        given = config.value.to_dict()
    except MISTAKES as error:
        raise ValueError(f"After --: {sentence(error, arguments)}") from None
    require(len(rest) == 1, f"After --: unexpected argument {rest[-1]!r}.")
    check_program(given, "experiments.launch")
    device, task = given.get("device", {}), given.get("task", {})
    pretrained = device.get("pretrained")
    require(
        pretrained is not None or ("layers" in device and task.get("name") != "math"),
        "After --: --config.device.pretrained=… is missing, a folder that all machines see.",
    )
    for name, path in {
        "workdir": values.workdir,
        "config.device.pretrained": pretrained,
        "config.task.files": task.get("files"),
    }.items():
        require(
            path is None or Path(path).is_absolute(),
            f"After --: --{name}={path} must be an absolute path to a folder that all machines"
            " share.",
        )


def launch(arguments: Command) -> str:
    """The launcher's command line, as a shell reads it."""
    command = ["python", "-m", "experiments.launch", "--processes=auto", *arguments]
    return shlex.join(command)


def tpu_vm(
    arguments: Command,
    name: str,
    zone: str,
    machine: str,
    share: str | None = None,
    spot: bool = False,
) -> list[Command]:
    """Creates a slice, puts this project on all its machines, and starts the job in background.

    Raises:
        ValueError: the machine is of no known kind.
    """
    runtimes = [runtime for kind, runtime in RUNTIMES.items() if machine.startswith(kind)]
    require(
        len(runtimes) == 1,
        f"--machine={machine!r} begins with none of {', '.join(RUNTIMES)}.",
    )
    gcloud, where = ["gcloud", "compute", "tpus", "tpu-vm"], [f"--zone={zone}"]
    create = [*gcloud, "create", name, *where, f"--accelerator-type={machine}",
              f"--version={runtimes[0]}", *(["--spot"] if spot else [])]  # fmt: skip
    mount = (
        "sudo mkdir -p /mnt/runs && sudo apt-get install -y -q nfs-common"
        f" && sudo mount -t nfs {shlex.quote(share)} /mnt/runs && "
        if share
        else ""
    )
    install = (
        f"{mount}mkdir -p offload_jax && tar xzf {SOURCE} -C offload_jax && cd offload_jax"
        # uv, because the machines' own Python may be older than what this project needs.
        " && python3 -m pip install -q --user uv"
        " && ~/.local/bin/uv venv -q --python '>=3.11' ~/venv"
        " && ~/.local/bin/uv pip install -q --python ~/venv -e '.[llm,math,cloud]' 'jax[tpu]'"
    )
    run = (
        f"cd offload_jax && source ~/venv/bin/activate && nohup {launch(arguments)}"
        " > ~/launch.log 2>&1 < /dev/null &"
    )

    def everywhere(command: str) -> Command:
        return [*gcloud, "ssh", name, *where, "--worker=all", f"--command={command}"]

    return [
        create,
        ["git", "archive", "--format=tar.gz", f"--output={SOURCE}", "HEAD"],
        [*gcloud, "scp", SOURCE, f"{name}:", *where, "--worker=all"],
        everywhere(install),
        everywhere(run),
    ]


def gke(
    arguments: Command,
    name: str,
    zone: str,
    machine: str,
    cluster: str,
    image: str,
    slices: int = 1,
) -> list[Command]:
    """Submits a JobSet with xpk; Kubernetes starts it again when it fails, and it resumes."""
    return [
        ["xpk", "workload", "create", f"--workload={name}", f"--cluster={cluster}",
         f"--zone={zone}", f"--tpu-type={machine}", f"--num-slices={slices}",
         f"--docker-image={image}", "--max-restarts=100", f"--command={launch(arguments)}"]
    ]  # fmt: skip


def slurm(arguments: Command, name: str, nodes: int, hours: int, options: Command = ()) -> str:
    """A batch script: one process per node. SIGTERM comes two minutes before the time is over; the
    run saves its step, and the job goes back into the queue, where the same command resumes it.
    """
    lines = [
        f"--job-name={name}", f"--nodes={nodes}", "--ntasks-per-node=1", "--exclusive",
        f"--time={hours}:00:00", "--signal=TERM@120", "--requeue", "--open-mode=append", *options,
    ]  # fmt: skip
    header = "\n".join(f"#SBATCH {line}" for line in lines)
    return (
        f"#!/bin/bash\n{header}\n\n"
        f"srun {launch(arguments)}\n"
        "status=$?\n"
        "# 143: stopped by SIGTERM after a checkpoint.\n"
        'if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi\n'
        'exit "$status"\n'
    )


def main(argv: Command) -> None:
    """Prints or runs; what is missing is one sentence on stderr, status 2."""
    arguments = argv[1:]
    try:
        given = " ".join(arguments)
        for flag in ("--config=", "--workdir="):
            require(flag in given, f"After -- the launcher's {flag}… is missing.")
        check_settings(arguments)
        if ENGINE.value == "slurm":
            script = slurm(arguments, NAME.value, NODES.value, HOURS.value, OPTIONS.value)
            if DRY_RUN.value:
                print(script, end="")
            else:
                subprocess.run(["sbatch"], input=script, text=True, check=True)
            return
        for command in _commands(arguments):
            print(shlex.join(command), flush=True)
            if not DRY_RUN.value:
                subprocess.run(command, check=True)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _commands(arguments: Command) -> list[Command]:
    needed = {"zone": ZONE.value, "machine": MACHINE.value}
    if ENGINE.value == "gke":
        needed |= {"cluster": CLUSTER.value, "image": IMAGE.value}
    for flag, value in needed.items():
        require(bool(value), f"--engine={ENGINE.value} needs --{flag}.")
    if ENGINE.value == "gke":
        return gke(arguments, NAME.value, slices=SLICES.value, **needed)
    return tpu_vm(arguments, NAME.value, share=SHARE.value, spot=SPOT.value, **needed)


if __name__ == "__main__":
    flags.mark_flag_as_required("engine")
    app.run(main)

"""The scripts that start workers, with stand-ins for Slurm and Kubernetes."""

import os
import re
import subprocess
import textwrap

import pytest
from programs import ROOT

from moco_keras.distribution import cluster

_RECORD = '#!/bin/bash\necho "$TF_CONFIG" > "$LOG"; echo "$@" >> "$LOG"\n'


@pytest.fixture
def start(tmp_path):
    """Runs a script with stand-in commands; returns what a worker received."""

    def run(script, arguments=(), commands=(), **env):
        for name, text in {"python": _RECORD, **dict(commands)}.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        log = tmp_path / "log"
        subprocess.run(
            ["bash", "-c", script, "script", *arguments],
            check=True,
            env={
                **os.environ,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "PYTHON": str(tmp_path / "python"),
                "LOG": str(log),
                **env,
            },
        )
        *config, command = log.read_text().splitlines()
        return "\n".join(config), command

    return run


def test_slurm_starts_and_restarts_workers(start, tmp_path):
    script = (ROOT / "recipes/multiworker.sbatch").read_text()
    steps = tmp_path / "steps"
    # Fails twice. "$1" is an option of `srun` itself.
    srun = (
        f'#!/bin/bash\necho step >> {steps}\n[ "$(wc -l < {steps})" = 3 ] || '
        'exit 1\nshift\nSLURM_PROCID=1 exec "$@"\n'
    )
    config, command = start(
        script,
        ["--flagfile=some.flags", "--seed=3"],
        {
            "srun": srun,
            "scontrol": '#!/bin/bash\n[ "$*" = "show hostnames node[1-2]" ] && '
            "printf 'node1\\nnode2\\n'\n",
        },
        SLURM_JOB_ID="17",
        SLURM_JOB_NODELIST="node[1-2]",
    )
    addresses, own = cluster.parse(config)
    assert (addresses, own) == (["node1:12345", "node2:12345"], "node2:12345")
    assert command == (
        "-m moco_keras.recipes.cifar10 --strategy=multiworker "
        "--run_dir=saved_models/moco-17 --flagfile=some.flags --seed=3"
    )
    assert steps.read_text() == "step\n" * 3


def test_kubernetes_starts_workers(start):
    manifest = (ROOT / "recipes/multiworker.yaml").read_text()
    (script,) = re.findall(r"- \|\n(.*?)\n {10}ports:", manifest, re.DOTALL)
    config, command = start(textwrap.dedent(script), JOB_COMPLETION_INDEX="1")
    addresses, own = cluster.parse(config)
    assert (addresses, own) == (
        ["moco-0.moco:12345", "moco-1.moco:12345"],
        "moco-1.moco:12345",
    )
    assert command.startswith("-m moco_keras.recipes.cifar10 --strategy=multi")

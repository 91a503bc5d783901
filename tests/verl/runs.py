"""`python -m verl.trainer.main_ppo` as a child process, and the metrics that it prints."""

import os
import re
import signal
import subprocess

from lenvm_rl.demo import policy_path
from lenvm_rl.model import load_tokenizer

TIMEOUT = 500


def start(command, work):
    """The running process; its output, errors included, is a pipe."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "300",  # a busy machine imports slowly
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(work),
        "TENSORBOARD_DIR": str(work / "tensorboard"),
    }
    for rank in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        environment.pop(rank, None)
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def kill(process):
    """As `kill -9` of the whole run."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run(command, work, *, fails=False):
    """The whole output of a run that ends by itself."""
    process = start(command, work)
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert (process.returncode != 0) == fails, output[-5000:]
    return output


def steps(output, metric):
    """{step: value} of a metric that verl's console logger printed."""
    found = re.findall(rf"step:(\d+) - .*?\b{re.escape(metric)}:(\S+)", output)
    return {int(step): float(value) for step, value in found}


def asked_length(prompt):
    """The tokens that a prompt of the demo asks for, `about 120 tokens: 3 + 4 = ?`, of its ids."""
    text = load_tokenizer(policy_path()).decode(prompt)
    return int(re.search(r"about (\d+) tokens: ", text)[1])

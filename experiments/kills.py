"""Kill a run at random moments, go on with it, and compare it with one left alone.

    python -m experiments.kills --kills 50

The run is a small `mnist_vae` on images of this script's own. It is killed by SIGKILL
at a moment drawn evenly from the time that the undisturbed run takes, from the start of
the process to its end, and started again, until it is finished; then the next one. Of
every finished run the last and the best checkpoint, each record of metrics.jsonl but
its clock, and the result must be those of the undisturbed run bit for bit.

Expect 9 finished runs, all the same (seed 0; 4 of the 50 kills fell before the first
step, 33 into training with its checkpoints, 13 into the evaluation and the pictures; on
another machine, at another speed, others will).
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import mnist_vae
from vi_jax import runs
from vi_jax.checkpoints import open_checkpoints
from vi_jax.experiment import initial_state

KNOBS = {
    "epochs": 30,
    "batch-size": 20,
    "latents": 2,
    "eval-samples": 500,
    "scan-steps": 10,
    "checkpoint-epochs": 1,
    "patience": 30,  # as many as there are validations: the best state is the outcome
}
CLOCKS = {"seconds", "train_seconds", "eval_seconds"}


def images(file: Path) -> Path:
    """4 x 4 images whose rows are on or off together, in an .npz."""
    rng = np.random.default_rng(0)
    make = lambda n: np.repeat(rng.integers(0, 256, (n, 4, 1)), 4, axis=2)
    np.savez(file, x_train=make(600), x_test=make(200))
    return file


def start(data: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.mnist_vae"]
    knobs = {**KNOBS, "dataset": data, "run-dir": folder}
    command += [word for name, value in knobs.items() for word in (f"--{name}", value)]
    log = open(folder.with_suffix(".log"), "a")
    return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)


def content(folder: Path) -> dict[str, Any]:
    """What has to be the same in every run: the numbers, and the states."""
    strip = lambda record: {k: v for k, v in record.items() if k not in CLOCKS}
    knobs = runs.read_knobs(folder, "mnist_vae", mnist_vae.Knobs)
    like = initial_state(mnist_vae.build(knobs))
    restore = open_checkpoints(folder / "checkpoints").restore
    return {
        "result": strip(runs.read_json(folder / "result.json")),
        "metrics": list(map(strip, runs.read_metrics(folder))),
        "log p(x)": dict(np.load(folder / f"test-{KNOBS['eval-samples']}.npz")),
        "states": jax.tree.map(np.asarray, [restore(like), restore(like, "best")]),
    }


def phase(folder: Path) -> str:
    """Where a run that was killed stood."""
    if (folder / "result.json").exists():
        return "at the end"
    records = runs.read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    if not records:
        return "before the first step"
    built = mnist_vae.build(runs.read_knobs(folder, "mnist_vae", mnist_vae.Knobs))
    step = records[-1]["step"]
    return "evaluation" if step == built.num_steps else f"step {step}"


def main(kills: int = 50, seed: int = 0, out: Path = Path("runs/kills")) -> None:
    """Kill as many times, and store what happened.

    Args:
        kills: How often.
        seed: Of the moments.
        out: Folder of kills.json.
    """
    rng, killed, compared = np.random.default_rng(seed), [], 0
    with tempfile.TemporaryDirectory() as work:
        data = images(Path(work) / "images.npz")
        began = time.monotonic()
        if start(data, whole := Path(work) / "whole").wait():
            raise SystemExit(whole.with_suffix(".log").read_text())
        length = time.monotonic() - began
        expected = content(whole)
        while len(killed) < kills:
            folder = Path(work) / f"run{compared}"
            while True:
                process, moment = start(data, folder), rng.uniform(0, length)
                try:
                    code = process.wait(moment if len(killed) < kills else None)
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
                    killed.append({"after": moment, "at": phase(folder)})
                    print(f"{len(killed)}: {killed[-1]}", flush=True)
                    continue
                if code:
                    raise SystemExit(folder.with_suffix(".log").read_text())
                break
            np.testing.assert_equal(content(folder), expected)
            compared += 1
    out.mkdir(parents=True, exist_ok=True)
    about = {"seed": seed, "seconds_undisturbed": length, "runs_compared": compared}
    runs.write_json(out / "kills.json", about | {"kills": killed})
    print(json.dumps(about))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.kills", description=__doc__)

"""Several processes on one machine: one run, through the loss of any of them."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_sharding import STREAM, X, curve
from test_streams import Numbers, curve as curve_of_stream

from experiments import mnist_vae
from vi_jax import commands, resumable, runs, training
from vi_jax.evaluator import over_examples

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(num: int, argv_of) -> list[subprocess.Popen]:
    """`python *argv_of(place)` in num processes of one device each."""
    return [
        subprocess.Popen(
            [sys.executable, *argv_of(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        )
        for place in range(num)
    ]


def ends(processes, timeout=300) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of each; none is left running."""
    try:
        found = [(*p.communicate(timeout=timeout), p.returncode) for p in processes]
        return [(code, out, err) for out, err, code in found]
    finally:
        for process in processes:
            process.kill()


PROGRAM = """
import json
from test_sharding import curve
from vi_jax import sharding

with sharding.joined({address!r}, 4, {place}):
    losses, _ = curve(2, sharding.mesh(data=2, samples=2), num_steps=20)
    print("losses", json.dumps(losses))
"""


def test_four_processes_have_the_loss_curve_of_one():
    address = f"localhost:{free_port()}"
    program = lambda place: PROGRAM.format(address=address, place=place)
    found = ends(start(4, lambda place: ["-c", program(place)]))
    expected, _ = curve(2, None, num_steps=20)
    for status, out, err in found:
        assert status == 0, err
        losses = json.loads(re.search(r"^losses (.*)$", out, re.M)[1])
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


STREAMED = """
import json
from test_streams import Numbers, curve
from vi_jax import sharding

with sharding.joined({address!r}, 2, {place}):
    source = Numbers(10_000)
    losses, _ = curve(source, sharding.mesh())
    print("losses", json.dumps(losses))
    print("read", json.dumps(sorted(source.read)))
"""


def test_each_of_two_processes_reads_its_own_examples():
    address = f"localhost:{free_port()}"
    program = lambda place: STREAMED.format(address=address, place=place)
    found = ends(start(2, lambda place: ["-c", program(place)]))
    of = lambda name, out: json.loads(re.search(rf"^{name} (.*)$", out, re.M)[1])
    expected, _ = curve_of_stream(Numbers(10_000), None)
    for status, out, err in found:
        assert status == 0, err
        np.testing.assert_allclose(of("losses", out), expected, rtol=1e-6)
    one, other = (set(of("read", out)) - {0} for _, out, _ in found)
    # 12 steps of 2 examples each, and what was read ahead; 0 is looked at by both.
    assert min(len(one), len(other)) >= 23
    assert not one & other


KILLED = """
from pathlib import Path
from test_processes import train_in
from vi_jax import sharding

with sharding.joined({address!r}, 2, {place}):
    train_in(Path({folder!r}), sharding.mesh())
"""


@dataclasses.dataclass(frozen=True)
class Knobs:
    seed: int = 3


def train_in(folder: Path, mesh, at: dict | None = None) -> dict:
    """A run of 40 steps on a noisy quadratic, with a checkpoint every 8.

    at[step]() is called when a batch is asked for that step, if there is one.
    """
    optimizer = optax.adam(0.05)

    def loss(params, key, batch):
        noise = jax.random.normal(key, batch["image"].shape)
        error = batch["image"] / 255 + noise - params
        return jnp.mean(jnp.sum(error**2, -1)), {"bound": jnp.mean(error)}

    def batch_at(step):
        if at and step in at:
            at[step]()
        return STREAM.at(step)

    error = over_examples(
        lambda params, key, x, c: jnp.sum((x / 255 - params[0]) ** 2), mesh=mesh
    )
    plan = resumable.Training(
        loss,
        optimizer,
        STREAM._replace(at=batch_at),
        seed=Knobs().seed,
        num_steps=40,
        scan_steps=1,
        checkpoint_steps=8,
        validate=lambda params: {"valid_bound": -float(np.mean(error(params, X)))},
        mesh=mesh,
    )
    start = training.init_state(jnp.zeros((1, 12)), optimizer)
    work = lambda: resumable.train(plan, start, folder)[1]
    return runs.once(folder, "quadratic", Knobs(), work)


def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path):
    """Two processes, the second killed in between, against one that never stopped."""

    def both() -> list[subprocess.Popen]:
        given = {"address": f"localhost:{free_port()}", "folder": str(tmp_path / "two")}
        program = lambda place: KILLED.format(**given, place=place)
        return start(2, lambda place: ["-c", program(place)])

    first, second = both()
    deadline = time.monotonic() + 200
    while len(runs.read_metrics(tmp_path / "two")) < 9:
        assert first.poll() is None and time.monotonic() < deadline, ends([first])
        time.sleep(0.01)
    second.kill()
    killed = time.monotonic()
    (status, _, err), (other, _, _) = ends([first, second])
    assert time.monotonic() - killed < 60 and other == -signal.SIGKILL
    assert status == 1 and "error: " in err, err
    assert "go on from the last checkpoint" in err
    assert not (tmp_path / "two" / "result.json").exists()

    (status, _, err), (other, _, more) = ends(both())
    assert (status, other) == (0, 0), err + more
    assert "resuming" in err
    train_in(tmp_path / "one", None)
    two, one = (runs.read_metrics(tmp_path / n) for n in ("two", "one"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == list(range(1, 41))
    for name in ("loss", "valid_bound"):
        values = [[r[name] for r in of if name in r] for of in (two, one)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    assert len(runs.read_json(tmp_path / "two" / "run.json")["starts"]) == 2
    names = lambda folder: {p.name for p in folder.glob("**/*.json*")}
    assert names(tmp_path / "two") == names(tmp_path / "one")


@pytest.mark.parametrize(
    "options, shape, place",
    [
        ("", None, None),
        ("--mesh 1 2", {"data": 1, "samples": 2}, None),
        ("--mesh 2 1 --join host:99 4 3", {"data": 2, "samples": 1}, ("host:99", 4, 3)),
        ("--join auto", None, (None, None, None)),
    ],
)
def test_the_command_line_says_which_devices(
    options, shape, place, monkeypatch, tmp_path
):
    """And no more: what is asked of the devices is not in the knobs of the run."""
    seen, joined = [], []

    @contextlib.contextmanager
    def join(*place):
        joined.append(place)
        yield

    def run(experiment, run_dir, *, name, knobs):
        seen.append((experiment.mesh, knobs))
        raise OSError("seen")

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(commands.sharding, "joined", join)
    path = tmp_path / "small.npz"
    np.savez(path, x_train=np.zeros((300, 4, 4)), x_test=np.zeros((3, 4, 4)))
    with pytest.raises(SystemExit):
        argv = ["--dataset", str(path), *options.split()]
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    ((mesh, knobs),) = seen
    assert (mesh and dict(mesh.shape)) == shape
    assert joined == ([place] if place else [])
    assert knobs == mnist_vae.Knobs(dataset=str(path))


def test_an_address_without_a_port_is_one_clear_message(tmp_path, capsys):
    argv = ["--run-dir", str(tmp_path / "run"), "--join", "host", "2", "0"]
    with pytest.raises(SystemExit) as caught:
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    assert caught.value.code == 1
    assert (
        "needed: HOST:PORT of the first process, got 'host'" in capsys.readouterr().err
    )

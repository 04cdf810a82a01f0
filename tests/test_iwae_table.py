"""The table of published and own cells, from written results."""

import importlib
import json
import os
import time

import pytest

from experiments import iwae_table, mnist_iwae, sprites_table
from experiments.iwae_table import PUBLISHED, Cell, Train


def result(nll, *, seed=0, k=5, bound="iwae", layers=1, units=(22,)):
    return {
        "nll": nll,
        "seed": seed,
        "k": k,
        "bound": bound,
        "layers": layers,
        "active_units_per_layer": list(units),
    }


def write(path, value, *, age=0):
    """A JSON file, of so many seconds ago."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """(own, stored) -> the lines of the table by (layers, k), as lists of cells."""

    def build(own, stored=()):
        for i, r in enumerate(own):
            write(tmp_path / str(i) / "result.json", r)
        (tmp_path / "stored.json").write_text(json.dumps(list(stored)))
        monkeypatch.setattr(iwae_table, "STORED", tmp_path / "stored.json")
        lines = iwae_table.table(iwae_table.collect(tmp_path)).splitlines()[2:]
        split = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
        return {(int(r[0]), int(r[1])): r[2:] for r in split}

    return build


def test_without_runs_it_is_the_published_table(rows):
    found = rows([])
    assert found[1, 50] == ["86.35 (20)", "", "84.78 (25)", ""]
    assert found[2, 50] == ["84.78 (17+5)", "", "82.90 (26+7)", ""]
    assert len(found) == 6


def test_a_run_stands_in_its_own_cell(rows):
    own = [result(84.5, k=50), result(85.7, k=50, bound="elbo", units=(20,))]
    found = rows([*own, result(83.0, k=50, layers=2, units=(26, 7))])
    assert found[1, 50][1::2] == ["85.70 (20)", "84.50 (22)"]
    assert found[2, 50][1::2] == ["", "83.00 (26+7)"]
    assert found[1, 5][1::2] == ["", ""]


def test_one_sample_is_both_objectives(rows):
    assert rows([result(86.0, k=1)])[1, 1][1::2] == ["86.00 (22)"] * 2


def test_seeds_are_averaged_with_their_spread(rows):
    seeds = [result(nll, seed=s) for s, nll in enumerate((85.0, 85.4, 85.2))]
    assert rows(seeds)[1, 5][3] == "85.20 +- 0.12 (22, 3 seeds)"
    seeds = [result(85.0, layers=2, units=(26, 7)), result(86.0, layers=2, seed=1)]
    seeds[1]["active_units_per_layer"] = [24, 7]
    assert rows(seeds)[2, 5][3] == "85.50 +- 0.50 (24-26+7, 2 seeds)"


def test_own_runs_stand_for_the_stored_of_their_cell(rows):
    """Which may be of other data or lengths."""
    stored = [result(99.0, seed=1), result(85.2, seed=2), result(84.9, k=50)]
    found = rows([result(230.0, seed=7)], stored)
    assert found[1, 5][3] == "230.00 (22)"
    assert found[1, 50][3] == "84.90 (22)"


def test_own_runs_that_are_unlike_are_not_averaged(rows, tmp_path):
    """What was finished last decides; seeds and places of the data may differ."""
    own = [result(90.0, seed=0), result(85.0, seed=1), result(86.0, seed=2)]
    for i, dataset in enumerate(("fashion_mnist", "mnist", "mnist")):
        knobs = {"dataset": dataset, "seed": i, "data_dir": str(i)}
        write(tmp_path / str(i) / "knobs.json", {"knobs": knobs})
        write(tmp_path / str(i) / "result.json", own[i], age=10 - i)
    assert rows([])[1, 5][3] == "85.50 +- 0.50 (22, 2 seeds)"
    write(tmp_path / "0" / "result.json", own[0])
    assert rows([])[1, 5][3] == "90.00 (22)"


@pytest.mark.parametrize("name", ["iwae_table", "sprites_table", "mnist_ssvae"])
def test_what_is_no_result_is_passed_over_and_a_damaged_one_named(name, tmp_path):
    collect = importlib.import_module(f"experiments.{name}").collect
    stored = collect(tmp_path)
    for foreign in ({"nll": 1.0, "elbo": -1.0}, result(1.0, bound="renyi")):
        write(tmp_path / "a" / "result.json", foreign)
        assert collect(tmp_path) == stored
    (tmp_path / "a" / "result.json").write_text('{"nll"')
    with pytest.raises(ValueError, match=r"a/result.json is damaged"):
        collect(tmp_path)


@pytest.mark.parametrize("table", [iwae_table, sprites_table])
def test_a_damaged_result_is_one_clear_message(table, tmp_path, capsys):
    write(tmp_path / "a" / "result.json", [])
    with pytest.raises(SystemExit) as caught:
        table.main(["--run-dir", str(tmp_path)])
    assert caught.value.code == 1
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("cell", PUBLISHED)
def test_a_cell_is_trained_as_what_it_says(cell):
    knobs = iwae_table.knobs_of(Train(cell.layers, cell.objective, cell.k, seed=3))
    assert (knobs.layers, knobs.k, knobs.seed) == (cell.layers, cell.k, 3)
    assert knobs.bound == {"vae": "elbo", "iwae": "iwae"}[cell.objective]
    assert knobs.first_epochs < knobs.epochs


def test_fewer_epochs_shorten_every_stage():
    knobs = iwae_table.knobs_of(Train(k=50, epochs=30.0))
    assert (knobs.epochs, knobs.first_epochs, knobs.backward_k) == (30.0, 15.0, 5)


def test_samples_of_equal_weight_all_have_a_backward_pass():
    knobs = iwae_table.knobs_of(Train(k=50, objective="vae"))
    assert (knobs.epochs, knobs.first_epochs, knobs.backward_k) == (155.0, 110.0, 0)


def test_a_cell_of_the_table_runs_from_its_own_folder(tmp_path, monkeypatch, capsys):
    """What is asked of `run`; that it trains is for the tests of runs."""
    asked = {}
    monkeypatch.setattr(mnist_iwae, "build", lambda knobs: knobs)
    monkeypatch.setattr(
        iwae_table,
        "run",
        lambda built, folder, *, name, knobs: asked.update(folder=folder, knobs=knobs),
    )
    iwae_table.main(["train", "--k", "5", "--seed", "2", "--run-dir", str(tmp_path)])
    assert asked["folder"] == tmp_path / "iwae-layers1-k5-seed2"
    assert asked["knobs"].seed == 2
    assert "published" in capsys.readouterr().out
    assert Cell(1, "iwae", 5) in PUBLISHED

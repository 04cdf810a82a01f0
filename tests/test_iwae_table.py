"""The table of published and own cells, from written results."""

import json

import pytest

from experiments import iwae_table, mnist_iwae
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


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """(own, stored) -> the lines of the table by (layers, k), as lists of cells."""

    def build(own, stored=()):
        for i, r in enumerate(own):
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "result.json").write_text(json.dumps(r))
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


def test_seeds_are_averaged_with_their_spread_and_own_runs_come_first(rows):
    own = [result(85.0, seed=0), result(85.4, seed=1)]
    found = rows(own, stored=[result(99.0, seed=1), result(85.2, seed=2)])
    assert found[1, 5][3] == "85.20 +- 0.20 (22, 3 seeds)"


@pytest.mark.parametrize("cell", PUBLISHED)
def test_a_cell_is_trained_as_what_it_says(cell):
    knobs = iwae_table.knobs_of(Train(cell.layers, cell.objective, cell.k, seed=3))
    assert (knobs.layers, knobs.k, knobs.seed) == (cell.layers, cell.k, 3)
    assert knobs.bound == {"vae": "elbo", "iwae": "iwae"}[cell.objective]
    assert knobs.first_epochs < knobs.epochs


def test_fewer_epochs_shorten_every_stage():
    knobs = iwae_table.knobs_of(Train(k=50, epochs=31.0))
    assert (knobs.epochs, knobs.first_epochs) == (31.0, 22.0)


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

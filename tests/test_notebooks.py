"""Every notebook runs from top to bottom, as a reader would run it, if not as long."""

import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Three quarters of their time is training, of which a few steps tell that a cell runs;
# the figures that are stored in them are those of all the steps.
FEWER_STEPS = {
    "00_quickstart": {
        "num_steps=8_000": "num_steps=40",
        "scan_steps=500": "scan_steps=20",
    },
    "04_bounds_and_estimators": {"steps = 600": "steps = 20", "(300, ": "(10, "},
    "05_semi_supervised": {"stream, 2000)": "stream, 8)", '_steps": 250': '_steps": 8'},
    "06_beta_vae_and_disentanglement": {"STEPS = 800": "STEPS = 8", "=100)": "=4)"},
    "07_applications": {f"stream, {n}00)": f"stream, {n})" for n in (8, 3, 6)},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    for many, few in FEWER_STEPS.get(path.stem, {}).items():
        with_many = [cell for cell in notebook.cells if many in cell.source]
        assert with_many, f"no cell of {path.name} has {many!r} any more"
        for cell in with_many:
            cell.source = cell.source.replace(many, few)
    # Sockets instead of ports, which another program may take in between; in a folder
    # of a short name, since their paths may not be long.
    with tempfile.TemporaryDirectory() as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        config = Config({"KernelManager": manager})
        place = {"metadata": {"path": ROOT}}
        NotebookClient(notebook, timeout=300, resources=place, config=config).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures, "a notebook shows what it computes"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_as_it_is_meant_to_be_read(path):
    """With its pictures; and a definition of more than five lines belongs elsewhere."""
    cells = nbformat.read(path, as_version=4).cells
    assert "%pip install" in next(c.source for c in cells if c.cell_type == "code")
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not [o for o in outputs if o.output_type == "error"]
    for cell in cells:
        blocks = cell.source.split("\ndef ")[1:] if cell.cell_type == "code" else []
        assert all(len(block.split("\n\n")[0].splitlines()) <= 5 for block in blocks)

"""The layout as the imports have it: who may import whom, and who owns what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vi_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))

# What each module, or package, of vi_jax may import from vi_jax beside itself.
TOOLS = {"types", "math", "checks", "schedules", "sequences", "decoding", "sharding"}
MATHS = TOOLS | {"distributions", "divergences", "quadrature"}
CORE = MATHS | {"bounds", "model"}
PARTS = CORE | {"estimators", "priors", "posteriors", "likelihoods"}
EVERYTHING = {
    *PARTS,
    *("models", "objectives", "evaluation", "soap", "training", "checkpoints"),
    *("em", "maximum_likelihood", "data", "plots", "runs", "experiment"),
    *("diagnosis", "commands", "networks", "key_functions"),
    *("aggressive", "early_stopping", "resumable", "semi_supervised", "sweep"),
    *("total_correlation", "disentangling", "evaluator", "backward"),
    *("sequences", "decoding", "tabular", "partial", "figures", "cpu"),
}
MAY_IMPORT = {
    "types": set(),
    "checks": set(),
    "math": {"types"},
    "schedules": {"types", "math"},
    "sharding": {"types"},
    "partial": {"runs"},
    "cpu": {"types"},
    "sequences": {"types", "math"},
    "decoding": {"types", "checks", "sequences"},
    "distributions": TOOLS,
    "bounds": TOOLS,
    "divergences": TOOLS | {"distributions"},
    "quadrature": TOOLS | {"distributions"},
    "model": TOOLS | {"distributions", "divergences"},
    "key_functions": TOOLS | {"distributions"},
    "estimators": CORE,
    "backward": CORE,
    "priors": CORE,
    "posteriors": CORE,
    "likelihoods": CORE,
    "networks": CORE,
    "models": PARTS - {"estimators"},
    "objectives": PARTS | {"models", "backward"},
    "semi_supervised": PARTS | {"models", "objectives"},
    "total_correlation": TOOLS | {"distributions"},
    "disentangling": CORE | {"objectives", "total_correlation"},
    "evaluation": PARTS | {"models", "total_correlation"},
    "maximum_likelihood": MATHS,
    "em": CORE | {"models", "maximum_likelihood"},
    "soap": TOOLS,
    "training": TOOLS | {"soap", "cpu"},
    "aggressive": TOOLS,
    "early_stopping": set(),
    "checkpoints": TOOLS | {"training"},
    "data": TOOLS,
    "plots": TOOLS,
    "runs": TOOLS,
    "sweep": TOOLS,
    "resumable": TOOLS | {"training", "checkpoints", "early_stopping", "runs"},
    "evaluator": EVERYTHING - {"evaluator", "experiment", "diagnosis", "commands"},
    "tabular": CORE,
    "detector": PARTS
    | {"models", "objectives", "evaluation", "networks", "data"}
    | {"tabular"},
    "figures": MATHS | {"model", "models", "evaluation", "plots", "experiment"},
    "experiment": EVERYTHING - {"experiment", "diagnosis", "commands"},
    "diagnosis": EVERYTHING - {"diagnosis", "commands"},
    "commands": EVERYTHING - {"commands"},
    "__init__": EVERYTHING,
}

# Each outside library has one home.
OWNERS = {
    "flax": {"networks"},
    "orbax": {"checkpoints"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"figures", "plots"},
    "grain": {"data"},
    "threadpoolctl": {"cpu"},
    "tensorboardX": {"runs"},
    "optax": {
        *("aggressive", "soap", "sweep", "training", "resumable", "experiment"),
        *("evaluation", "detector"),
    },
    "tyro": {"experiment", "commands"},
    "sklearn": {"evaluation", "detector"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file; `from a import b` is a.b.

    A name may also be a module's attribute: vi_jax.model.Model.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def home(path: Path) -> str:
    """The module or package of vi_jax that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_lower_layers_only(path):
    assert home(path) in MAY_IMPORT, "give the new module a row in MAY_IMPORT"
    inside = {name.split(".")[1] for name in imports(path) if name[:7] == "vi_jax."}
    assert inside - MAY_IMPORT[home(path)] - {home(path)} == set()


@pytest.mark.parametrize("library", OWNERS)
def test_an_outside_library_has_one_home(library):
    users = {
        home(path)
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users <= OWNERS[library]


def test_experiment_takes_no_more_of_matplotlib_than_a_type():
    names = imports(PACKAGE / "experiment.py")
    taken = {name for name in names if name.startswith("matplotlib")}
    assert taken <= {"matplotlib.figure.Figure"}


def test_tensorflow_datasets_is_imported_inside_functions_only():
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            text = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "tensorflow" not in text, path


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.name)
def test_experiments_import_the_public_api_only(path):
    """No private name, and no library that vi_jax is the fence around."""
    for name in imports(path):
        parts = name.split(".")
        fenced = {"flax", "orbax", "tensorflow_datasets", "tests"}
        # What flax's own users write is one of the contenders.
        fenced -= {"flax"} if path.name == "benchmark_peers.py" else set()
        assert parts[0] not in fenced, name
        assert not any(part.startswith("_") for part in parts), name


def names_used(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} | {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name)
    }


def test_nothing_private_or_retired_of_jax():
    for path in [*SOURCES, *EXPERIMENTS, *(ROOT / "tests").rglob("*.py")]:
        assert not any("jax._src" in name for name in imports(path)), path
        assert not {"pmap", "tree_map", "PRNGKey"} & names_used(path), path


def test_files_are_short_and_none_is_a_drawer():
    for path in [*SOURCES, *EXPERIMENTS]:
        assert len(path.read_text().splitlines()) <= 400, path
        assert path.stem not in {"utils", "util", "helpers", "misc", "common"}, path


def test_import_vi_jax_is_light():
    """The core must not wait for what only a run, a picture or a data set needs."""
    heavy = "orbax matplotlib tensorflow_datasets tensorflow tensorboardX tyro grain"
    code = (
        "import sys, vi_jax\n"
        f"loaded = set(sys.modules) & set({heavy.split()!r})\n"
        "assert not loaded, loaded\n"
        "vi_jax.plots.image_grid, vi_jax.detector.VAEDetector  # now they are\n"
        "vi_jax.evaluator.over_examples, vi_jax.resumable.train\n"
        "vi_jax.checkpoints.open_checkpoints\n"
        "assert not hasattr(vi_jax, 'no_such_part')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)

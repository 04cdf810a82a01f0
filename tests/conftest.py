"""Settings under which every test runs."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import jax
import pytest
from threadpoolctl import threadpool_limits

from vi_jax.data import prepared

# The tests compile more than they compute, and so take half of the time for it. An XLA
# that does not know a flag, as of jax 0.12 the second, ends its process: it is asked.
QUICK = "--xla_backend_optimization_level=0"
QUICKER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
if QUICK not in XLA_FLAGS:
    all_of_them = f"{QUICK} {QUICKER} {XLA_FLAGS}"
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    asked = subprocess.run(
        start, env={**os.environ, "XLA_FLAGS": all_of_them}, capture_output=True
    )
    known = f"{QUICK} {XLA_FLAGS}" if asked.returncode else all_of_them
    os.environ["XLA_FLAGS"] = known

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Tracing makes many objects that stay: a tenth of the time went into collecting them
# again and again, and into noting pytest's frames beside every operation.
gc.set_threshold(50_000, 20, 50)
jax.config.update("jax_traceback_in_locations_limit", 0)
# Runs, and the processes that some tests start, compile the same programs again and
# again; most of a short training is that.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Several devices on any laptop.
jax.config.update("jax_num_cpu_devices", 2)
# Two workers with two BLAS threads each wait for one another on small matrices; so do
# the programs and notebooks that they start.
threadpool_limits(1, user_api="blas")
os.environ["OPENBLAS_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data_dir in which mnist is prepared, from the files in the package, once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tfds"
    with filelock.FileLock(f"{folder}.lock"):
        if prepared.find("mnist", folder) is None:
            prepared.prepare("mnist", data_dir=folder)
    return folder


def pytest_collection_modifyitems(items) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    longest = ("test_notebooks", "test_runs", "test_image_experiments", "")
    items.sort(key=lambda item: [name in item.nodeid for name in longest].index(True))

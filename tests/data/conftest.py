"""Where the data tests find real files, and one prepared folder for all of them."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with the original files of public sets, one folder a set."""
    folder = Path(os.environ.get("VI_JAX_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set VI_JAX_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def amat_dir(real_data, tmp_path_factory) -> Path:
    """The three text files of binarized_mnist, expanded from packed bits."""
    folder = tmp_path_factory.mktemp("amat")
    packed = np.load(
        real_data / "binarized_mnist" / "binarized_mnist_packed.npz",
        allow_pickle=False,
    )
    for split in packed.files:
        bits = np.unpackbits(packed[split], axis=1, count=784)
        text = np.full((len(bits), 1568), ord(" "), np.uint8)
        text[:, ::2] = bits + ord("0")
        text[:, -1] = ord("\n")
        name = f"binarized_mnist_{split[:5]}.amat"
        (folder / name).write_bytes(text.tobytes())
    return folder

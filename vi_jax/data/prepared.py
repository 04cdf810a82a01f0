"""Public sets through tensorflow-datasets: prepare once, read without TensorFlow."""

import contextlib
import difflib
import importlib.util
import io
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vi_jax.data import builders, files

EMBEDDED = {"mnist": Path(__file__).parent / "mnist"}
# Where a set goes whose own place is taken by a preparation as TFRecord files.
_ASIDE = "array_record"


class Prepared(NamedTuple):
    """A set that lies prepared on disk."""

    name: str
    directory: Path
    splits: tuple[str, ...]
    file_format: str


class _Small(NamedTuple):
    """A set that we prepare ourselves: the files of each split and their reader."""

    files: dict[str, tuple[str, ...]]
    read: Callable[[list[Path]], dict[str, np.ndarray]]


def _read_idx_pair(paths: list[Path]) -> dict[str, np.ndarray]:
    image, label = (files.read_idx(path) for path in paths)
    return {"image": image, "label": label}


def _read_amat(paths: list[Path]) -> dict[str, np.ndarray]:
    # Every second byte is a separator: 784 digits "0" or "1" a line.
    text = np.frombuffer(Path(paths[0]).read_bytes(), np.uint8)
    return {"image": (text[::2] - ord("0")).reshape(-1, 28, 28)}


_IDX = _Small(
    {
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    },
    _read_idx_pair,
)
_AMAT = _Small(
    {s: (f"binarized_mnist_{s[:5]}.amat",) for s in ("train", "validation", "test")},
    _read_amat,
)
_SMALL = {"mnist": _IDX, "fashion_mnist": _IDX, "binarized_mnist": _AMAT}


def folder_of_sets(data_dir: str | Path | None) -> Path:
    """`data_dir`, or where tensorflow-datasets keeps its sets."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return files.expanded(data_dir or default)


def find(name: str, data_dir: Path) -> Prepared | None:
    """The prepared set `name` ("emnist", or with a config "emnist/letters"), or None.

    A preparation that did not finish is not found: its folder has another name. One of
    TFRecord files, which only TensorFlow reads, is passed over for `_ASIDE`.
    Raises ValueError when several configs are prepared and `name` picks none.
    """
    found = _find_any(name, data_dir)
    if found is not None and found.file_format != "array_record":
        return _find_any(name, data_dir / _ASIDE)
    return found


def _find_any(name: str, data_dir: Path) -> Prepared | None:
    here = data_dir / name
    infos = [
        p for depth in ("*", "*/*") for p in here.glob(f"{depth}/dataset_info.json")
    ]
    folders = [p.parent for p in infos if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name)]
    if not folders:
        return None
    configs = sorted({str(f.parent.relative_to(data_dir)) for f in folders})
    if len(configs) > 1:
        raise ValueError(f"{name} is prepared in several forms: load one of {configs}")
    folder = max(folders, key=lambda f: [int(i) for i in f.name.split(".")])
    return _describe(name, folder)


def _describe(name: str, folder: Path) -> Prepared:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        splits = tuple(str(s["name"]) for s in info["splits"])
    # The last one for brackets without end.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise broken(name, folder, error) from error
    return Prepared(name, folder, splits, info.get("fileFormat", "tfrecord"))


def broken(name: str, folder: Path, error: Exception) -> OSError:
    return OSError(
        f"the prepared files of {name} are damaged ({error}): "
        f"delete {folder} and prepare the set again"
    )


def check_known(name: str) -> None:
    """Raise ValueError with close matches unless tensorflow-datasets knows `name`."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0]
    if base not in known:
        close = difflib.get_close_matches(base, known, n=5, cutoff=0.5)
        raise ValueError(
            f"no set is called {name!r}; "
            + (f"close to it are {', '.join(close)}; " if close else "")
            + f"a path to a file must end in one of {files.SUPPORTED}"
        )


def prepare(
    name: str, *, data_dir: Path | None = None, manual_dir: Path | None = None
) -> Prepared:
    """Prepare a public set as array_record files, once, under `data_dir`.

    The source files come from `manual_dir` if given, from the package for "mnist",
    else from the network; their registered checksums are enforced. mnist,
    fashion_mnist and binarized_mnist need no TensorFlow, the other sets do.
    Raises ValueError (unknown set, wrong file), FileNotFoundError (file missing in
    `manual_dir`), ImportError (TensorFlow needed), OSError (no network, disk).
    """
    builders.check_name(name)
    data_dir = folder_of_sets(data_dir)
    if done := find(name, data_dir):
        return done
    check_known(name)
    if _find_any(name, data_dir):
        data_dir = data_dir / _ASIDE
    manual = files.expanded(manual_dir) if manual_dir else EMBEDDED.get(name)
    _check_writable(data_dir)
    with quiet(progress=manual is None):
        builder = _builder(name, data_dir)
        _check_sources(name, builder.url_infos or {}, manual, data_dir)
        _download_and_prepare(name, builder, manual)
    found = find(name, data_dir)
    if found is None:
        raise broken(name, Path(builder.data_dir), OSError("no dataset_info.json"))
    return found


def _builder(name: str, data_dir: Path):
    import tensorflow_datasets as tfds

    if name in _SMALL:
        return _small_builder(name, _SMALL[name])(data_dir=data_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"preparing {name} needs TensorFlow (reading it later does not): "
            "pip install 'vi_jax[prepare]'"
        )
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        raise ValueError(f"{name} cannot be built ({error})") from error


def _small_builder(name: str, small: _Small):
    """The stock builder with its two methods that need TensorFlow replaced."""
    import tensorflow_datasets as tfds
    from PIL import Image

    stock = tfds.builder_cls(name)
    url = {info.filename: url for url, info in stock.url_infos.items()}

    class Builder(stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager):
            urls = {s: [url[f] for f in fs] for s, fs in small.files.items()}
            paths = dl_manager.download(urls)
            return {s: self._generate_examples(p) for s, p in paths.items()}

        def _generate_examples(self, paths):
            columns = small.read(paths)
            for i, row in enumerate(zip(*columns.values(), strict=True)):
                example = dict(zip(columns, row, strict=True))
                yield i, {**example, "image": Image.fromarray(example["image"])}

    return Builder


def _check_sources(
    name: str, url_infos: dict, manual_dir: Path | None, data_dir: Path
) -> None:
    """Fail at once where tensorflow-datasets would wait minutes for a dead network."""
    missing = {u: i.filename for u, i in url_infos.items()}
    if manual_dir is not None:
        missing = {u: f for u, f in missing.items() if not (manual_dir / f).is_file()}
    if missing and manual_dir is not None and name in _SMALL:
        raise FileNotFoundError(
            f"{manual_dir} lacks {', '.join(sorted(missing.values()))} of {name}"
        )
    hosts = {_split_url(u).netloc: u for u in missing}
    for host, url in hosts.items():
        if not host_answers(url):
            raise OSError(
                f"no network: {host} does not answer. Download the files of {name} "
                "yourself,\n  " + "\n  ".join(sorted(missing)) + "\ninto one folder, "
                f"then: python -m vi_jax.data prepare {name} --data-dir {data_dir} "
                "--manual-dir FOLDER_WITH_FILES"
            )


def _split_url(url: str) -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(url)


def host_answers(url: str, *, timeout: float = 5.0) -> bool:
    """Whether the host of `url`, or the proxy set for it, answers in time."""
    parts = _split_url(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = _split_url(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or {"https": 443, "ftp": 21}.get(parts.scheme, 80)
    answered = threading.Event()

    def connect():
        with contextlib.suppress(OSError):
            socket.create_connection((parts.hostname, port), timeout=timeout).close()
            answered.set()

    # In a thread: the look-up of a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def _download_and_prepare(name: str, builder, manual_dir: Path | None) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except download_manager.NonMatchingChecksumError as error:
        found = re.search(r"downloaded to (.*?), has wrong checksum", str(error))
        raise ValueError(
            f"{found[1] if found else 'a file'} is not the file that {name} is made "
            "of (its SHA-256 differs): it is damaged, incomplete or of another set; "
            "download it again"
        ) from error
    # Downloads, the disk and stock builders each raise their own kinds.
    except Exception as error:
        # Another process may have finished the same set first.
        if find(name, Path(builder.data_dir_root)) is None:
            raise OSError(f"{name} could not be prepared ({error})") from error


def _check_writable(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=data_dir).close()
    except OSError as error:
        raise OSError(
            f"cannot write to {data_dir} ({error.strerror}): pass data_dir= (on the "
            "command line --data-dir) or set TFDS_DATA_DIR"
        ) from error


@contextlib.contextmanager
def quiet(*, progress: bool = False) -> Iterator[None]:
    """Silence what tensorflow-datasets logs about what we do on purpose."""
    import tensorflow_datasets as tfds

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    if not progress:
        tfds.disable_progress_bar()
    # It also prints; the caller's standard output is not ours.
    stdout = sys.stderr if progress else io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout):
            yield
    finally:
        log.setLevel(level)
        tfds.enable_progress_bar()

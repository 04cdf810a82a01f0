"""Public sets: prepared from the original files, kept as arrays, clear errors."""

import concurrent.futures
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from vi_jax.data import __main__, files, prepared, records, sources

MNIST = prepared.EMBEDDED["mnist"]
URL = "https://example.org/file.gz"


def _original(folder, stem):
    image = files.read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    label = files.read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
    return image, label


def _rows(image, label):
    """Every example as bytes, sorted: the order of a prepared set is its own."""
    flat = np.asarray(image).reshape(len(image), -1)
    both = np.concatenate([flat, label[:, None].astype(np.uint8)], axis=1)
    return sorted(map(bytes, both))


def _first_thousand(name, monkeypatch, before=lambda: None):
    """The set of 1,000 images a split; `before` is called before either is read."""
    small = prepared._SMALL[name]

    def read(paths):
        before()
        return {key: column[:1000] for key, column in small.read(paths).items()}

    monkeypatch.setitem(prepared._SMALL, name, small._replace(read=read))


def _copy(folder, to):
    to.mkdir()
    for file in folder.glob("*.gz"):
        shutil.copy(file, to)
    return to


@pytest.mark.parametrize(
    "split, stem, n", [("train", "train", 60000), ("test", "t10k", 10000)]
)
def test_mnist_is_the_original_byte_for_byte(data_dir, split, stem, n):
    mnist = sources.load("mnist", split, data_dir=data_dir)
    assert mnist.image.shape == (n, 28, 28, 1) and mnist.image.dtype == np.uint8
    assert mnist.label.shape == (n,) and mnist.label.dtype == np.int32
    assert _rows(mnist.image, mnist.label) == _rows(*_original(MNIST, stem))


def test_stock_data_source_reads_the_same(data_dir):
    import tensorflow_datasets as tfds

    stock = tfds.data_source("mnist", split="train", data_dir=data_dir)
    mnist = sources.load("mnist", data_dir=data_dir)
    assert len(stock) == 60000
    where = list(range(0, 60000, 37))
    for i, example in zip(where, stock.__getitems__(where), strict=True):
        np.testing.assert_array_equal(example["image"], mnist.image[i])
        assert example["label"] == mnist.label[i]


def test_second_load_is_fast_and_without_tensorflow_datasets(data_dir):
    sources.load("mnist", data_dir=data_dir)
    code = (
        "import sys, time; from vi_jax.data import sources; t = time.perf_counter();"
        f"d = sources.load('mnist', data_dir={str(data_dir)!r});"
        "assert time.perf_counter() - t < 1, time.perf_counter() - t;"
        "assert d.image.shape == (60000, 28, 28, 1);"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    root = MNIST.parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=root)


@pytest.mark.parametrize(
    "split, rows",
    [
        ("train[:59600]", slice(0, 59600)),
        ("train[59600:]", slice(59600, 60000)),
        ("train[-400:]", slice(59600, 60000)),
        ("train[10:20]", slice(10, 20)),
        ("train[:-59990]", slice(0, 10)),
    ],
)
def test_slices(data_dir, split, rows):
    part = sources.load("mnist", split, data_dir=data_dir)
    whole = sources.load("mnist", data_dir=data_dir)
    np.testing.assert_array_equal(part.image, whole.image[rows])
    np.testing.assert_array_equal(part.label, whole.label[rows])
    assert part.split == split


@pytest.mark.parametrize(
    "split, message",
    [
        ("valid", r"no split 'valid', only \['test', 'train'\]"),
        ("train[", "is no split"),
        ("train[:10%]", "is no split"),
        ("train[60000:]", "selects no examples"),
    ],
)
def test_bad_splits(data_dir, split, message):
    with pytest.raises(ValueError, match=message):
        sources.load("mnist", split, data_dir=data_dir)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_cache_heals(data_dir, tmp_path, damage):
    before = sources.load("mnist", "test", data_dir=data_dir)
    # Of its own: the other worker reads data_dir.
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    cache = tmp_path / "vi_jax" / "mnist" / "3.0.1" / "test.npz"
    sources.load("mnist", "test", data_dir=tmp_path)
    data = bytearray(cache.read_bytes())
    if damage == "truncate":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    cache.write_bytes(data)
    after = sources.load("mnist", "test", data_dir=tmp_path)
    np.testing.assert_array_equal(after.image, before.image)
    assert zipfile.ZipFile(cache).testzip() is None
    assert [p.name for p in cache.parent.iterdir() if p.name.startswith("tmp")] == []


def test_fashion_mnist(real_data, tmp_path, monkeypatch):
    _first_thousand("fashion_mnist", monkeypatch)
    done = prepared.prepare(
        "fashion_mnist", data_dir=tmp_path, manual_dir=real_data / "fashion_mnist"
    )
    assert done.directory == tmp_path / "fashion_mnist" / "3.0.1"
    test = sources.load("fashion_mnist", "test", data_dir=tmp_path)
    original = _original(real_data / "fashion_mnist", "t10k")
    assert _rows(test.image, test.label) == _rows(*(a[:1000] for a in original))
    assert done.splits == ("test", "train") or done.splits == ("train", "test")


def test_binarized_mnist(amat_dir, tmp_path, monkeypatch):
    _first_thousand("binarized_mnist", monkeypatch)
    prepared.prepare("binarized_mnist", data_dir=tmp_path, manual_dir=amat_dir)
    valid = sources.load("binarized_mnist", "validation", data_dir=tmp_path)
    assert valid.label is None
    assert valid.image.shape == (1000, 28, 28, 1)
    text = (amat_dir / "binarized_mnist_valid.amat").read_bytes()
    bits = np.frombuffer(text, np.uint8)[::2].reshape(10000, 784) == ord("1")
    bits, ours = bits[:1000], valid.image.reshape(1000, 784)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, bits * np.uint8(255)))
    again = sources.load("binarized_mnist", "validation", data_dir=tmp_path)
    np.testing.assert_array_equal(again.image, valid.image)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [_flip, _truncate])
def test_damaged_source_file(tmp_path, damage):
    folder = _copy(MNIST, tmp_path / "files")
    file = folder / "t10k-images-idx3-ubyte.gz"
    damage(file)
    with pytest.raises(ValueError, match=rf"{file.name} is not the file that mnist is"):
        prepared.prepare("mnist", data_dir=tmp_path / "d", manual_dir=folder)
    assert prepared.find("mnist", tmp_path / "d") is None


def test_files_of_another_set(tmp_path):
    with pytest.raises(ValueError, match="not the file that fashion_mnist is made"):
        prepared.prepare("fashion_mnist", data_dir=tmp_path, manual_dir=MNIST)


def test_missing_source_file(tmp_path):
    folder = _copy(MNIST, tmp_path / "files")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks train-labels-idx1-ubyte.gz of"):
        prepared.prepare("mnist", data_dir=tmp_path / "d", manual_dir=folder)


def test_a_half_done_preparation_is_not_a_prepared_set(tmp_path):
    folder = tmp_path / "fashion_mnist"
    for name in ("incomplete.ABCDEF_3.0.1", "3.0.1"):
        (folder / name).mkdir(parents=True)
    (folder / "incomplete.ABCDEF_3.0.1" / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="fashion_mnist is not prepared"):
        sources.load("fashion_mnist", data_dir=tmp_path)


def test_interrupted_preparation_starts_again(tmp_path, monkeypatch):
    def interrupted(paths):
        raise KeyboardInterrupt

    small = prepared._SMALL["mnist"]
    broken = prepared._Small(small.files, interrupted)
    monkeypatch.setitem(prepared._SMALL, "mnist", broken)
    with pytest.raises(KeyboardInterrupt):
        prepared.prepare("mnist", data_dir=tmp_path)
    assert prepared.find("mnist", tmp_path) is None


@pytest.mark.parametrize(
    "name", ["fashion_mnist", "binarized_mnist", "cifar10", "emnist/letters"]
)
def test_unprepared_set(tmp_path, name):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        sources.load(name, data_dir=tmp_path)
    assert time.perf_counter() - start < 5
    assert f"python -m vi_jax.data prepare {name} --data-dir" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_network_fails_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepared, "host_answers", lambda url: False)
    start = time.perf_counter()
    with pytest.raises(OSError, match=r"(?s)no network: .*--manual-dir") as caught:
        prepared.prepare("fashion_mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 5
    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    assert f"--data-dir {tmp_path}" in str(caught.value)
    args = ["prepare", "fashion_mnist", "--data-dir", str(tmp_path)]
    assert __main__.main(args) == 1
    assert capsys.readouterr().err.startswith("error: no network")


def test_host_that_never_answers(monkeypatch):
    def hang(*args, **kwargs):
        time.sleep(2)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.perf_counter()
    assert not prepared.host_answers(URL, timeout=0.1)
    assert time.perf_counter() - start < 1


def test_host_behind_a_proxy(monkeypatch):
    asked = []

    class Connection:
        def close(self):
            pass

    def connect(address, timeout):
        asked.append(address)
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    for key in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert prepared.host_answers(URL)
    assert asked == [("proxy.example", 3128)]


@pytest.mark.parametrize("name", ["mnits", "Mnist", "no_such_set_at_all"])
def test_unknown_name(tmp_path, name):
    for call in (sources.load, prepared.prepare):
        with pytest.raises(ValueError, match=f"no set is called '{name}'") as caught:
            call(name, data_dir=tmp_path)
        assert ("mnist" in str(caught.value)) == (name != "no_such_set_at_all")


@pytest.mark.parametrize("name", ["", "a b", "mnist[:5]"])
def test_malformed_name(tmp_path, name):
    with pytest.raises(ValueError, match="neither the name of a set nor a path"):
        sources.load(name, data_dir=tmp_path)


def test_tensorflow_is_asked_for(tmp_path, monkeypatch):
    find = prepared.importlib.util.find_spec
    hide = lambda name, *args: None if name == "tensorflow" else find(name, *args)
    monkeypatch.setattr(prepared.importlib.util, "find_spec", hide)
    with pytest.raises(ImportError, match=r"pip install 'vi_jax\[prepare\]'"):
        prepared.prepare("cifar10", data_dir=tmp_path)


def test_unwritable_data_dir(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="pass data_dir= .* or set TFDS_DATA_DIR"):
        sources.load("mnist", data_dir=blocked / "d")


def test_data_dir_comes_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(sources.load("mnist", "test").image) == 10000


def test_two_that_prepare_one_set_at_a_time_both_have_it(tmp_path, monkeypatch):
    """As runs that are started side by side on a new machine."""
    _first_thousand("mnist", monkeypatch, threading.Barrier(2, timeout=60).wait)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        each = lambda _: prepared.prepare("mnist", data_dir=tmp_path)
        one, other = pool.map(each, range(2))
    assert one == other == prepared.find("mnist", tmp_path)
    test = sources.load("mnist", "test", data_dir=tmp_path)
    original = _original(MNIST, "t10k")
    assert _rows(test.image, test.label) == _rows(*(a[:1000] for a in original))


def test_a_tfrecord_preparation_is_passed_over(tmp_path, monkeypatch):
    _first_thousand("mnist", monkeypatch)
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"splits": [{"name": "train"}]}')
    # The other preparation, which only TensorFlow reads, stays as it is.
    assert len(sources.load("mnist", "test", data_dir=tmp_path).image) == 1000
    assert [p.name for p in folder.iterdir()] == ["dataset_info.json"]
    assert len(sources.load("mnist", "test[:7]", data_dir=tmp_path).image) == 7


def test_read_only_folder_still_loads(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    (tmp_path / "vi_jax").write_text("no folder can be made here")
    with pytest.warns(UserWarning, match="no cache in"):
        assert len(sources.load("mnist", "test", data_dir=tmp_path).image) == 10000


@pytest.mark.parametrize("damage", ["truncated", "gone", "info"])
def test_damaged_prepared_files(data_dir, tmp_path, damage):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    folder = tmp_path / "mnist" / "3.0.1"
    file = next(folder.glob("mnist-test*"))
    if damage == "truncated":
        _truncate(file)
    elif damage == "gone":
        file.unlink()
    else:
        (folder / "dataset_info.json").write_text("{")
    with pytest.raises(OSError, match=f"damaged .*delete {folder} and prepare"):
        sources.load("mnist", "test", data_dir=tmp_path)


def test_large_splits_are_read_by_parts(data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    monkeypatch.setattr(records, "MAX_BYTES", 784 * 500)
    with pytest.raises(ValueError, match=r"load a part, such as 'test\[:250\]'"):
        sources.load("mnist", "test", data_dir=tmp_path)
    part = sources.load("mnist", "test[-300:]", data_dir=tmp_path)
    whole = sources.load("mnist", "test[-300:]", data_dir=data_dir)
    np.testing.assert_array_equal(part.image, whole.image)
    assert not (tmp_path / "vi_jax").exists()


def _prepare_own(data_dir, features, examples):
    """A set of another shape, prepared as a stock builder would have left it."""
    import tensorflow_datasets as tfds

    class OwnSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(num_classes=5),
                "label_x": tfds.features.Scalar(np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({k: kinds[k] for k in features}),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, example in enumerate(examples):
                yield i, {k: example[k] for k in features}

    builder = OwnSet(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")


def _example(i, size=6):
    from PIL import Image

    pixels = np.full((size, size, 3), 40 * i, np.uint8)
    return {"image": Image.fromarray(pixels), "label": i, "label_x": 0.5}


def test_any_prepared_set_is_read(tmp_path):
    _prepare_own(tmp_path, ["image", "label"], [_example(i) for i in range(5)])
    own = sources.load("own_set", data_dir=tmp_path)
    assert own.image.shape == (5, 6, 6, 3)
    np.testing.assert_array_equal(own.image[:, 2, 3, 1], 40 * own.label)


def test_a_set_without_labels(tmp_path):
    _prepare_own(tmp_path, ["image", "label_x"], [_example(i) for i in range(5)])
    assert sources.load("own_set", data_dir=tmp_path).label is None


def test_sets_that_are_no_images_of_one_size(tmp_path):
    _prepare_own(tmp_path / "a", ["label"], [_example(i) for i in range(5)])
    with pytest.raises(ValueError, match=r"own_set has no .'image'., only .'label'."):
        sources.load("own_set", data_dir=tmp_path / "a")
    _prepare_own(tmp_path / "b", ["image"], [_example(i, 6 + i) for i in range(5)])
    with pytest.raises(ValueError, match="images of own_set differ in size"):
        sources.load("own_set", data_dir=tmp_path / "b")


def test_several_configs(data_dir, tmp_path):
    for config in ("a", "b"):
        shutil.copytree(data_dir / "mnist", tmp_path / "some_set" / config)
    with pytest.raises(ValueError, match="load one of .*some_set/a.*some_set/b"):
        sources.load("some_set", data_dir=tmp_path)
    assert prepared.find("some_set/b", tmp_path).name == "some_set/b"


def test_the_command(data_dir, capsys):
    assert __main__.main(["prepare", "mnist", "--data-dir", str(data_dir)]) == 0
    assert "mnist is prepared in" in capsys.readouterr().out

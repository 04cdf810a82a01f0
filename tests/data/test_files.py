"""A user's own arrays and files."""

import gzip
import re
import struct

import numpy as np
import pytest

from vi_jax.data import files, sources

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (12, 5, 4, 3), np.uint8)
LABEL = rng.integers(0, 10, 12)


@pytest.mark.parametrize(
    "image, shape",
    [
        (IMAGE, (12, 5, 4, 3)),
        (IMAGE[..., 0], (12, 5, 4, 1)),
        (IMAGE[:, 0, :, 0], (12, 1, 4, 1)),
    ],
)
def test_shapes(image, shape):
    dataset = sources.from_arrays(image, LABEL)
    assert dataset.image.shape == shape and dataset.image.dtype == np.uint8
    np.testing.assert_array_equal(dataset.image.reshape(image.shape), image)
    assert dataset.label.dtype == np.int32
    np.testing.assert_array_equal(dataset.label, LABEL)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32, np.float64])
def test_whole_numbers_are_kept(dtype):
    got = sources.from_arrays(IMAGE.astype(dtype)).image
    np.testing.assert_array_equal(got, IMAGE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fractions_are_scaled(dtype):
    got = sources.from_arrays((IMAGE / 255).astype(dtype)).image
    np.testing.assert_array_equal(got, IMAGE)


def test_bool_is_black_and_white():
    got = sources.from_arrays(IMAGE > 100).image
    np.testing.assert_array_equal(got, np.where(IMAGE > 100, 255, 0))


def test_black_images_are_allowed():
    assert not sources.from_arrays(np.zeros((3, 2, 2), np.uint8)).image.any()


def _with(value, dtype=np.float32):
    image = np.full((6, 2, 2), 0.5, dtype)
    image[4, 0, 1] = value
    return image


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((0, 2, 2), np.uint8), "not empty"),
        (np.zeros(5, np.uint8), "it must be [n, h, w, 1 or 3]"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), "it must be [n, h, w, 1 or 3]"),
        (
            np.zeros((2, 5, 4, 2), np.uint8),
            "[2, 5, 4, 2]: it must be [n, h, w, 1 or 3]",
        ),
        (np.zeros((2, 3, 4, 4), np.uint8), "flatten them to [n, d]"),
        (_with(np.nan), "image[4] has a NaN or an infinity"),
        (_with(np.inf), "image[4] has a NaN or an infinity"),
        (_with(-0.5), "floats from -0.5 to 0.5"),
        (_with(1.5), "floats from 0.5 to 1.5"),
        (_with(256.0), "floats from 0.5 to 256"),
        (np.full((2, 2, 2), 256), "integers from 256 to 256"),
        (np.full((2, 2, 2), -1), "integers from -1 to -1"),
        (np.eye(4, dtype=np.uint8)[None], "pass image.astype(bool)"),
        (np.eye(4, dtype=np.int64)[None], "multiply it by 255"),
        (np.array([["a", "b"]]), "pass integers or floats"),
        (np.ones((2, 2), complex), "pass integers or floats"),
        (np.array([[None, 1]]), "pass integers or floats"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sources.from_arrays(image)


@pytest.mark.parametrize(
    "label, message",
    [
        (LABEL[:-1], "label has shape [11]: it must be [12]"),
        (LABEL[:, None], "label has shape [12, 1]"),
        (np.full(12, np.nan), "label is of dtype float64"),
        (LABEL == 0, "label is of dtype bool"),
        (np.full(12, 2**40), "do not fit int32"),
    ],
)
def test_bad_labels(label, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sources.from_arrays(IMAGE, label)


def _idx(array, code=0x08):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def _write(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, IMAGE)
    elif name.endswith(".npz"):
        np.savez(path, image=IMAGE, label=LABEL)
    else:
        data = _idx(IMAGE)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


NAMES = ["a.npy", "a.npz", "a.idx", "a-idx3-ubyte", "a.idx3-ubyte.gz", "a.idx.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(tmp_path, name):
    path = _write(tmp_path, name)
    dataset = sources.load(path, "train[2:-1]")
    np.testing.assert_array_equal(dataset.image, IMAGE[2:-1])
    if name.endswith(".npz"):
        np.testing.assert_array_equal(dataset.label, LABEL[2:-1])
    else:
        assert dataset.label is None
    np.testing.assert_array_equal(sources.load(str(path)).image, IMAGE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, name, keep):
    path = _write(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        sources.load(path)


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_byte_is_an_array_or_a_clear_error(tmp_path, name):
    path = _write(tmp_path, name)
    data = path.read_bytes()
    for i in [*range(0, 128), *range(128, len(data), 29)]:
        damaged = bytearray(data)
        damaged[i % len(data)] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert sources.load(path).image.dtype == np.uint8
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("code, dtype", [(0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4")])
def test_other_idx_dtypes(tmp_path, code, dtype):
    path = tmp_path / "a.idx"
    path.write_bytes(_idx(IMAGE.astype(dtype), code))
    np.testing.assert_array_equal(files.read_idx(path), IMAGE)


def test_npz_with_named_splits(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=IMAGE[:8], y_train=LABEL[:8], x_test=IMAGE[8:])
    train, test = sources.load(path), sources.load(path, "test[:2]")
    np.testing.assert_array_equal(train.image, IMAGE[:8])
    np.testing.assert_array_equal(train.label, LABEL[:8])
    np.testing.assert_array_equal(test.image, IMAGE[8:10])
    assert test.label is None
    with pytest.raises(ValueError, match=r"only \['test', 'train'\]"):
        sources.load(path, "valid")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_one_split(tmp_path, name):
    path = _write(tmp_path, name)
    with pytest.raises(ValueError, match=r"no split 'test', only \['train'\]"):
        sources.load(path, "test")
    with pytest.raises(ValueError, match="selects no examples"):
        sources.load(path, "train[12:]")


def test_objects_are_refused(tmp_path):
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", image=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=f"{name} is no file of plain arrays"):
            sources.load(tmp_path / name)


def test_npz_without_images(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, pictures=IMAGE)
    with pytest.raises(ValueError, match=r"holds \['pictures'\], but no 'image'"):
        sources.load(path)


def test_unsuitable_content_names_the_file(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy: image has shape \[5\]"):
        sources.load(path)


@pytest.mark.parametrize(
    "name", ["a.npy", "b.npz", "c-ubyte.gz", "d.png", "folder/e.idx"]
)
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sources.load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.png", "a.gz", "a.csv", "a"])
def test_unsupported_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"must end in one of \.npy, \.npz"):
        sources.load(tmp_path / name)

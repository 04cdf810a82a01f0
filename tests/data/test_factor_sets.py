"""Public sets with factors, prepared under the stock builders' own feature lists."""

import functools

import numpy as np
import pytest

from vi_jax.data import load_factors, records, sources
from vi_jax.data.images import image_data

NAMES = {
    "dsprites": "label_shape label_scale label_orientation label_x_position "
    "label_y_position",
    "shapes3d": "label_floor_hue label_wall_hue label_object_hue label_scale "
    "label_shape label_orientation",
    "smallnorb": "label_category instance label_elevation label_azimuth label_lighting",
    "svhn_cropped": "label",
    "cifar10": "label",
}
SHAPES = {
    "dsprites": (64, 64, 1),
    "shapes3d": (64, 64, 3),
    "smallnorb": (96, 96, 1),
    "svhn_cropped": (32, 32, 3),
    "cifar10": (32, 32, 3),
    "celeb_a": (218, 178, 3),
}
N = 30


def value(name, i, size):
    """The value of a class, a function of (name, i) that differs between names."""
    return (i * (1 + len(name)) + sum(map(ord, name))) % size


def pixels(shape, i, high):
    """An image that tells its number i: five bits in its first row."""
    image = np.zeros(shape, np.uint8)
    bits = [(i >> k) & 1 for k in range(5)]
    image[: shape[0] // 2, : 5 * 6] = np.repeat(bits, 6)[None, :, None] * high
    return image


def numbers(images):
    """The i of images made by `pixels`."""
    bits = images[:, 2, 2:30:6, 0] > 127
    return bits @ (1 << np.arange(5))


def prepare(name, data_dir, n=N, splits=("train",)):
    """The set `name` as its stock builder leaves it, with n made-up examples."""
    import tensorflow_datasets as tfds
    from PIL import Image

    stock = tfds.builder_cls(name)
    high = 1 if name == "dsprites" else 255

    def example(feature, key, i):
        if isinstance(feature, tfds.features.FeaturesDict):
            return {k: example(f, k, i) for k, f in feature.items()}
        if isinstance(feature, tfds.features.Image):
            image = pixels(feature.shape, i, 255 if key == "image2" else high)
            return Image.fromarray(image.squeeze())
        if isinstance(feature, tfds.features.ClassLabel):
            return value(key, i, feature.num_classes)
        if isinstance(feature, tfds.features.Text):
            return str(i)
        return np.dtype(feature.np_dtype).type(value(key, i, 2))

    class Builder(stock, skip_registration=True):
        name = stock.name

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for i in range(n):
                yield i, example(self.info.features, "", i)

    Builder.pkg_dir_path = stock.pkg_dir_path
    Builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir


@pytest.fixture(scope="session")
def factor_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factor_sets")
    for name in ("dsprites", "shapes3d", "smallnorb", "svhn_cropped", "cifar10"):
        prepare(name, folder)
    return folder


SIZES = {
    "dsprites": (3, 6, 40, 32, 32),
    "shapes3d": (10, 10, 10, 8, 4, 15),
    "smallnorb": (5, 10, 9, 18, 6),
    "svhn_cropped": (10,),
    "cifar10": (10,),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_factor_stays_with_its_image_and_in_its_place(factor_dir, name):
    for _ in range(2):  # decoded, then from the cache
        image, factors, names = load_factors(name, data_dir=factor_dir)
        assert image.shape == (N, *SHAPES[name]) and image.dtype == np.uint8
        assert set(np.unique(image)) == {0, 255}  # dsprites' 1 is 255
        assert names == tuple(NAMES[name].split()) and factors.dtype == np.int32
        i = numbers(image)
        assert sorted(i) == list(range(N))
        want = [value(k, i, n) for k, n in zip(names, SIZES[name], strict=True)]
        np.testing.assert_array_equal(factors, np.stack(want, axis=1))


def test_attributes_of_celeb_a(tmp_path):
    prepare("celeb_a", tmp_path, n=3)
    image, factors, names = load_factors("celeb_a", data_dir=tmp_path)
    assert image.shape == (3, 218, 178, 3)
    i = numbers(image)  # JPEG keeps blocks of 6 pixels well enough
    assert sorted(i) == [0, 1, 2]
    assert len(names) == 40 and factors.shape == (3, 40)
    assert names[0] == "5_o_Clock_Shadow" and names[-1] == "Young"
    assert {"Bald", "Male"} < set(names) and not {"Identity_No", "nose_x"} & set(names)
    want = [value(name, i, 2) for name in names]
    np.testing.assert_array_equal(factors, np.stack(want, axis=1))
    assert sources.load("celeb_a", data_dir=tmp_path).label is None


@pytest.mark.parametrize("name", NAMES)
def test_load_gives_a_label_where_there_is_one(factor_dir, name):
    part = sources.load(name, "train[5:25]", data_dir=factor_dir)
    assert part.image.shape == (20, *SHAPES[name])
    if name in ("svhn_cropped", "cifar10"):
        want = value("label", numbers(part.image), 10)
        np.testing.assert_array_equal(part.label, want)
    else:
        assert part.label is None


def test_a_slice_of_a_large_split_is_read_alone(factor_dir, tmp_path, monkeypatch):
    folder = prepare("dsprites", tmp_path)
    whole = load_factors("dsprites", "train", data_dir=factor_dir)
    monkeypatch.setattr(sources, "_MAX_SLICED", 64 * 64 * 10)
    read, rows = records.read, []
    spy = lambda found, split, part: rows.append(part) or read(found, split, part)
    monkeypatch.setattr(records, "read", spy)
    cache = folder / "vi_jax"

    def check():
        part = load_factors("dsprites", "train[3:9]", data_dir=folder)
        np.testing.assert_array_equal(part.image, whole.image[3:9])
        np.testing.assert_array_equal(part.factors, whole.factors[3:9])
        assert rows.pop() == slice(3, 9) and not rows

    check()
    assert not cache.exists()
    # A whole split is cached as ever, and a slice still does not go through it.
    for reads in ([slice(None)], []):
        again = load_factors("dsprites", data_dir=folder)
        np.testing.assert_array_equal(again.factors, whole.factors)
        assert rows == reads
        rows.clear()
    check()


def test_the_last_tenth_is_the_test_split_where_there_is_none(factor_dir):
    whole = sources.load("svhn_cropped", data_dir=factor_dir)
    make = functools.partial(image_data, "svhn_cropped", binarize="none", batch_size=2)
    data = make(seed=0, num_valid=4, data_dir=factor_dir)
    flat = whole.image.reshape(N, -1)
    np.testing.assert_array_equal(data.test, flat[27:])
    np.testing.assert_array_equal(data.test_label, whole.label[27:])
    np.testing.assert_array_equal(data.valid, flat[23:27])
    np.testing.assert_array_equal(data.train.resident["image"], flat[:23])
    np.testing.assert_array_equal(data.train.resident["label"], whole.label[:23])
    np.testing.assert_allclose(data.mean, flat[:23].mean(0) / 255, atol=1e-6)
    assert data.num_train == 23


def test_a_test_split_of_its_own_is_used(tmp_path):
    prepare("svhn_cropped", tmp_path, splits=("train", "test"))
    data = image_data(
        "svhn_cropped", binarize="none", batch_size=2, seed=0, data_dir=tmp_path
    )
    assert data.num_train == N - 3 and len(data.test) == N


def test_a_set_without_labels_has_a_test_split_too(factor_dir):
    data = image_data(
        "dsprites", binarize="threshold", batch_size=2, seed=0, data_dir=factor_dir
    )
    assert len(data.test) == 3 and data.test_label is None
    assert set(np.unique(data.test)) == {0, 255}


def test_wrong_use(factor_dir, tmp_path):
    with pytest.raises(ValueError, match="is a file: only public sets"):
        load_factors("sprites.npz", data_dir=factor_dir)
    with pytest.raises(ValueError, match=r"no split 'test', only \['train'\]"):
        load_factors("dsprites", "test", data_dir=factor_dir)
    with pytest.raises(FileNotFoundError, match="shapes3d is not prepared"):
        load_factors("shapes3d", data_dir=tmp_path)
    prepare("svhn_cropped", tmp_path, n=9)
    with pytest.raises(ValueError, match="only 9 images and no test split"):
        image_data(
            "svhn_cropped", binarize="none", batch_size=2, seed=0, data_dir=tmp_path
        )


def test_a_cache_without_the_factors_says_so(factor_dir, tmp_path):
    prepare("smallnorb", tmp_path, n=3)
    load_factors("smallnorb", data_dir=tmp_path)
    cache = tmp_path / "vi_jax" / "smallnorb" / "2.0.0" / "train.npz"
    np.savez(cache, image=np.load(cache)["image"])
    with pytest.raises(ValueError, match="no instance, .*delete the folder vi_jax/sm"):
        load_factors("smallnorb", data_dir=tmp_path)

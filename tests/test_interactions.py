"""Interactions from files and sets, their splits, and dense batches of sparse rows."""

import gzip
import re

import jax
import numpy as np
import pytest
from scipy import sparse

from vi_jax.data import interaction_batches, load_interactions, strong_split
from vi_jax.data.interactions import dense_rows, from_pairs

PAIRS = {("u1", "a"), ("u1", "b"), ("u2", "b"), ("u2", "c"), ("u3", "c"), ("u3", "a")}
RATINGS = {
    "u1 a": 5,
    "u1 b": 4,
    "u1 c": 3,
    "u2 b": 4.5,
    "u2 c": 4,
    "u3 c": 5,
    "u3 a": 4,
}


def pairs_of(data):
    """{(user name, item name)}, through scipy."""
    rows, columns = data.matrix().nonzero()
    names = zip(data.user_names[rows], data.item_names[columns], strict=True)
    return {(str(user), str(item)) for user, item in names}


def lines(header, mark, order=(0, 1, 2), extra=""):
    rows = [(*pair.split(), str(rating)) for pair, rating in RATINGS.items()]
    text = [mark.join(row[i] for i in order) + extra for row in rows]
    return "\n".join([*([header] if header else []), *text]) + "\n"


FILES = {
    "plain.tsv": lines("", "\t", extra="\t881250949"),
    "recbole.inter": lines("user_id:token\titem_id:token\trating:float", "\t"),
    "ratings.csv": lines("userId,movieId,rating,timestamp", ",", extra=",1"),
    "ratings.dat": lines("", "::", extra="::978300760"),
    "turned.csv": lines("score,title,item,user", ",", (2, 0, 1, 0)).replace(
        "\n", "\r\n"
    ),
    "bom.csv": "\ufeff" + lines("user,item,rating", ","),
    "blank.csv": "\n \r\n" + lines("user,item,rating", ","),
    "twice.csv": lines("", ",") + lines("", ",") + "\n",
    "quoted.tsv": re.sub(r"([^\t\n]+)", r'"\1"', lines("user\titem\trating", "\t")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_of_a_file_gives_the_same_choices(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(
        gzip.compress(FILES[name].encode()) if packed else FILES[name].encode()
    )
    data = load_interactions(path, min_interactions=2)
    assert pairs_of(data) == PAIRS
    assert (data.num_users, data.num_items, len(data.items)) == (3, 3, 6)


def write(tmp_path, text, name="r.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_threshold_and_least_number_of_choices(tmp_path):
    path = write(tmp_path, lines("", ","))
    kept = lambda **options: pairs_of(load_interactions(path, **options))
    assert kept(threshold=3.0, min_interactions=3) == {("u1", c) for c in "abc"}
    assert kept(threshold=5.0, min_interactions=1) == {("u1", "a"), ("u3", "c")}
    # Where the names of the columns are not in quotes, quotes are part of a name.
    path = write(tmp_path, 'user\titem\nu\t"Best" of\nu\t"a\n', "r.tsv")
    assert pairs_of(load_interactions(path, min_interactions=2)) == {
        *(("u", '"Best" of'), ("u", '"a')),
    }
    # Without ratings every line counts; quotes may hide a comma.
    path = write(tmp_path, 'user,item\nu,"Good, Bad"\nu,x\n')
    assert pairs_of(load_interactions(path, threshold=9.0, min_interactions=2)) == {
        *(("u", "Good, Bad"), ("u", "x")),
    }


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("r.csv", "", "is empty"),
        ("r.csv", "\n\n", "is empty"),
        ("r.csv", 'u,"a,5\nu,b,5\n', "line 2: this is no table .*end of data"),
        ("r.csv", "\nuser_id,rating\nu,5\n", "line 2: the header"),
        ("r.csv", "\nu,a,5\nu,b,good\n", "line 3: the rating 'good'"),
        ("r.csv", "u a 5\nu b 4\n", "line 1: 'u a 5' has one column"),
        ("r.csv", "u,a,5\nu,b,good\n", "line 2: the rating 'good' is no number"),
        ("r.csv", "u,a,5\nu,b,nan\n", "line 2: the rating 'nan' is no number"),
        ("r.csv", "u,a,5\nu,b,1_0\n", "line 2: the rating '1_0' is no number"),
        ("r.csv", "user,item,rating\n\nu,b\n", "line 3: .* has 2 columns"),
        ("r.tsv", "u\ta\t5\n\tb\t5\n", "line 2: the user or the item is empty"),
        ("r.csv", "user_id,rating\nu,5\n", "must name a user and an item column"),
        ("r.csv", "user,item,rating,score\nu,a,5,1\n", r"\['rating', 'score'\] all"),
        ("r.csv", "\nuser,rating,item,rating\n", "line 2: .*'rating', 'rating'"),
        ("r.tsv", "movieId\tuserId\tmovie:token\n", "'movieId', 'movie:token'"),
        ("r.tsv", '"user"\t"item"\n"u"\t"a\nu\tb\n', "line 3: .*no table"),
        ("r.csv", "who,what,stars\nu,a,5\n", "line 1: the rating 'stars' is no number"),
        ("r.csv", b"u,a\n\xff\xfe\x00", "is no text, or damaged"),
        ("r.csv.gz", "u,a\n", "is no text, or damaged"),
        ("r.parquet", "u,a\n", r"must end in .csv, .tsv"),
        ("r.csv", "u,a,3\nu,b,5\n", "no user has 5 interactions .* at least 4"),
    ],
)
def test_a_bad_file_is_one_clear_message(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        load_interactions(write(tmp_path, text, name))


def test_a_truncated_archive_and_what_is_not_there(tmp_path):
    whole = gzip.compress(lines("", ",").encode() * 50)
    with pytest.raises(ValueError, match="is no text, or damaged"):
        load_interactions(write(tmp_path, whole[:-20], "cut.csv.gz"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_interactions(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="prepare movielens/100k-ratings"):
        load_interactions("movielens/100k-ratings", data_dir=tmp_path)
    with pytest.raises(ValueError, match="neither the name of a set nor a path"):
        load_interactions("movie lens", data_dir=tmp_path)


def test_a_prepared_set_is_read_by_titles_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class Movielens(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = {
                "user_id": np.bytes_,
                "movie_id": np.bytes_,
                "movie_title": np.bytes_,
                "user_rating": np.float32,
            }
            features = tfds.features.FeaturesDict(
                {
                    k: tfds.features.Text() if v is np.bytes_ else v
                    for k, v in kinds.items()
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (pair, rating) in enumerate(RATINGS.items()):
                user, item = pair.split()
                title = f"Film {item} (1995)"
                yield (
                    i,
                    {
                        "user_id": user,
                        "movie_id": item,
                        "movie_title": title,
                        "user_rating": rating,
                    },
                )

    Movielens(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    data = load_interactions("movielens", min_interactions=2, data_dir=tmp_path)
    assert pairs_of(data) == {(user, f"Film {item} (1995)") for user, item in PAIRS}


def random_data(num_users=80, num_items=60, seed=0):
    """Users of 2 to 40 items, so that some items are rare."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 40, num_users)
    user = np.repeat(np.arange(num_users), counts)
    item = (num_items * rng.random(counts.sum()) ** 3).astype(int)
    user = np.concatenate([user, np.arange(num_users)])
    item = np.concatenate([item, np.full(num_users, num_items - 1)])
    names = (
        np.array([f"{c}{i}" for i in range(n)])
        for c, n in zip("ui", (num_users, num_items), strict=True)
    )
    return from_pairs(user, item, *names)


def test_the_rows_are_those_of_a_sparse_matrix_and_of_any_users():
    data = random_data()
    assert (np.diff(data.offsets) >= 1).all()
    dense = data.matrix().toarray()
    users = np.array([7, 0, 7, 79])
    chosen = data.of_users(users)
    np.testing.assert_array_equal(chosen.matrix().toarray(), dense[users])
    assert chosen.user_names.tolist() == ["u7", "u0", "u7", "u79"]


@pytest.mark.parametrize(
    "user, item, message",
    [
        ([0, 2], [0, 1], "user 'q' has no interactions"),
        ([0, 3], [0, 1], r"user\[1\] is 3: it must lie in \[0, 3\)"),
        ([0, 1], [0, -1], r"item\[1\] is -1: it must lie in \[0, 2\)"),
    ],
)
def test_pairs_that_cannot_be(user, item, message):
    with pytest.raises(ValueError, match=message):
        from_pairs(np.array(user), np.array(item), ["p", "q", "r"], ["a", "b"])


def test_a_split_parts_the_users_and_each_held_out_users_items():
    data = random_data()
    split = strong_split(data, num_valid=15, num_test=25, seed=3)
    whole, train = pairs_of(data), pairs_of(split.train)
    known = {item for _, item in train}
    assert split.train.num_users == 40
    assert set(split.train.item_names) == known  # the items are those of the training
    groups = [split.train.user_names]
    lost = short = 0
    for part, size in ((split.valid, 15), (split.test, 25)):
        seen, held = pairs_of(part.seen), pairs_of(part.held)
        groups.append(part.seen.user_names)
        assert not seen & held and seen | held <= whole
        assert part.seen.user_names.tolist() == part.held.user_names.tolist()
        assert part.seen.num_items == part.held.num_items == len(known)
        count = np.diff(part.seen.offsets) + np.diff(part.held.offsets)
        expected = np.maximum(1, np.floor(0.2 * count))
        np.testing.assert_array_equal(np.diff(part.held.offsets), expected)
        # All that is known of these users is there, and nothing else.
        mine = {p for p in whole if p[0] in set(part.seen.user_names)}
        assert seen | held == {p for p in mine if p[1] in known}
        lost += len(mine - (seen | held))
        short += size - part.seen.num_users
    everyone = np.concatenate(groups)
    assert len(set(everyone)) == len(everyone) == 80 - short
    assert split.num_too_short == short
    assert split.num_unseen >= lost


def test_items_unknown_in_training_are_dropped_and_counted():
    """Each user has one item of their own, and two that all have."""
    n = 12
    user = np.repeat(np.arange(n), 3)
    item = np.stack([np.arange(n), np.full(n, n), np.full(n, n + 1)], 1).ravel()
    data = from_pairs(
        user, item, np.arange(n).astype(str), np.arange(n + 2).astype(str)
    )
    split = strong_split(data, num_valid=2, num_test=3, seed=0)
    assert (split.num_unseen, split.num_too_short) == (5, 0)
    assert split.train.num_items == n - 5 + 2
    alone = from_pairs(user[::3], item[::3], data.user_names, data.item_names)
    with pytest.raises(ValueError, match="no held-out user has two items"):
        strong_split(alone, num_valid=2, num_test=3, seed=0)


def test_a_split_is_its_seeds_and_the_held_items_are_drawn_evenly():
    data = random_data()
    split = lambda seed: strong_split(data, num_valid=10, num_test=20, seed=seed)
    jax.tree.map(np.testing.assert_array_equal, split(1), split(1))
    assert set(split(1).test.seen.user_names) != set(split(2).test.seen.user_names)
    # A user of ten items holds out two: each place with the chance 0.2.
    n = 3000
    rows = np.repeat(np.arange(n), 10)
    even = from_pairs(
        rows, np.tile(np.arange(10), n), np.arange(n).astype(str), list("abcdefghij")
    )
    held = strong_split(even, num_valid=1, num_test=2900, seed=0).test.held
    share = held.matrix().toarray().mean(0)
    np.testing.assert_allclose(share, 0.2, atol=4.5 * (0.16 / 2900) ** 0.5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_valid": 0}, "both must be at least 1"),
        ({"num_valid": 79}, "left for training"),
        ({"held_share": 1.0}, r"held_share must be in \(0, 1\)"),
    ],
)
def test_a_split_that_cannot_be(wrong, message):
    asked = {"num_valid": 1, "num_test": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match=message):
        strong_split(random_data(), **asked)


def test_a_batch_is_its_rows_and_an_epoch_is_everyone_once():
    data = random_data()
    batches = interaction_batches(data, batch_size=20, seed=0)
    assert sum(a.nbytes for a in batches.resident.values()) == 4 * (
        81 + data.matrix().nnz
    )
    gather, dense = jax.jit(batches.gather), data.matrix().toarray()
    seen = []
    for step in range(4):
        travelling = batches.at(step)
        batch = gather(jax.device_put(batches.resident), travelling)
        np.testing.assert_array_equal(batch["counts"], dense[travelling["index"]])
        assert batch["step"] == step
        seen += travelling["index"].tolist()
    assert sorted(seen) == list(range(80))


def test_a_batch_of_two_epochs_may_have_the_longest_user_twice():
    """Four users in batches of three: none of their items is left out."""
    owner = np.repeat([0, 1, 2, 3], [50, 1, 1, 1])
    items = np.concatenate([np.arange(50), [0, 1, 2]])
    data = from_pairs(owner, items, np.arange(4), np.arange(50))
    batches, dense = interaction_batches(data, batch_size=3, seed=0), data.matrix()
    places = [batches.at(step) for step in range(40)]
    assert any(np.sum(at["index"] == 0) == 2 for at in places)
    gather = jax.jit(batches.gather)
    for at in places:
        rows = gather(jax.device_put(batches.resident), at)["counts"]
        np.testing.assert_array_equal(rows, dense.toarray()[at["index"]])


def test_dense_rows_are_those_of_scipy_for_the_longest_and_the_empty():
    """Capacity reached to the last entry, empty rows, the same row twice."""
    x = (np.random.default_rng(1).random((6, 9)) < 0.4).astype(np.float32)
    x[0], x[1], x[5] = 1, 0, 0
    csr = sparse.csr_matrix(x)
    for users in ([0, 0, 1], [1, 5, 1], [5, 0, 2], [3, 4, 0]):
        got = dense_rows(
            *(jax.numpy.asarray(a) for a in (csr.indptr, csr.indices, np.array(users))),
            num_items=9,
            capacity=int(np.sort(x.sum(1))[-1] * 2),
        )
        np.testing.assert_array_equal(got, x[users])

"""Files and command lines that are not what they should be, drawn by hypothesis.

Whatever a file holds, it is read or refused by one error that names it, no code in it
runs, and nothing is written outside of the folder of the run. The draws are the same in
every run.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import pickle
import shutil
import sys
import traceback
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import examples
from hypothesis import given, strategies as st

from experiments import mnist_conv, mnist_vae, molecules
from vi_jax import commands, runs
from vi_jax.checkpoints import open_checkpoints
from vi_jax.data import (
    __main__ as data_command,
    builders,
    load,
    load_factors,
    load_interactions,
    load_sentences,
    prepared,
    read_table,
)
from vi_jax.training import TrainState, init_state

OURS = ("/vi_jax/", "/experiments/")


def refused(call, *, naming):
    """Whether the call raises; if so, what a user can mend, by a check of ours."""
    try:
        call()
    except (ValueError, OSError) as error:
        raised_at = traceback.extract_tb(error.__traceback__)[-1].filename
        assert any(part in raised_at for part in OURS), (raised_at, error)
        assert str(naming) in str(error), error
        return True
    return False


# ------------------------------------------------------------------------ data files


def archive(**columns):
    file = io.BytesIO()
    np.savez(file, **columns)
    return file.getvalue()


def single(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IMAGE = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
IDX = b"\0\0\x08\x03" + np.array([6, 2, 2], ">u4").tobytes() + IMAGE.tobytes()
X = np.arange(6.0).reshape(3, 2)
RATINGS = b"user,item,rating\n" + b"".join(
    b"u%d,i%d,5\n" % (u, i) for u in range(2) for i in range(5)
)
SMILES = b"SMILES,name\nCCO,ethanol\nc1ccccc1,benzene\n"

# Name of a sound file -> (what it holds, its reader).
READERS = {
    "a.idx": (IDX, load),
    "a-ubyte.gz": (gzip.compress(IDX, mtime=0), load),
    "a.npy": (single(IMAGE), load),
    "a.npz": (archive(x_train=IMAGE, y_train=np.arange(6)), load),
    "b.npz": (archive(X=X, y=np.arange(3)), read_table),
    "t.csv": (b"a,b\n1,x\n2,y\n,nan\n", read_table),
    "t.tsv.gz": (gzip.compress(b"a\tb\n1\tx\n", mtime=0), read_table),
    "r.csv": (RATINGS, load_interactions),
    "r.dat": (RATINGS.replace(b",", b"::"), load_interactions),
    "r.tsv.gz": (
        gzip.compress(RATINGS.replace(b",", b"\t"), mtime=0),
        load_interactions,
    ),
    "s.txt": (b"a sentence\nanother one\n", load_sentences),
    "s.txt.gz": (gzip.compress(b"a sentence\nanother one\n", mtime=0), load_sentences),
    "m.smi": (b"CCO ethanol\nc1ccccc1\n", molecules.read),
    "m.csv.gz": (gzip.compress(SMILES, mtime=0), molecules.read),
}

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def changed(data, changes):
    data = bytearray(data)
    for kind, share, extra in changes:
        place = int(share * len(data))
        if kind == "flip" and data:
            data[place] ^= extra[0] or 1
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = extra
        else:
            data += data[place:]
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_the_sound_files_are_read(folder, name):
    data, read = READERS[name]
    (folder / name).write_bytes(data)
    assert len(read(folder / name))


@pytest.mark.parametrize("name", READERS)
@examples(60)
@given(changes=CHANGES)
def test_a_damaged_file_is_read_or_refused_by_name(folder, name, changes):
    data, read = READERS[name]
    (folder / name).write_bytes(changed(data, changes))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, for text that looks like a header
        refused(lambda: read(folder / name), naming=name)


@pytest.mark.parametrize("name", READERS)
@examples(40)
@given(data=st.binary(max_size=60) | st.text("01,;\t:\n\r\"' xC=\0é", max_size=40))
def test_a_file_of_anything_else_is_read_or_refused_by_name(folder, name, data):
    data = data.encode() if isinstance(data, str) else data
    (folder / name).write_bytes(gzip.compress(data) if ".gz" in name else data)
    refused(lambda: READERS[name][1](folder / name), naming=name)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", ["", "folder/", "~no-such-user/", "a" * 300 + "/"])
def test_a_file_that_is_not_there_is_refused_by_name(folder, name, place):
    (folder / "folder" / name).mkdir(parents=True, exist_ok=True)
    path = f"{place}{name}" if place[:1] == "~" else folder / "empty" / f"{place}{name}"
    path = folder / "folder" / name if place == "folder/" else path
    assert refused(lambda: READERS[name][1](path), naming=name)


# ------------------------------------------------------------------- code inside data


class Bomb:
    """What a pickle of it does when it is read: make a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def bombs(marker):
    """Files of every form that holds a pickle, by their form."""
    objects = np.array([Bomb(marker)], dtype=object)
    file = io.BytesIO()
    np.save(file, objects, allow_pickle=True)
    raw = pickle.dumps(Bomb(marker))
    in_zip = io.BytesIO()
    with zipfile.ZipFile(in_zip, "w") as packed:
        for member in ("x_train.npy", "y_train.npy", "X.npy", "y.npy", "x_test.npy"):
            packed.writestr(member, file.getvalue())
        packed.writestr("image", raw)
    whole = io.BytesIO()
    np.savez(whole, x_train=objects, X=objects, image=objects, allow_pickle=True)
    return {
        "npy": file.getvalue(),
        "raw": raw,
        "zip": in_zip.getvalue(),
        "npz": whole.getvalue(),
        "gz": gzip.compress(raw),
    }


def test_the_bomb_works(tmp_path):
    """Else the tests below would say nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
    np.load(io.BytesIO(bombs(tmp_path / "again")["npy"]), allow_pickle=True)
    assert (tmp_path / "again").exists()


@pytest.mark.parametrize("form", ["npy", "raw", "zip", "npz", "gz"])
@pytest.mark.parametrize("name", [*READERS, "sprites.pkl", "x.pickle", "model.pt"])
def test_no_pickle_in_a_file_of_data_is_read(tmp_path, name, form):
    (tmp_path / name).write_bytes(bombs(tmp_path / "ran")[form])
    read = READERS.get(name, (b"", load))[1]
    # A pickle may be text too, as far as sentences go.
    refused(lambda: read(tmp_path / name), naming=name)
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------- prepared


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """Six images of 4 x 4 with labels, prepared as the set "small"."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "small"

        def _info(self):
            image = tfds.features.Image(shape=(4, 4, 1))
            label = tfds.features.ClassLabel(num_classes=3)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                pixels = np.full((4, 4), 40 * i, np.uint8)
                yield i, {"image": Image.fromarray(pixels), "label": i % 3}

    data_dir = tmp_path_factory.mktemp("sets")
    with prepared.quiet():
        Small(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir


def copy_of(small_set, to):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(small_set / "small", to / "small")
    return to / "small" / "1.0.0"


def is_whole(found):
    """Whether it is the small set, in whatever order it lies prepared."""
    number = found.image[:, 0, 0, 0] // 40
    return (np.sort(number) == np.arange(6)).all() and (found.label == number % 3).all()


def test_the_small_set_is_read(small_set, tmp_path):
    copy_of(small_set, tmp_path)
    assert is_whole(load("small", data_dir=tmp_path))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@examples(25)
@given(changes=CHANGES)
def test_a_damaged_description_of_a_set_is_read_or_refused(
    small_set, folder, name, changes
):
    here = copy_of(small_set, folder / "sets")
    (here / name).write_bytes(changed((here / name).read_bytes(), changes))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(lambda: load("small", data_dir=folder / "sets"), naming="small")


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "[]", "{}", '{"splits": [[]]}'])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_description_of_something_else_is_refused(small_set, tmp_path, name, text):
    here = copy_of(small_set, tmp_path)
    (here / name).write_text(text)
    assert refused(lambda: load("small", data_dir=tmp_path), naming="small")


@examples(15)
@given(changes=CHANGES)
def test_damaged_records_of_a_set_are_refused_and_never_others(
    small_set, folder, changes
):
    here = copy_of(small_set, folder / "records")
    shutil.rmtree(folder / "records" / "vi_jax", ignore_errors=True)
    (file,) = here.glob("*array_record*")
    data = file.read_bytes()
    last = len(data.rstrip(b"\0"))  # most of it is empty
    file.write_bytes(changed(data[:last], changes) + data[last:])
    read = lambda: load("small", data_dir=folder / "records")
    if not refused(read, naming="small"):
        assert is_whole(read())


FEATURE = '{"type": "spy_of_fuzz.Feature", "content": {}}'


@pytest.mark.parametrize(
    "features",
    [
        '{"pythonClassName": "spy_of_fuzz.Feature", "jsonFeature": {"json": "{}"}}',
        '{"python_class_name": "spy_of_fuzz.Feature", "json_feature": {"json": "{}"}}',
        FEATURE,
        json.dumps(
            {
                "pythonClassName": "tensorflow_datasets.core.features.features_dict."
                "FeaturesDict",
                "jsonFeature": {"json": f'{{"image": {FEATURE}}}'},
            }
        ),
    ],
)
@pytest.mark.parametrize("read", [load, load_factors, load_interactions])
def test_no_module_that_a_set_names_is_imported(
    small_set, tmp_path, monkeypatch, features, read
):
    """tensorflow-datasets would import it; it may lie in the folder of the caller."""
    (tmp_path / "spy_of_fuzz.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    here = copy_of(small_set, tmp_path / "sets")
    (here / "features.json").write_text(features)
    assert refused(lambda: read("small", data_dir=tmp_path / "sets"), naming="small")
    assert "spy_of_fuzz" not in sys.modules


@pytest.mark.parametrize("form", ["npy", "raw", "zip", "npz", "gz", "bytes", "float"])
def test_whatever_is_in_the_cache_of_a_set_it_is_made_anew(small_set, tmp_path, form):
    copy_of(small_set, tmp_path)
    others = {
        "bytes": archive(other=np.zeros(3)),
        "float": archive(image=np.zeros((6, 4, 4, 1)), label=np.arange(6)),
    }
    cache = tmp_path / "vi_jax" / "small" / "1.0.0" / "train.npz"
    cache.parent.mkdir(parents=True)
    cache.write_bytes((others | bombs(tmp_path / "ran"))[form])
    assert is_whole(load("small", data_dir=tmp_path))
    assert not (tmp_path / "ran").exists()


NAMES = st.text("ab./\\~*?-_:[] \0é", max_size=12) | st.sampled_from(
    ["small/..", "small/../..", "..", "/", "~", "small/.", "", "/etc/passwd", "a/b/c"]
)


@examples(120)
@given(name=NAMES, split=st.text("train[:-5]0. ", max_size=9))
def test_no_name_of_a_set_leads_out_of_its_folder(small_set, name, split):
    before = sorted(small_set.rglob("*"))
    try:
        load(name, split, data_dir=small_set / "inner")
    except (ValueError, OSError) as error:
        assert any(
            part in traceback.extract_tb(error.__traceback__)[-1].filename
            for part in (*OURS, "pathlib")
        )
    else:
        raise AssertionError((name, split))
    assert sorted(small_set.rglob("*")) == before
    if "." in name and set(name) <= set("./"):
        with pytest.raises(ValueError):
            builders.check_name(name)


@examples(60)
@given(name=NAMES, options=st.lists(NAMES | st.just("--data-dir"), max_size=3))
def test_the_data_command_has_one_message(small_set, name, options):
    argv = ["prepare", name, *options]
    if "--data-dir" not in options:
        argv += ["--data-dir", str(small_set / "inner")]
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", err)
        patch.setattr(prepared, "_check_writable", lambda folder: None)
        try:
            code = data_command.main(argv)
        except SystemExit as stop:
            code = stop.code
    assert code in (1, 2) and "error: " in err.getvalue()
    assert "Traceback" not in err.getvalue()


# ----------------------------------------------------------------------- run folders

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "k", "step"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KNOBS = dataclasses.asdict(mnist_vae.Knobs())


@examples(80)
@given(st.sampled_from([*KNOBS, "more"]), JSON, st.sampled_from(["mnist_vae", None]))
def test_stored_knobs_are_what_knobs_can_be(folder, name, value, experiment):
    text = json.dumps({"experiment": experiment, "knobs": {**KNOBS, name: value}})
    (folder / "knobs.json").write_text(text)
    read = lambda: runs.read_knobs(folder, "mnist_vae", mnist_vae.Knobs)
    if not refused(read, naming=folder):
        found = dataclasses.asdict(read())
        assert experiment == "mnist_vae" and set(found) == set(KNOBS)
        for knob, default in KNOBS.items():
            fits = isinstance(found[knob], (int, float)) and isinstance(default, float)
            assert fits or isinstance(found[knob], type(default))


@examples(80)
@given(JSON | st.binary(max_size=30))
def test_any_other_knobs_file_is_refused(folder, value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (folder / "knobs.json").write_bytes(data)
    for call in (
        lambda: runs.read_knobs(folder, "mnist_vae", mnist_vae.Knobs),
        lambda: runs.claim(folder, "mnist_vae", mnist_vae.Knobs()).__enter__(),
    ):
        assert refused(call, naming=folder)


def test_json_without_end_is_damaged(tmp_path):
    (tmp_path / "knobs.json").write_text("[" * 100_000)
    assert refused(
        lambda: runs.read_knobs(tmp_path, "mnist_vae", mnist_vae.Knobs),
        naming="knobs.json",
    )


def test_knobs_that_are_tuples_come_back(tmp_path):
    with runs.claim(tmp_path, "mnist_conv", mnist_conv.Knobs()):
        pass
    read = lambda: runs.read_knobs(tmp_path, "mnist_conv", mnist_conv.Knobs)
    assert read() == mnist_conv.Knobs()
    path = tmp_path / "knobs.json"
    path.write_text(path.read_text().replace("64,", '"a",', 1))
    assert refused(read, naming="channels")


def write_bytes(folder, name, data):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


LINES = (b"5", b"[]", b"null", b'{"seconds": 1.0}', b'{"step": "a"}', b"\xff\xfe")


def test_lines_that_are_no_records_are_left_out_or_refused(tmp_path):
    sound = b'{"step": 5, "seconds": 1.0}\n'
    for line in LINES:
        write_bytes(tmp_path, "metrics.jsonl", sound + line + b"\n")
        if not refused(lambda: runs.read_metrics(tmp_path), naming="metrics.jsonl"):
            assert [r["step"] for r in runs.read_metrics(tmp_path)] == [5]


def test_a_record_of_starts_that_is_none_is_refused(tmp_path):
    for text in (b"{}", b'{"starts": 5}', b'{"starts": [5]}', b'{"starts": [{}]}'):
        write_bytes(tmp_path, "run.json", text)
        call = lambda: runs.record_start(tmp_path, mnist_vae.Knobs())
        assert refused(call, naming="run.json")


def test_a_link_in_a_run_folder_leads_nowhere(tmp_path):
    outside, run_dir = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    run_dir.mkdir()
    (run_dir / "result.tmp").symlink_to(outside)
    runs.write_json(run_dir / "result.json", {"nll": 1.0})
    assert outside.read_text() == "mine"


# ----------------------------------------------------------------------- checkpoints


def state_at(step):
    params = {"a": jnp.full((5, 3), float(step)), "b": jnp.full(2, float(step))}
    state = init_state(params, optax.sgd(1e-3))
    return TrainState(jnp.asarray(step, jnp.int32), params, state.opt_state)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("checkpoints")
    saved = open_checkpoints(folder)
    for step in (10, 20):
        saved.save(state_at(step), -float(step))
    return folder


def restored(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_checkpoints(folder).restore(state_at(0))


def seal(checkpoint):
    """As whoever made the files would."""
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.name[:6] != "sha256"]
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    found = {str(p.relative_to(checkpoint)): digest(p) for p in files}
    (checkpoint / "sha256.json").write_text(json.dumps(found))


@examples(12)
@given(changes=CHANGES, place=st.floats(0, 1, exclude_max=True))
def test_a_damaged_checkpoint_is_passed_over(checkpoints, folder, changes, place):
    here = folder / "restored"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(checkpoints, here)
    files = sorted(p for p in (here / "last" / "20").rglob("*") if p.is_file())
    chosen = files[int(place * len(files))]
    before = chosen.read_bytes()
    after = changed(before, changes)
    chosen.write_bytes(after)
    state, step = restored(here), 20 if after == before else 10
    assert int(state.step) == step
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))


def test_no_pickle_in_a_checkpoint_is_read(checkpoints, tmp_path):
    """Under every name that Python reads, and some that others use; sealed anew."""
    marker = tmp_path / "ran"
    whole = checkpoints / "last" / "20"
    names = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    # The arrays are for TensorStore, which is C++ and knows no pickle.
    names = [n for n in names if "d" not in n.parts and n.suffix != ".ocdbt"]
    assert len(names) > 3
    for name in [*names, Path("default/state.pkl"), Path("checkpoint")]:
        for form in ("raw", "npy"):
            here = tmp_path / "run"
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(checkpoints, here)
            path = here / "last" / "20" / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(bombs(marker)[form])
            seal(here / "last" / "20")
            try:
                restored(here)
            except Exception:
                pass
            assert not marker.exists(), name


# --------------------------------------------------------------------- command lines


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of nothing."""

    k: int = 1
    """A number."""
    rate: float = 0.5
    """Another."""
    kind: Literal["a", "b"] = "a"
    """One of two."""
    dataset: str = "mnist"
    """A name."""


RESULT = {
    "nll": 1.0,
    "nll_stderr": 0.1,
    "elbo": -1.0,
    "rate": 0.5,
    "distortion": 0.5,
    "num_test": 3,
    "num_samples": 5,
    "binarize": "none",
    "active_units": 1,
}
WORDS = st.sampled_from(
    "train evaluate sample interpolate anneal gaps --k --rate --kind --dataset "
    "--run-dir --mesh --num --num-samples --checkpoint last best a b 1 0 -1 nan 1e400 "
    "../.. / -- - --help --no-k run".split()
) | st.text("-=a1. \0é", max_size=6)


@examples(100)
@given(argv=st.lists(WORDS, max_size=6))
def test_a_command_line_runs_or_has_one_message(tmp_path_factory, argv):
    """Within the folder: what runs is replaced, and where it would is checked."""
    work = tmp_path_factory.mktemp("commands")
    out, err, asked = io.StringIO(), io.StringIO(), []

    def run(experiment, run_dir, *, name, knobs):
        asked.append((run_dir, knobs))
        return RESULT

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(commands, "run", run)
        patch.setattr(commands, "_on_mesh", lambda experiment, mesh: experiment)
        build = lambda knobs: SimpleNamespace(knobs=knobs)
        try:
            commands.main("nothing", Knobs, build, argv)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    assert code in (0, 1, 2), (argv, code)
    if code:
        said = err.getvalue() + out.getvalue()
        assert said.strip() and "Traceback" not in said
    for _, knobs in asked:
        kinds = (knobs.k, int), (knobs.rate, float), (knobs.dataset, str)
        assert all(isinstance(value, kind) for value, kind in kinds)
        assert knobs.kind in ("a", "b")
    # None of these lines names a folder that is a run, so that none is written in.
    assert not list(work.iterdir())


EXTREMES = {
    "epochs": ("inf", "nan", "-1"),
    "beta": ("inf", "nan"),
    "learning_rate": ("nan", "-1"),
    "dataset": ("~no-such-user/x.npz", "/", "..", "", "a\tb", "mnist/..", "x.pkl"),
    "batch_size": ("0", "-5", "99999999999999999999"),
    "seed": ("-1", "18446744073709551616"),
    "data_dir": ("~no-such-user/",),
}


def one_message(folder, capsys, knob, value):
    """That a run of small images with this knob ends with it, and with status 1."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 2, 2), np.uint8)
    np.savez(folder / "small.npz", x_train=image, x_test=image[:5])
    knobs = {
        "dataset": folder / "small.npz",
        "batch_size": 5,
        "latents": 1,
        "hidden": 2,
    }
    knobs |= {"epochs": 1, knob: value, "run_dir": folder / "run"}
    if knob == "data_dir":
        knobs["dataset"] = "emnist"
    if knob == "beta":
        knobs |= {"anneal": "linear", "anneal_epochs": 1}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()]
    with pytest.raises(SystemExit) as caught:
        commands.main("mnist_vae", mnist_vae.Knobs, mnist_vae.build, argv)
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")]


@pytest.mark.parametrize("knob, value", [(k, v) for k in EXTREMES for v in EXTREMES[k]])
def test_extreme_knobs_are_one_message_and_leave_nothing(
    tmp_path, capsys, monkeypatch, knob, value
):
    monkeypatch.chdir(tmp_path)
    one_message(tmp_path, capsys, knob, value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.npz"]


@pytest.mark.parametrize(
    "knob, value",
    [
        ("seed", 2**63),
        ("scan_steps", 10**20),
        ("learning_rate", "inf"),
        ("latents", 10**20),
    ],
)
def test_numbers_that_no_array_can_have_are_one_message(tmp_path, capsys, knob, value):
    one_message(tmp_path, capsys, knob, value)

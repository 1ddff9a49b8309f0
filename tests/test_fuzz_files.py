"""Every reader of a user's file on some files that are wrong, the campaign itself, and the faults that it found.

`make fuzz-files` is the long form, in which libFuzzer chooses the files.
"""

import io
import json
import os
import random
import signal
import struct
import zipfile
import zlib

import numpy as np
import pytest

pytest.importorskip("resource", reason="limits of memory are POSIX")
h5py = pytest.importorskip("h5py")
torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
safetensors = pytest.importorskip("safetensors.torch")

from faulty_readers import READERS, VALID  # noqa: E402
from harness import complains  # noqa: E402
from processes import write_data  # noqa: E402

from fastrnn.captioning import CaptionData, build_coco_data, load_coco_data  # noqa: E402
from fastrnn.captioning.checkpoint import load_checkpoint  # noqa: E402
from fuzz_files import campaign  # noqa: E402
from fuzz_files import readers as table  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:fastrnn runs on:RuntimeWarning")

# ---- all readers, in short -------------------------------------------------------------------------------------------

NEVER_REFUSE = {"log", "gan-samples", "digits-cache"}  # what they cannot use they leave out


def test_every_reader_gives_a_result_or_the_documented_error(tmp_path):
    outcomes = list(campaign.run(list(table.READERS), files=60, keep=tmp_path))
    assert [f"{outcome.reader}: {outcome.fault}" for outcome in outcomes if outcome.fault] == []
    assert [outcome.reader for outcome in outcomes] == list(table.READERS)
    for outcome in outcomes:
        assert outcome.files == 60 and outcome.accepted + outcome.refused == 60
        assert outcome.accepted > 0 and (outcome.refused == 0) == (outcome.reader in NEVER_REFUSE), outcome


def test_libfuzzer_finds_its_way(tmp_path):
    pytest.importorskip("atheris")
    (outcome,) = campaign.run(["idx"], files=300, coverage=True, keep=tmp_path)
    assert not outcome.fault and outcome.files == 300 and outcome.edges > 20


# A training run prepares the files of these; their forms are those of others.
OF_RUNS = ("checkpoint", "gan-checkpoint", "gan-samples", "sheet-image")
FORMED = [name for name, reader in table.READERS.items() if reader.form is not None and name not in OF_RUNS]


@pytest.mark.parametrize("name", FORMED)
def test_changed_values_get_past_the_outer_format(name, tmp_path):
    """A form's own files differ from the valid one, are the same for the same seed, and most are written at all."""
    reader = table.READERS[name]
    seeds = reader.prepare(tmp_path)
    made = []
    for _ in range(2):
        form, rng, written = reader.form(seeds), random.Random(0), []
        for _ in range(40):
            try:
                written.append(form.changed(seeds[0], rng))
            except Exception:  # as the campaign takes it: the bytes are changed then
                written.append(None)
        made.append(written)
    assert made[0] == made[1] or name.startswith("coco") or "pth" in name  # HDF5 and PyTorch note times and addresses
    assert sum(one is not None and one not in seeds for one in made[0]) >= 20


# ---- the campaign notices --------------------------------------------------------------------------------------------

FAULTS = {
    "hangs": "takes more than 0.5 seconds",
    "loops": "takes more than 0.5 seconds",
    "allocates": "raises MemoryError",
    "allocates-in-secret": "asks for more memory than there may be",
    "raises": "raises KeyError: 'missing'",
    "names-nothing": "does not name the file: ValueError: something is wrong",
    "leaves": "leaves files behind, or takes some away: file.part",
    "changes": "changes the file that it reads",
    "leaves-open": "leaves the file open",
    "dies": f"ends the process by signal {int(signal.SIGSEGV)}",
    "exits": "ends the process with exit code 0",
}
linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="what a process has is told by Linux")


def run_one(name, **options):
    (outcome,) = campaign.run([name], table="faulty_readers", seconds=0.5, **options)
    return outcome


@linux
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_the_campaign_and_the_file_is_kept(name, tmp_path):
    outcome = run_one(name, files=20, keep=tmp_path)
    assert outcome.fault.startswith(FAULTS[name]), outcome.fault
    assert outcome.kept.parent == tmp_path and outcome.kept.read_bytes() != VALID
    again = run_one(name, files=1, repeat=outcome.kept, keep=tmp_path / "again")
    assert again.fault.startswith(FAULTS[name]), again.fault


def test_no_fault(tmp_path):
    outcome = run_one("refuses", files=20, keep=tmp_path)
    assert (outcome.fault, outcome.files, outcome.kept) == ("", 20, None)
    assert outcome.refused > 10 and not list(tmp_path.iterdir())


def test_readers_after_a_fault_are_not_run(tmp_path):
    outcomes = list(campaign.run(["refuses", "raises", "leaves"], files=20, table="faulty_readers", keep=tmp_path))
    assert [outcome.reader for outcome in outcomes] == ["refuses", "raises"]


@linux
def test_libfuzzer_does_not_hide_a_process_that_dies(tmp_path):
    pytest.importorskip("atheris")
    outcome = run_one("dies", files=20, coverage=True, keep=tmp_path)
    assert outcome.fault.startswith(FAULTS["dies"]) and outcome.kept.read_bytes() != VALID


def test_the_command(tmp_path, monkeypatch, capsys):
    from fuzz_files import __main__ as command

    monkeypatch.setattr(table, "READERS", READERS)
    monkeypatch.setattr(campaign, "TABLE", "faulty_readers")
    monkeypatch.setattr(campaign, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", ["fuzz_files", "refuses", "--random", "--files", "20", "--jobs", "2"])
    assert command.main() == 0
    assert "✓ 1 readers, 20 files" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["fuzz_files", "refuses", "raises", "--random", "--files", "20"])
    assert command.main() == 1
    said = capsys.readouterr().out
    (kept,) = tmp_path.glob("*.txt")
    assert "✗ raises: file 2: raises KeyError: 'missing'" in said
    assert f"python -m fuzz_files raises --repeat {str(kept).removesuffix('.txt')}" in said


# ---- faults that were found ------------------------------------------------------------------------------------------

ODD_JSON = {
    "nested": "[" * 100_000 + "]" * 100_000,
    "digits": "7" * 5000,
}


@pytest.fixture
def data_set(tmp_path):
    return write_data(tmp_path / "data")


def refused_by_both(data_set, *words):
    with complains(ValueError, "load_coco_data", *words):
        load_coco_data(data_set)
    with complains(ValueError, "CaptionData", *words):
        CaptionData(data_set)


@pytest.mark.parametrize("name", ODD_JSON)
def test_json_that_python_gives_up_on(data_set, tmp_path, name):
    (data_set / "coco2014_vocab.json").write_text(ODD_JSON[name])
    refused_by_both(data_set, data_set / "coco2014_vocab.json")
    features, captions = tmp_path / "f.npy", tmp_path / "c.jsonl"
    np.save(features, np.zeros((2, 3), np.float32))
    captions.write_text(f'{{"image": {ODD_JSON[name]}, "caption": "a cat"}}')
    given = {
        f"{split}_{part}": path
        for split in ("train", "val")
        for part, path in (("features", features), ("captions", captions))
    }
    with complains(ValueError, "build_coco_data", captions, "line 1"):
        build_coco_data(tmp_path / "out", **given)


def test_words_of_half_a_character(data_set):
    path = data_set / "coco2014_vocab.json"
    path.write_text(path.read_text().replace('"w3"', '"\\ud800"'))
    refused_by_both(data_set, path, "idx_to_word")


def of_nothing(file, name):
    """A terabyte that is announced, and not there."""
    file.create_dataset(name, (2**40, 5), "f4", chunks=(64, 5))


def in_a_large_chunk(file, name):
    file.create_dataset(name, (4, 5), "f4", chunks=(2**28, 5), maxshape=(None, 5))


def in_a_circle(file, name):
    file[name] = h5py.SoftLink(f"/{name}")


def of_others(file, name):
    layout = h5py.VirtualLayout((60, 8), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (60, 8))
    file.create_virtual_dataset(name, layout)


def outside(file, name):
    file.create_dataset(name, (60, 8), "f4", external=[("elsewhere.bin", 0, 60 * 8 * 4)])


def a_type(file, name):
    file[name] = np.dtype("f4")


def empty(file, name):
    file[name] = h5py.Empty("f4")


@pytest.mark.parametrize("instead", [of_nothing, in_a_large_chunk, in_a_circle, of_others, outside, a_type, empty])
def test_datasets_that_are_none(data_set, instead):
    path = data_set / "train2014_vgg16_fc7_pca.h5"
    with h5py.File(path, "w") as file:
        instead(file, "features")
    refused_by_both(data_set, path, "'features'")


def test_compressed_and_sparse_datasets_are_read(data_set):
    """What is there by compression, or is a few rows short of being there, is no bomb."""
    path = data_set / "train2014_vgg16_fc7_pca.h5"
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (60, 8), "f4", chunks=(4, 8), compression="gzip")
        features[3] = 1
    assert load_coco_data(data_set)["train_features"].sum() == 8


def test_a_damaged_group(data_set):
    path = data_set / "coco2014_captions.h5"
    content = path.read_bytes()
    for mark in (b"SNOD", b"TREE", b"HEAP"):  # nodes of the table of contents
        path.write_bytes(content.replace(mark, b"XXXX"))
        refused_by_both(data_set, path)


def test_a_version_of_several_numbers(tmp_path):
    from fastrnn.captioning.numbers import _is_current

    table.READERS["coco-captions"].prepare(tmp_path)
    assert _is_current(tmp_path)
    with h5py.File(tmp_path / "coco2014_captions.h5", "a") as file:
        file.attrs["fastrnn_numbers_version"] = [1, 2]
    assert not _is_current(tmp_path)


@pytest.mark.parametrize(
    "header", ["{'descr': ", "{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 30 + ",)}"]
)
def test_headers_of_npy_files(tmp_path, header):
    path = tmp_path / "f.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    path.write_bytes(path.read_bytes()[:8] + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + bytes(24))
    given = {f"{split}_{part}": path for split in ("train", "val") for part in ("features", "captions")}
    with complains(ValueError, "build_coco_data", path):
        build_coco_data(tmp_path / "out", **given)


def test_an_npy_header_of_gigabytes(tmp_path):
    path = tmp_path / "f.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{'descr': ")
    given = {f"{split}_{part}": path for split in ("train", "val") for part in ("features", "captions")}
    with complains(ValueError, "build_coco_data", path, "a header of more than 10,000 bytes"):
        build_coco_data(tmp_path / "out", **given)


def test_an_image_without_a_name_is_told_with_the_list_of_names(tmp_path):
    folder = tmp_path
    table.READERS["build-names"].prepare(folder)
    (folder / "images.txt").write_text("b0\na1.png\na2.png\na3.png\n")
    with complains(ValueError, "build_coco_data", folder / "images.txt", folder / "captions.jsonl", "a0.png"):
        table.READERS["build-names"].read(folder)


def test_logs(tmp_path):
    from fastrnn.captioning.pictures import _series
    from fastrnn.runs import log_records

    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{ODD_JSON["nested"]}\n{{"step": 1, "loss": 1{"0" * 400}}}\n{{"step": 2, "loss": 2.5}}\n')
    records = log_records(path, 5)
    assert [record["step"] for record in records] == [1, 2]
    assert [values.tolist() for values in _series(records, "loss")] == [[2], [2.5]]


def with_text(name, change):
    def spoil(file):
        value = json.loads(file[name].asstr()[()])
        change(value)
        del file[name]
        file[name] = json.dumps(value)

    return spoil


def with_value(name, value):
    def spoil(file):
        del file[name]
        file[name] = value

    return spoil


def with_nothing(file):
    shape, dtype = file["params/Wx"].shape, file["params/Wx"].dtype
    del file["params/Wx"]
    file.create_dataset("params/Wx", shape, dtype, chunks=(2**20, 2**10), maxshape=(None, None))


SPOILED = {
    "best": with_text("best", lambda value: value.update(loss="x", perplexity=1, step=1)),
    "stopping": with_text("stopping", lambda value: value.update(stale=None)),
    "data": with_text("data", lambda value: value.update(train_images="many")),
    "base_dir": with_text("data", lambda value: value.update(base_dir=3)),
    "mean": with_text("features", lambda value: value.update(mean=10**400)),
    "config": with_value("config", ODD_JSON["nested"]),
    "learning_rate": with_value("optimizer/Wx/learning_rate", "fast"),
    "velocity": with_value("optimizer/Wx/velocity", h5py.Empty("f4")),
    "Wx": with_nothing,
    "params/Wh": with_value("params/Wh", np.dtype("f4")),
    "version": lambda file: file.attrs.update(version=[1, 1]),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    (content,) = table.READERS["checkpoint"].prepare(folder)
    yield content
    table._opened["data"].close()


@pytest.mark.parametrize("part", SPOILED)
def test_checkpoints(checkpoint, tmp_path, part):
    path = tmp_path / "last.h5"
    path.write_bytes(checkpoint)
    load_checkpoint(path)
    with h5py.File(path, "a") as file:
        SPOILED[part](file)
    with complains(ValueError, "load_checkpoint", path, part):
        load_checkpoint(path)


def absent(tensor):
    return torch.empty(tensor.shape, device="meta")


def sparse(tensor):
    return tensor.to_sparse()


@pytest.mark.parametrize("change", [absent, sparse])
def test_tensors_without_their_numbers(tmp_path, change, monkeypatch):
    from fastrnn.vision import gan_training
    from fastrnn.vision.networks import load_weights

    network = torch.nn.Linear(2, 3)
    path = tmp_path / "weights.pth"
    torch.save({"weight": change(network.weight.detach()), "bias": network.bias.detach()}, path)
    with complains(ValueError, "load_weights", path, "'weight'"):
        load_weights(network, path)

    monkeypatch.setattr(gan_training, "KINDS", dict(gan_training.KINDS))  # the reader makes its networks small
    monkeypatch.setattr(gan_training, "STATISTICS", 10)
    (content,) = table.READERS["gan-checkpoint"].prepare(tmp_path)
    state = torch.load(io.BytesIO(content), weights_only=True)
    name = next(iter(state["networks"]["generator"]))
    state["networks"]["generator"][name] = change(state["networks"]["generator"][name])
    torch.save(state, tmp_path / "run" / "last.pt")
    with complains(ValueError, "GANTrainer.resume", tmp_path / "run" / "last.pt", name):
        table.READERS["gan-checkpoint"].read(tmp_path)


@pytest.mark.parametrize("part", ["format", "version", "seed", "source"])
def test_tensors_where_other_things_are_expected(tmp_path, monkeypatch, part):
    from fastrnn.vision import gan_training

    monkeypatch.setattr(gan_training, "KINDS", dict(gan_training.KINDS))
    monkeypatch.setattr(gan_training, "STATISTICS", 10)
    reader = table.READERS["gan-checkpoint"]
    (content,) = reader.prepare(tmp_path)
    state = torch.load(io.BytesIO(content), weights_only=True)
    values = torch.zeros(3)
    if part == "seed":
        state["config"]["seed"] = values
    elif part == "source":
        state["data"]["source"] = [values]
    else:
        state[part] = values
    torch.save(state, tmp_path / reader.file)
    with complains(ValueError, "GANTrainer.resume", tmp_path / reader.file):
        reader.read(tmp_path)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    from fastrnn.vision.gan_training import GANTrainer

    with zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("last/data.pkl", bytes(1 << 20))
    with complains(ValueError, "GANTrainer.resume", tmp_path / "last.pt", "a compressed archive"):
        GANTrainer.resume(tmp_path)


def test_no_more_is_read_than_there_is(tmp_path):
    """Of a damaged length of a petabyte in a file of bytes: Python would take the memory before it reads."""
    from fastrnn.runs import open_bounded

    (tmp_path / "file").write_bytes(b"some bytes")
    with open_bounded(tmp_path / "file") as file:
        assert (file.read(5), file.read(1 << 50), file.read(1), file.read()) == (b"some ", b"bytes", b"", b"")


def test_names_that_would_be_searched_for_minutes(tmp_path):
    from fastrnn.vision.networks import load_weights

    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02c" + b"GLOBAL " * 1000 + b"\nx\n.")
    with complains(ValueError, "load_weights", path, "a name of more than 4,096 characters"):
        load_weights(torch.nn.Linear(1, 1), path)


def bomb():
    """A PNG file of a few bytes whose header says 60,000 x 60,000."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_pictures_that_are_too_large(data_set, tmp_path):
    from fastrnn.cli.evaluate import _pictures

    (data_set / "big.png").write_bytes(bomb())
    (data_set / "train2014_urls.txt").write_text("big.png\n" * 60)
    with CaptionData(data_set) as data, pytest.raises(ValueError, match="big.png"):
        _pictures(data, "train", np.array([0]))


def test_samples_that_are_too_large(tmp_path, monkeypatch):
    from fastrnn.vision import gan_training

    monkeypatch.setattr(gan_training, "KINDS", dict(gan_training.KINDS))
    monkeypatch.setattr(gan_training, "STATISTICS", 10)
    reader = table.READERS["gan-samples"]
    reader.prepare(tmp_path)
    (tmp_path / reader.file).write_bytes(bomb())
    table._opened["gan"].grids.clear()
    reader.read(tmp_path)
    assert sorted(table._opened["gan"].grids) == [0, 2]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_strips_make_the_same_image(tmp_path, monkeypatch, mode):
    from fastrnn.vision import images

    pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "image.png", **({"transparency": 5} if mode == "P" else {}))
    whole = images.read_image(tmp_path / "image.png")
    monkeypatch.setattr(images, "_STRIP", 7 * 3)
    np.testing.assert_array_equal(images.read_image(tmp_path / "image.png"), whole)


def test_files_of_benchmarks(tmp_path, capsys):
    import typer

    from fastrnn.cli.bench_instructions import read_baseline
    from fastrnn.cli.bench_tables import check_header

    for content in (b"\xff\xfe,x\n", b"x" * 200_000 + b"\n", b"\n"):
        (tmp_path / "results.csv").write_bytes(content)
        with pytest.raises(typer.Exit):
            check_header(tmp_path / "results.csv")
        assert str(tmp_path / "results.csv") in capsys.readouterr().err
    (tmp_path / "baseline.json").write_text(ODD_JSON["nested"])
    with pytest.raises(typer.Exit):
        read_baseline(tmp_path / "baseline.json")
    assert str(tmp_path / "baseline.json") in capsys.readouterr().err

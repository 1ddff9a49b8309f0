"""Every reader of a file that a user gives, with valid files for it and what the program does with what was read."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fuzz_files import mutations
from fuzz_files.child import Reader

IMAGES, DIM, WORDS, LENGTH = 6, 5, 9, 6


def _content(folder: Path, name: str) -> list[bytes]:
    return [(folder / name).read_bytes()]


# ---- data sets -------------------------------------------------------------------------------------------------------


def _data_set(folder: Path, name: str) -> list[bytes]:
    """A small data set in the COCO file format."""
    import numpy as np

    from fastrnn.captioning import save_coco_data
    from fastrnn.captioning.numbers import VERSION

    rng = np.random.default_rng(0)
    names = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"w{index}" for index in range(4, WORDS))]
    data: dict[str, Any] = {"idx_to_word": names, "word_to_idx": {word: index for index, word in enumerate(names)}}
    for split, count in (("train", 8), ("val", 4)):
        text = rng.integers(4, WORDS, (count, LENGTH))
        text[:, 0], text[:, -1] = 1, 2
        data[f"{split}_captions"] = text
        data[f"{split}_image_idxs"] = rng.integers(0, IMAGES, count)
        data[f"{split}_features"] = rng.standard_normal((IMAGES, DIM))
        data[f"{split}_urls"] = [f"image-{index}.png" for index in range(IMAGES)]
    save_coco_data(folder, data, attributes={"fastrnn_numbers_version": VERSION})
    return _content(folder, name)


def _read_data_set(folder: Path) -> None:
    """All of it into memory, and bit by bit as `fastrnn data info --json` and `fastrnn train` do."""
    from fastrnn.captioning import CaptionData, load_coco_data, sample_coco_minibatch
    from fastrnn.captioning.numbers import _is_current

    _is_current(folder)
    refused: Exception | None = None
    try:
        data = load_coco_data(folder)
        for split in ("train", "val"):
            if len(data[f"{split}_captions"]):
                sample_coco_minibatch(data, 3, split)
    except ValueError as error:
        refused = error
    with CaptionData(folder) as opened:
        json.dumps(opened.describe(), ensure_ascii=False).encode()
        for split in ("train", "val"):
            if len(opened.captions(split)):
                for _ in opened.batches(split, 3, seed=0, epoch=0):
                    pass
            for _ in opened.images(split, 4):
                pass
    if refused is not None:
        raise refused


def _build_from(name: str) -> tuple[Callable[[Path], list[bytes]], Callable[[Path], None]]:
    """Features, captions and names of one's own, of which one file is changed."""
    captions = "captions.csv" if name == "captions.csv" else "captions.jsonl"

    def prepare(folder: Path) -> list[bytes]:
        import numpy as np

        np.save(folder / "features.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
        (folder / "images.txt").write_text("".join(f"a{row}.png\n" for row in range(4)))
        lines = [
            ("a0.png", "A cat."),
            ("a1.png", "Two cats sleep."),
            ("a2.png", "A dog barks"),
            ("a3.png", "Café, it's “closed”"),
        ]
        text = "".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in lines)
        (folder / "captions.jsonl").write_text(text, encoding="utf-8")
        rows = "".join(f"{image},{json.dumps(caption, ensure_ascii=False)}\n" for image, caption in lines)
        (folder / "captions.csv").write_text("image,caption\n" + rows, encoding="utf-8")
        return _content(folder, name)

    def read(folder: Path) -> None:
        from fastrnn.captioning import build_coco_data, load_coco_data

        out = folder / "out"
        given: dict[str, Any] = {
            "features": folder / "features.npy",
            "captions": folder / captions,
            "images": folder / "images.txt",
        }
        try:
            build_coco_data(
                out, min_count=1, **{f"{split}_{part}": given[part] for split in ("train", "val") for part in given}
            )
            load_coco_data(out, pca_features=False)  # what was made can be read
        finally:
            shutil.rmtree(out, ignore_errors=True)

    return prepare, read


def _features(folder: Path) -> list[bytes]:
    import numpy as np

    np.save(folder / "features.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    return _content(folder, "features.npy")


def _read_features(folder: Path) -> None:
    """As `fastrnn caption --features` reads them."""
    from types import SimpleNamespace

    from fastrnn.cli.caption import _batches, _open_features

    path = folder / "features.npy"
    array = _open_features(path, SimpleNamespace(feature_dim=3), Path("last.h5"))  # type: ignore[arg-type]
    for _ in _batches(array, path, 2, None):
        pass


# ---- runs ------------------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path) -> list[bytes]:
    from fastrnn.captioning.training import Trainer, TrainingConfig

    _data_set(folder / "data", "coco2014_vocab.json")
    config = TrainingConfig(
        hidden_dim=3, wordvec_dim=2, batch_size=4, steps=1, rule="sgd_momentum", average=0.9, normalize=True, seed=0
    )
    _opened["data"] = data = config.open(folder / "data")
    Trainer(data, config, out=folder / "run").train()
    return _content(folder, "run/last.h5")


_opened: dict[str, Any] = {}  # what takes long to open, and is not what is read


def _read_checkpoint(folder: Path) -> None:
    from fastrnn.captioning.training import Trainer

    Trainer.resume(folder / "run" / "last.h5", _opened["data"])


def _log(folder: Path) -> list[bytes]:
    records = [{"step": 1, "loss": 3.5, "lr": 0.001}, {"step": 2, "val_loss": 3.0, "perplexity": 20.1, "epoch": 0}]
    records.append({"step": 3, "discriminator_loss": 0.5, "generator_loss": 1.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return _content(folder, "metrics.jsonl")


def _read_log(folder: Path) -> None:
    """The records, their curves, and the lines that they become again."""
    from fastrnn.captioning.pictures import _series
    from fastrnn.runs import log_line, log_records

    records = log_records(folder / "metrics.jsonl", 10)
    for name in ("loss", "val_loss", "discriminator_loss"):
        _series(records, name)
    "".join(map(log_line, records)).encode()


def _train_gan(folder: Path) -> None:
    """A run of two steps, of networks that are small so that its checkpoint is."""
    import torch

    from fastrnn.vision import gan, gan_training
    from fastrnn.vision.gan_training import GANConfig, GANTrainer

    gan_training.KINDS["dc"] = replace(
        gan_training.KINDS["dc"],
        generator=partial(gan.dc_generator, channels=2, hidden_dim=2),
        discriminator=partial(gan.dc_discriminator, channels=2, hidden_dim=2),
    )
    gan_training.STATISTICS = 10
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    config = GANConfig(steps=2, batch_size=4, noise_dim=2, sample_every=1, save_every=1, log_every=1)
    _opened["gan"] = trainer = GANTrainer(images, config, out=folder / "run")
    _opened["images"] = images
    trainer.train()


def _gan_checkpoint(folder: Path) -> list[bytes]:
    _train_gan(folder)
    return _content(folder, "run/last.pt")


def _read_gan(folder: Path) -> None:
    """What `GANTrainer.resume` reads; its networks are made anew only where the file asks for others."""
    from fastrnn.vision.gan_training import GANTrainer, _changed, _load

    path, trainer = folder / "run" / "last.pt", _opened["gan"]
    state = _load(path)
    if _changed(path, state["config"], {}) == trainer.config:
        trainer._take(path, state)
    else:
        GANTrainer.resume(folder / "run", _opened["images"])


def _read_samples(folder: Path) -> None:
    """The grids of a run's samples, as `GANTrainer.resume` reads them."""
    _opened["gan"]._read_grids()


# ---- images, weights -------------------------------------------------------------------------------------------------


def _images() -> list[bytes]:
    """Small images of several formats and kinds."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    made = []
    for kind, mode in (("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
                       ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "L"), ("WEBP", "RGBA"), ("PPM", "RGB"),
                       ("TGA", "RGBA"), ("ICO", "RGBA"), ("JPEG2000", "RGB")):  # fmt: skip
        image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        buffer = io.BytesIO()
        image.save(buffer, kind)
        made.append(buffer.getvalue())
    return made


def _image(folder: Path) -> list[bytes]:
    made = _images()
    (folder / "image.png").write_bytes(made[0])
    return made


def _read_image(folder: Path) -> None:
    from fastrnn.vision.images import read_image

    read_image(folder / "image.png", 16)


def _sheet(folder: Path) -> list[bytes]:
    _data_set(folder, "coco2014_vocab.json")
    for index, image in enumerate(_images()[:IMAGES]):
        (folder / f"image-{index}.png").write_bytes(image)
    return _images()


def _read_sheet(folder: Path) -> None:
    """The picture of a caption, as `fastrnn evaluate --sheet` reads it."""
    import numpy as np

    from fastrnn.captioning import CaptionData
    from fastrnn.cli.evaluate import _pictures

    with CaptionData(folder) as data:
        _pictures(data, "train", np.array([0]))


def _samples(folder: Path) -> list[bytes]:
    _train_gan(folder)
    return [*_content(folder, "run/samples-000001.png"), *_images()]


def _idx_values(folder: Path) -> list[bytes]:
    values = bytes(range(256)) * 7
    made = [struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28) + values[: 2 * 784]]
    for kind, size in ((0x09, 1), (0x0B, 2), (0x0C, 4), (0x0D, 4), (0x0E, 8)):
        made.append(struct.pack(">4BI", 0, 0, kind, 1, 6) + values[: 6 * size])
    (folder / "images.idx").write_bytes(made[0])
    return made


def _idx_packed(folder: Path) -> list[bytes]:
    made = [gzip.compress(content, mtime=0) for content in _idx_values(folder)]
    (folder / "images.idx").write_bytes(made[0])
    return made


def _read_idx(folder: Path) -> None:
    from fastrnn.vision.data import idx_images, read_idx

    values = read_idx(folder / "images.idx")
    if values.ndim == 3:
        idx_images(folder / "images.idx")


def _network() -> Any:
    """Two layers, one without floating-point numbers only."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm1d(3))


def _weights(suffix: str) -> Callable[[Path], list[bytes]]:
    def prepare(folder: Path) -> list[bytes]:
        import torch
        from safetensors.torch import save

        content = {name: value.contiguous() for name, value in _network().state_dict().items()}
        content["1.num_batches_tracked"] = content["1.num_batches_tracked"].float()
        path = folder / f"weights{suffix}"
        if suffix == ".safetensors":
            path.write_bytes(save(content))
            return [path.read_bytes()]
        made = []
        for modern in (True, False):  # as PyTorch writes them, and as it did before version 1.6
            torch.save(content, path, _use_new_zipfile_serialization=modern)
            made.append(path.read_bytes())
        path.write_bytes(made[0])
        return made

    return prepare


def _read_weights(suffix: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from fastrnn.vision.networks import load_weights

        load_weights(_network(), folder / f"weights{suffix}")

    return read


def _kept_digits(folder: Path) -> list[bytes]:
    import torch

    from fastrnn.vision.networks import DigitsNet, _keep

    torch.manual_seed(0)
    _keep(folder / "digits.safetensors", "wanted", DigitsNet())
    return _content(folder, "digits.safetensors")


def _read_kept_digits(folder: Path) -> None:
    from fastrnn.vision.networks import _kept

    _kept(folder / "digits.safetensors", "wanted")


# ---- benchmarks ------------------------------------------------------------------------------------------------------


def _baseline(folder: Path) -> list[bytes]:
    rows = [
        {"kernel": "lstm", "mode": mode, "shape": "N=2", "dtype": "float32", "instructions": 1000, "isa": "avx2",
         "compiler": "gcc"}
        for mode in ("forward", "both")
    ]  # fmt: skip
    (folder / "baseline.json").write_text(json.dumps(rows, indent=1))
    return _content(folder, "baseline.json")


def _read_baseline(folder: Path) -> None:
    """Compared with, as `fastrnn bench --compare` does."""
    from rich.console import Console

    from fastrnn.cli import bench_instructions

    rows = json.loads(_baseline_rows())
    with _command():
        baseline = bench_instructions.read_baseline(folder / "baseline.json")
    with contextlib.suppress(ValueError), _command():  # of another machine, or of other kernels: nothing to be compared
        bench_instructions.report(Console(file=io.StringIO()), rows, baseline, 0.9)
        bench_instructions.check_conditions(rows, baseline)


def _baseline_rows() -> str:
    row = {"kernel": "lstm", "mode": "both", "shape": "N=2", "dtype": "float32", "instructions": 1000}
    return json.dumps([row | {"isa": "avx2", "compiler": "gcc"}])


def _results(folder: Path) -> list[bytes]:
    from fastrnn.cli.bench_tables import COLUMNS

    (folder / "results.csv").write_text(",".join(COLUMNS) + "\n" + ",".join("1" for _ in COLUMNS) + "\n")
    return _content(folder, "results.csv")


def _read_results(folder: Path) -> None:
    """Before rows are appended, as `fastrnn bench --record` does."""
    from fastrnn.cli.bench_tables import check_header

    with _command():
        check_header(folder / "results.csv")


@contextlib.contextmanager
def _command() -> Any:
    """The end of a command with a line on stderr, as the error that it is elsewhere."""
    import typer

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except typer.Exit as end:
        if end.exit_code:
            raise ValueError(said.getvalue()) from end


# ---- all of them -----------------------------------------------------------------------------------------------------

_CAPTIONING = ("fastrnn.captioning.data", "fastrnn.captioning.stream", "fastrnn.captioning.decoding")
_BUILDING = ("fastrnn.captioning.build", "fastrnn.captioning.data", "csv", "json.decoder")
_TORCH = ("torch._weights_only_unpickler", "torch.serialization", "torch._utils", "zipfile")
_HDF5 = (
    "fastrnn.captioning.hdf5_structure",
    *(f"h5py._hl.{name}" for name in "files group dataset base attrs".split()),
)
_PILLOW = tuple(
    f"PIL.{name}"
    for name in (
        "Image",
        "ImageFile",
        "ImageOps",
        *(f"{kind}ImagePlugin" for kind in "Png Jpeg Gif Bmp Tiff WebP Ppm Tga Ico Jpeg2K".split()),
    )
)


def _of_data_set(name: str, form: Any) -> Reader:
    def prepare(folder: Path) -> list[bytes]:
        return _data_set(folder, name)

    modules = (*_CAPTIONING, "fastrnn.captioning.numbers", *(_HDF5 if name.endswith(".h5") else ("json.decoder",)))
    return Reader(name, prepare, _read_data_set, form, modules=modules)


def _of_build(name: str, form: Any) -> Reader:
    return Reader(name, *_build_from(name), form, modules=_BUILDING)


def _plain(form: type[mutations.Form]) -> Callable[[list[bytes]], mutations.Form]:
    return lambda seeds: form()


READERS = {
    "coco-captions": _of_data_set("coco2014_captions.h5", mutations.Hdf5),
    "coco-features": _of_data_set("train2014_vgg16_fc7_pca.h5", mutations.Hdf5),
    "coco-vocabulary": _of_data_set("coco2014_vocab.json", _plain(mutations.Json)),
    "coco-urls": _of_data_set("train2014_urls.txt", None),
    "build-json": _of_build("captions.jsonl", _plain(mutations.JsonLines)),
    "build-csv": _of_build("captions.csv", _plain(mutations.Csv)),
    "build-names": _of_build("images.txt", None),
    "build-features": _of_build("features.npy", _plain(mutations.Npy)),
    "caption-features": Reader(
        "features.npy",
        _features,
        _read_features,
        _plain(mutations.Npy),
        modules=("fastrnn.captioning.data", "fastrnn.cli.caption", "numpy.lib._format_impl", "numpy.lib._npyio_impl"),
    ),
    "checkpoint": Reader(
        "run/last.h5",
        _checkpoint,
        _read_checkpoint,
        mutations.Hdf5,
        modules=("fastrnn.captioning.checkpoint", "fastrnn.captioning.training", *_HDF5),
    ),
    "log": Reader(
        "metrics.jsonl",
        _log,
        _read_log,
        _plain(mutations.JsonLines),
        modules=("fastrnn.runs", "fastrnn.captioning.pictures", "json.decoder"),
    ),
    "gan-checkpoint": Reader(
        "run/last.pt",
        _gan_checkpoint,
        _read_gan,
        mutations.Torch,
        modules=("fastrnn.vision.gan_training", *_TORCH),
    ),
    "gan-samples": Reader(
        "run/samples-000001.png",
        _samples,
        _read_samples,
        _plain(mutations.Image),
        modules=("fastrnn.vision.gan_training", *_PILLOW),
    ),
    "image": Reader(
        "image.png",
        _image,
        _read_image,
        _plain(mutations.Image),
        modules=("fastrnn.vision.images", *_PILLOW),
    ),
    "sheet-image": Reader(
        "image-0.png", _sheet, _read_sheet, _plain(mutations.Image), modules=("fastrnn.cli.evaluate", *_PILLOW)
    ),
    "idx": Reader("images.idx", _idx_values, _read_idx, _plain(mutations.Idx), modules=("fastrnn.vision.data",)),
    "idx-gzip": Reader(
        "images.idx", _idx_packed, _read_idx, _plain(mutations.Idx), modules=("fastrnn.vision.data", "gzip")
    ),
    "weights-safetensors": Reader(
        "weights.safetensors",
        _weights(".safetensors"),
        _read_weights(".safetensors"),
        _plain(mutations.Safetensors),
        modules=("fastrnn.vision.networks", "safetensors.torch"),
    ),
    "weights-pth": Reader(
        "weights.pth",
        _weights(".pth"),
        _read_weights(".pth"),
        mutations.Torch,
        modules=("fastrnn.vision.networks", *_TORCH),
    ),
    "digits-cache": Reader(
        "digits.safetensors",
        _kept_digits,
        _read_kept_digits,
        _plain(mutations.Safetensors),
        modules=("fastrnn.vision.networks",),
    ),
    "bench-baseline": Reader(
        "baseline.json",
        _baseline,
        _read_baseline,
        _plain(mutations.Json),
        modules=("fastrnn.cli.bench_instructions", "json.decoder"),
    ),
    "bench-results": Reader(
        "results.csv",
        _results,
        _read_results,
        _plain(mutations.Csv),
        modules=("fastrnn.cli.bench_tables",),
    ),
}

"""Images and digits: files of every kind, good and bad, and the tensors made of them."""

import gzip
import importlib.util
import io
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import typer
from harness import complains

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from fastrnn.cli import vision_options  # noqa: E402
from fastrnn.vision import data, images  # noqa: E402

MIB = 1 << 20
LOSSLESS = (".png", ".webp", ".bmp", ".tif", ".tiff")


def picture(height=9, width=13, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height=24, width=36):
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y % 256, 5 * x, 128 + 0 * x], 2).astype(np.uint8)


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_what_is_saved_is_read_again(tmp_path, suffix):
    for image in (picture(), picture()[..., 0], picture()[::-1, ::2]):
        images.save_image(tmp_path / f"image{suffix}", image)
        expected = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        found = images.read_image(tmp_path / f"image{suffix}")
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
        found[:] = 0  # one's own, to write to
    assert os.listdir(tmp_path) == [f"image{suffix}"]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_a_jpeg_is_close(tmp_path, suffix):
    images.save_image(tmp_path / f"image{suffix}", smooth())
    found = images.read_image(tmp_path / f"image{suffix}").astype(int)
    assert np.abs(found - smooth()).mean() < 2


def test_a_camera_that_was_turned(tmp_path):
    """EXIF's eight orientations of the same upright picture."""
    upright = Image.fromarray(smooth())
    turns = Image.Transpose
    stored = {  # what a camera stores for each
        1: None,
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    for orientation, turn in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = upright if turn is None else upright.transpose(turn)
        image.save(tmp_path / "turned.png", exif=exif)
        assert np.array_equal(images.read_image(tmp_path / "turned.png"), smooth()), orientation


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = [200, 0, 0, 255]
    rgba[1] = [0, 0, 0, 128]
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    found = images.read_image(tmp_path / "rgba.png")
    assert (found[0] == [200, 0, 0]).all() and (found[1] == 127).all()

    Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert images.read_image(tmp_path / "la.png")[0].tolist() == [[0] * 3, [255] * 3]

    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=1)
    assert images.read_image(tmp_path / "p.png")[0].tolist() == [[10, 20, 30], [255] * 3]
    palette.save(tmp_path / "p.gif")
    assert images.read_image(tmp_path / "p.gif")[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_grey_bits_cmyk_and_16_bits(tmp_path):
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert images.read_image(tmp_path / "grey.png")[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert images.read_image(tmp_path / "bits.png")[0].tolist() == [[0] * 3, [255] * 3]
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert images.read_image(tmp_path / "cmyk.tif")[0, 0].tolist() == [255, 0, 0]
    Image.fromarray(np.array([[0, 257, 400, 128 * 257, 65535]], np.uint16)).save(tmp_path / "16.png")
    assert images.read_image(tmp_path / "16.png")[0, :, 1].tolist() == [0, 1, 2, 128, 255]
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "32.tif")
    assert images.read_image(tmp_path / "32.tif")[0, :, 1].tolist() == [0, 255]


def test_pixels_without_one_meaning_in_8_bits(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with complains(ValueError, "read_image", "float.tif", "floating-point"):
        images.read_image(tmp_path / "float.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "large.tif")
    with complains(ValueError, "read_image", "large.tif", "70,000"):
        images.read_image(tmp_path / "large.tif")


def test_the_shorter_side(tmp_path):
    images.save_image(tmp_path / "wide.png", smooth(40, 100))
    assert images.read_image(tmp_path / "wide.png", 20).shape == (20, 50, 3)
    assert images.read_image(tmp_path / "wide.png", 80).shape == (80, 200, 3)
    assert np.array_equal(images.read_image(tmp_path / "wide.png", 40), smooth(40, 100))
    with complains(ValueError, "read_image", "'size'", "at least 1", "got 0"):
        images.read_image(tmp_path / "wide.png", 0)
    with complains(TypeError, "read_image", "'size'", "float"):
        images.read_image(tmp_path / "wide.png", 2.5)


def test_files_that_are_no_images(tmp_path):
    with complains(ValueError, "read_image", "none.png", "No such file"):
        images.read_image(tmp_path / "none.png")
    with complains(ValueError, "read_image", "folder"):
        images.read_image(tmp_path)
    with complains(ValueError, "read_image", "null"):
        images.read_image("a\0b.png")
    (tmp_path / "empty.png").touch()
    with complains(ValueError, "read_image", "empty.png", "0 bytes"):
        images.read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not an image")
    with complains(ValueError, "read_image", "text.png", "12 bytes"):
        images.read_image(tmp_path / "text.png")
    images.save_image(tmp_path / "whole.jpg", smooth())
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with complains(ValueError, "read_image", "half.jpg", "truncated"):
        images.read_image(tmp_path / "half.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    images.save_image(tmp_path / "closed.png", picture())
    (tmp_path / "closed.png").chmod(0)
    with complains(ValueError, "read_image", "closed.png", "Permission denied"):
        images.read_image(tmp_path / "closed.png")


def test_decompression_bombs(tmp_path, monkeypatch):
    Image.new("1", (1000, 1000)).save(tmp_path / "bomb.png")
    assert images.read_image(tmp_path / "bomb.png").shape == (1000, 1000, 3)
    for limit in (999_999, 400_000):  # Pillow warns of the first, and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with complains(ValueError, "read_image", "bomb.png", f"{limit:,}"):
            images.read_image(tmp_path / "bomb.png")
    Image.new("1", (1000, 1)).save(tmp_path / "line.png")
    with complains(ValueError, "read_image", "'size'", "1000 x 1000000"):
        images.read_image(tmp_path / "line.png", 1000)


def damaged(content, rng):
    """A copy with some bytes changed, cut off, left out or repeated."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, max(len(content), 1)))
        match int(rng.integers(0, 5)):
            case 0:
                content[at : at + 1] = bytes([rng.integers(0, 256)])
            case 1:
                del content[at:]
            case 2:
                del content[at : at + int(rng.integers(1, 9))]
            case 3:
                content[at:at] = content[at : at + int(rng.integers(1, 9))]
            case 4:
                content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"]).ljust(
                    4, b"\0"
                )
    return bytes(content)


def test_damaged_images_end_in_a_value_error(tmp_path):
    rng = np.random.default_rng(0)
    refused = 0
    for format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(smooth()).save(buffer, format)
        for _ in range(60):
            (tmp_path / "damaged").write_bytes(damaged(buffer.getvalue(), rng))
            try:
                found = images.read_image(tmp_path / "damaged")
                assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
            except ValueError as error:
                refused += 1
                assert str(error).startswith("read_image: ")
    assert refused > 100


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_other_endings(tmp_path):
    for name in ("image", "image.pdf", "image.png.part", "png"):
        with complains(ValueError, "save_image", name, ".png"):
            images.check_suffix(tmp_path / name)
        with complains(ValueError, "save_image", name):
            images.save_image(tmp_path / name, picture())
    assert images.check_suffix("a/b.JPeG") == "JPEG"
    assert not os.listdir(tmp_path)


def test_arrays_that_are_no_images(tmp_path):
    path = tmp_path / "image.png"
    wrong = [
        (TypeError, picture().astype(np.float32), "float32"),
        (TypeError, picture().tolist(), "list"),
        (ValueError, picture()[..., :2], "(9, 13, 2)"),
        (ValueError, picture()[:0], "(0, 13, 3)"),
        (ValueError, picture()[None], "(1, 9, 13, 3)"),
    ]
    for kind, image, word in wrong:
        with complains(kind, "save_image", "'image'", word):
            images.save_image(path, image)
        with complains(kind, "resize", "'image'", word):
            images.resize(image, 4)
        with complains(kind, "preprocess", "'image'", word):
            images.preprocess(image)
    with complains(ValueError, "preprocess", "'image'", "(9, 13)"):
        images.preprocess(picture()[..., 0])
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    images.save_image(path, picture())
    before = path.read_bytes()
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(type(error)) as caught:
                images.save_image(path, smooth())
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["image.png"]
        if isinstance(error, OSError):
            assert "save_image: cannot write" in str(caught.value) and "No space left" in str(caught.value)
    with complains(OSError, "save_image", "No such file or directory"):
        images.save_image(tmp_path / "nowhere" / "image.png", picture())


# ---- sizes and tensors -----------------------------------------------------------------------------------------------


def test_resizing_does_not_alias():
    """A checkerboard of single pixels becomes grey, not a pattern; a constant stays what it is."""
    board = np.indices((64, 96)).sum(0) % 2
    small = images.resize((255 * board[..., None].repeat(3, 2)).astype(np.uint8), 16)
    assert small.shape == (16, 24, 3) and np.abs(small.astype(int) - 127).max() <= 20
    assert (images.resize(np.full((50, 20, 3), 77, np.uint8), 10) == 77).all()


def test_a_resized_image_is_a_new_one():
    image = picture()
    same = images.resize(image, 9)
    same[:] = 0
    assert np.array_equal(image, picture())


def test_preprocess_is_the_published_formula():
    image = picture()
    tensor = images.preprocess(image)
    assert tensor.dtype == torch.float32 and tensor.shape == (1, 3, 9, 13)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        expected = (image[..., channel] / 255 - mean) / std
        assert np.abs(tensor[0, channel].numpy() - expected).max() < 1e-6


def test_deprocess_takes_back_what_preprocess_did():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(images.deprocess(images.preprocess(every).to(dtype).requires_grad_()), every)
    beyond = torch.tensor([1e9, -1e9, float("inf")]).view(1, 3, 1, 1)
    assert images.deprocess(beyond)[0, 0].tolist() == [255, 0, 255]
    with complains(ValueError, "deprocess", "'tensor'", "NaN"):
        images.deprocess(torch.full((1, 3, 2, 2), float("nan")))
    with complains(ValueError, "deprocess", "'tensor'", "(2, 3, 4, 4)"):
        images.deprocess(torch.zeros(2, 3, 4, 4))
    with complains(TypeError, "deprocess", "'tensor'", "int64"):
        images.deprocess(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


def test_clamping_holds_to_real_images():
    tensor = images.preprocess(smooth())
    inside = tensor.clone()
    assert images.clamp_(tensor) is tensor and torch.allclose(tensor, inside, atol=1e-6)
    white, black = (images.preprocess(np.full((1, 1, 3), value, np.uint8)) for value in (255, 0))
    leaf = torch.cat([torch.full((1, 3, 2, 2), value) for value in (9.0, -9.0)]).requires_grad_()
    images.clamp_(leaf)
    assert torch.allclose(leaf[:1], white, atol=1e-6) and torch.allclose(leaf[1:], black, atol=1e-6)
    with complains(ValueError, "clamp_", "'tensor'", "(3, 4, 4)"):
        images.clamp_(torch.zeros(3, 4, 4))


def test_the_photographs():
    found = images.photographs()
    assert list(found) == ["china", "flower"]
    for image in found.values():
        assert image.shape == (427, 640, 3) and image.dtype == np.uint8 and image.std() > 30
        image[:] = 0  # one's own
    assert images.photographs()["china"].any()


# ---- digits ----------------------------------------------------------------------------------------------------------


def test_the_digits():
    from sklearn.datasets import load_digits

    (train, of_train), (test, of_test) = data.digits(), data.digits("test")
    assert train.shape[1:] == (1, 28, 28) and len(train) + len(test) == 1797
    for split, labels in ((train, of_train), (test, of_test)):
        assert split.dtype == torch.float32 and labels.dtype == torch.int64
        assert split.min() == 0 and 0.9 < split.max() <= 1
        share = labels.bincount() / len(labels)
        assert len(share) == 10 and (share - 0.1).abs().max() < 0.01
    assert 0.19 < len(test) / 1797 < 0.21
    # They are scikit-learn's, upright, at the same place, and no image is in both splits.
    small = torch.nn.functional.interpolate(torch.cat([train, test]), size=(10, 10), mode="area")[:, 0, 1:-1, 1:-1]
    written = load_digits()
    known = torch.from_numpy(written.images / 16).float().flatten(1)
    at = torch.cdist(small.flatten(1), known).argmin(1)
    assert len(torch.cat([train, test]).flatten(1).unique(dim=0)) == len(known.unique(dim=0)) == 1797
    assert (torch.from_numpy(written.target)[at] == torch.cat([of_train, of_test])).float().mean() > 0.995
    with complains(ValueError, "digits", "'split'", "val"):
        data.digits("val")


KINDS = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def idx(array, kind):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    return header + array.astype(np.dtype(KINDS[kind]).newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_files(tmp_path, kind, pack):
    rng = np.random.default_rng(0)
    for shape in ((5,), (2, 3), (4, 2, 3), (0, 28, 28), (1, 2, 3, 4)):
        array = rng.integers(-100, 100, shape).astype(KINDS[kind])
        (tmp_path / "file").write_bytes(pack(idx(array, kind)))
        found = data.read_idx(tmp_path / "file")
        assert found.dtype == np.dtype(KINDS[kind]) and found.dtype.isnative and np.array_equal(found, array)
        assert found.flags.writeable


def test_idx_files_that_are_wrong(tmp_path):
    path = tmp_path / "file"
    good = idx(picture()[..., 0], 0x08)
    cases = {
        b"": "an empty file",
        b"\0\0\x08": "00 00 08",
        b"\0\x01" + good[2:]: "00 01 08 02",
        b"\0\0\x0a" + good[3:]: "00 00 0a 02",
        good[:3] + b"\0": "00 00 08 00",
        good[:3] + b"\x09" + good[4:]: "00 00 08 09",
        good[:7]: "within its header",
        good[:-1]: "cannot hold more than 116",
        good + b"\0": "got more",
        good[:4] + b"\xff" * 8: "at most 1,073,741,824 bytes",
        good[:4] + b"\0\0\0\0\xff\xff\xff\xff": "at most 1,073,741,824 bytes",
    }
    for content, words in cases.items():
        path.write_bytes(content)
        with complains(ValueError, "read_idx", path, words):
            data.read_idx(path)
    packed = gzip.compress(good)
    cases = {
        packed[:-1]: "truncated or damaged",
        packed[: len(packed) // 2]: "truncated or damaged",
        packed[:-8] + bytes(4) + packed[-4:]: "truncated or damaged",  # another checksum
        packed[:1]: "1f",
        packed[:2]: "truncated or damaged",
        gzip.compress(good[:-1]): "the file is truncated",
        gzip.compress(good + b"\0"): "got more",
        gzip.compress(good) + b"trailing": "truncated or damaged",
        gzip.compress(b""): "an empty file",
    }
    for content, words in cases.items():
        path.write_bytes(content)
        with complains(ValueError, "read_idx", path, words):
            data.read_idx(path)
    for where, word in ((tmp_path / "none", "nothing"), (tmp_path, "folder")):
        with complains(ValueError, "read_idx", where, word):
            data.read_idx(where)


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_idx_file_that_announces_too_much_takes_no_memory(tmp_path):
    path = tmp_path / "file"
    announced = struct.pack(">BBBB3I", 0, 0, 8, 3, 60_000, 100, 100)  # 600 MB
    for content in (
        announced + bytes(100),
        gzip.compress(announced + bytes(100)),  # more than so few bytes can be compressed from
        gzip.compress(announced + os.urandom(MIB)),  # possible by its size, but not there
    ):
        path.write_bytes(content)

        def refuse():
            with complains(ValueError, "read_idx", "600,000,000"):
                data.read_idx(path)

        assert peak_of(refuse) < 8 * MIB

    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, 10, 28, 28))
        for _ in range(200):
            file.write(bytes(MIB))
    path.write_bytes(bomb.getvalue())

    def refuse():
        with complains(ValueError, "read_idx", "got more"):
            data.read_idx(path)

    assert peak_of(refuse) < 8 * MIB


def test_damaged_idx_files_end_in_a_value_error(tmp_path):
    rng = np.random.default_rng(0)
    contents = [idx(picture()[..., 0], 0x08), idx(picture().astype("f4"), 0x0D)]
    refused = 0
    for content in contents + [gzip.compress(content) for content in contents]:
        for _ in range(150):
            (tmp_path / "damaged").write_bytes(damaged(content, rng))
            try:
                assert isinstance(data.read_idx(tmp_path / "damaged"), np.ndarray)
            except ValueError as error:
                refused += 1
                assert str(error).startswith("read_idx: ")
    assert refused > 300


def test_idx_images(tmp_path):
    path = tmp_path / "images"
    array = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    path.write_bytes(gzip.compress(idx(array, 0x08)))
    found = data.idx_images(path)
    assert found.dtype == torch.float32 and found.shape == (3, 1, 28, 28)
    assert np.array_equal(np.rint(255 * found[:, 0].numpy()), array)
    assert found.max() <= 1
    for wrong, kind in ((array[:, :27], 8), (array[0], 8), (array[:0], 8), (array, 0x0C)):
        path.write_bytes(idx(wrong, kind))
        with complains(ValueError, "idx_images", path, "(N, 28, 28)", np.dtype(KINDS[kind]).name, wrong.shape):
            data.idx_images(path)


# ---- how commands end ------------------------------------------------------------------------------------------------


def end_of(capsys, action, *outputs, **options):
    """Exit code and error output of a command that does `action`."""
    with pytest.raises(typer.Exit) as caught, vision_options.vision_command(*outputs, **options):
        action()
    return caught.value.exit_code, capsys.readouterr().err


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    "error, code, text",
    [
        (ValueError("f: argument 'a' must\n be b, got c"), 2, "fastrnn: f: argument 'a' must be b, got c\n"),
        (TypeError("f: t"), 2, "fastrnn: f: t\n"),
        (IndexError("f: i"), 2, "fastrnn: f: i\n"),
        (OSError("f: o"), 2, "fastrnn: f: o\n"),
        (ImportError("f: m"), 2, "fastrnn: f: m\n"),
        (MemoryError(), 2, "fastrnn: out of memory on device cpu; smaller images need less (--size)\n"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            2,
            "fastrnn: out of memory on device cpu; smaller images need less (--size)\n",
        ),
        (FloatingPointError("f: NaN"), 1, "fastrnn: f: NaN\n"),
        (KeyboardInterrupt(), 130, "\nfastrnn: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_a_command_ends(capsys, error, code, text):
    assert end_of(capsys, raising(error)) == (code, text)


def test_what_a_command_does_not_hide():
    for error in (RuntimeError("a bug"), KeyError("a bug"), AssertionError("a bug")):
        with pytest.raises(type(error)) as caught, vision_options.vision_command():
            raise error
        assert caught.value is error
    with pytest.raises(typer.Exit) as caught, vision_options.vision_command():
        raise typer.Exit(3)
    assert caught.value.exit_code == 3
    done = []
    with vision_options.vision_command():
        done.append(1)
    assert done


def test_what_a_command_checks_before_its_work(capsys, tmp_path, monkeypatch):
    work = raising(AssertionError("there was work"))
    for path, words in (
        (tmp_path / "a.pdf", "must end in one of .png"),
        (tmp_path / "none" / "a.png", "there is no folder"),
    ):
        code, text = end_of(capsys, work, None, path)
        assert code == 2 and words in text and text.count("\n") == 1
    (tmp_path / "folder.png").mkdir()
    assert "it is a folder" in end_of(capsys, work, tmp_path / "folder.png")[1]
    code, text = end_of(capsys, work, device="tpu")
    assert code == 2 and text == "fastrnn: unknown device 'tpu'; there are cpu, cuda\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, text = end_of(capsys, work, device="cuda")
    assert code == 2 and text == "fastrnn: device 'cuda' cannot be used here: PyTorch finds no CUDA device\n"
    find = vision_options.find_spec
    monkeypatch.setattr(vision_options, "find_spec", lambda name: None if name in ("torch", "PIL") else find(name))
    code, text = end_of(capsys, work)
    assert code == 2 and text == "fastrnn: needs PyTorch, Pillow: pip install 'fastrnn[vision]'\n"
    assert "PyTorch:" in end_of(capsys, work, needs=["torch", "sklearn"])[1]


def test_the_picture_is_named_absolutely(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    vision_options.say_picture(Path("x.png"))
    assert capsys.readouterr().out == f"picture  {tmp_path / 'x.png'}\n"


# ---- the gallery -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(monkeypatch):
    """docs/build_gallery.py, and commands that do what the function put here says."""
    path = Path(__file__).resolve().parents[1] / "docs" / "build_gallery.py"
    spec = importlib.util.spec_from_file_location("build_gallery", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "build_gallery", module)
    spec.loader.exec_module(module)
    module.does = lambda command, picture: f"picture  {picture}\n"

    def run(arguments, cwd, env, **options):
        assert arguments[:3] == [sys.executable, "-m", "fastrnn"] and not os.listdir(cwd)
        assert not Path(env["FASTRNN_CACHE"]).exists()
        picture = cwd / f"fastrnn-{arguments[3]}.png"
        images.save_image(picture, np.random.default_rng(0).integers(0, 256, (60, 200, 3), dtype=np.uint8))
        said = module.does(arguments[3], picture)
        code, errors = (0, "") if isinstance(said, str) else said
        return subprocess.CompletedProcess(arguments, code, said if isinstance(said, str) else "", errors)

    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    monkeypatch.setattr(module.common, "commit", lambda: "abc")
    monkeypatch.setattr(module.common, "hardware", lambda: "a processor")
    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def built(gallery, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["build_gallery.py", *map(str, arguments)])
    return gallery.main()


def test_the_gallery_shows_every_command(tmp_path, gallery, monkeypatch):
    gallery.does = lambda command, picture: f"numbers of {command}\npicture  {picture}\n"
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "style.png").touch()  # of an earlier time, and now a JPEG
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    assert built(gallery, monkeypatch, "--out", tmp_path) == 0
    page = (tmp_path / "gallery.md").read_text()
    assert "commit abc" in page and "a processor" in page
    names = ["fool", "gan", "invert", "saliency", "style", "texture", "visualize"]
    for name in names:
        assert f"    $ fastrnn {name}\n    numbers of {name}\n    picture  …/fastrnn-{name}.png\n" in page
        assert f"](gallery/{name}.jpg)" in page
    assert sorted(os.listdir(tmp_path / "gallery")) == [f"{name}.jpg" for name in names]
    for name in names:  # noise, of which a PNG would take 36,000 bytes
        assert (tmp_path / "gallery" / f"{name}.jpg").stat().st_size <= 10_000
    assert str(tmp_path) not in page and max(map(len, page.splitlines())) <= 120


def test_a_picture_that_is_small_stays_as_it_is(tmp_path, gallery):
    images.save_image(tmp_path / "small.png", smooth())
    content, suffix = gallery._small(tmp_path / "small.png")
    assert suffix == ".png" and np.array_equal(np.array(Image.open(io.BytesIO(content))), smooth())


@pytest.mark.parametrize(
    "said, word",
    [
        ((2, "fastrnn: bad"), "exit code 2: fastrnn: bad"),
        ((0, "a warning"), "complained: a warning"),
        ("nothing\n", "fastrnn-fool.png, got []"),
        ("picture  /elsewhere/fastrnn-fool.png\n", "got ['/elsewhere"),
    ],
)
def test_a_command_that_fails_leaves_the_gallery_as_it_is(tmp_path, gallery, monkeypatch, capsys, said, word):
    does = gallery.does
    gallery.does = lambda command, picture: said if command == "fool" else does(command, picture)
    assert built(gallery, monkeypatch, "--out", tmp_path, "saliency", "fool") == 2
    assert word in capsys.readouterr().err and not os.listdir(tmp_path)
    for arguments in (["--out", tmp_path, "none"], ["fool"]):
        with pytest.raises(SystemExit) as caught:
            built(gallery, monkeypatch, *arguments)
        assert caught.value.code == 2

"""Files that are wrong: bytes changed anywhere, or values changed inside and the file written anew around them.

Changed bytes find what a reader does with damage, but seldom get past a checksum or an outer format. So each format has
a `Form` that takes a file to pieces, changes one value of them (a type, a shape, a number, a name) and puts it together
again. Where taking to pieces is itself what a damaged file could break (HDF5, pickles), a form remembers the pieces of
what it wrote, and begins with those of a valid file where it knows none.
"""

from __future__ import annotations

import ast
import copy
import gzip
import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

# What random bytes seldom are.
TOKENS = (
    b"\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"\xff" * 7 + b"\x7f",
    b"\r", b"\n\n", b'"', b'""', b",", b"\xef\xbb\xbf", b"\xc3", b"\xe2\x80\xa8", b"\xc2\x85", b"\xf0\x9f\x90\xb1",
    b"[", b"{", b"]", b"}", b"null", b"NaN", b"-1", b"1e999", b"9" * 5000, b"[" * 100_000, b"\\ud800", b'{"a":' * 3000,
)  # fmt: skip
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    127,
    128,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63,
    2**64,
    -(2**63),
    10**400,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, *_NUMBERS, 0.0, -0.5, 1e308, float("nan"), float("inf"), "", "0", "x", "<NULL>", "a\nb", "\0",
    "\ud800", "\u2028", "é" * 50, "../x", [], {}, [0], ["x"], {"x": 0}, [[[]]], "@deep@", "@digits@", "@infinite@",
)  # fmt: skip
# What `json` itself would not write.
_RAW = {'"@deep@"': "[" * 50_000 + "]" * 50_000, '"@digits@"': "7" * 5000, '"@infinite@"': "-1e999"}


def havoc(data: bytes, rng: random.Random, others: Sequence[bytes], most: int) -> bytes:
    """A few changes of bytes anywhere: what stands for libFuzzer's mutations where that is not installed."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(changed) + 1)
        span = min(rng.choice((1, 1, 2, 4, 8, 32, 256)), len(changed) - at)
        kind = rng.randrange(8)
        if kind == 0 and span:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + span] = rng.randbytes(span)
        elif kind == 2:
            del changed[at : at + span]
        elif kind == 3:
            changed[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            token = rng.choice(TOKENS)
            changed[at : at + len(token)] = token
        elif kind == 5:
            del changed[at:]
        elif kind == 6:
            changed[at:at] = changed[at : at + span]
        else:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            changed[at : at + span] = other[begin : begin + rng.choice((1, 8, 64, 512))]
    return bytes(changed[:most])


def changed_value(tree: Any, rng: random.Random) -> Any:
    """A copy of a tree of lists and objects in which one place is missing, there twice, or holds something else."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(_VALUES))
    node, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice([str(value) for value in _VALUES])] = node.pop(key)
    elif kind == 1:
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == 2:
        other, where = rng.choice(places)
        node[key] = copy.deepcopy(other.get(where) if isinstance(other, dict) else other[where])
    elif kind == 3 and type(node[key]) in (int, float):
        node[key] += rng.choice((-1, 1, 2, 0.5, 1000))
    else:
        node[key] = copy.deepcopy(rng.choice(_VALUES))
    return tree


def json_text(tree: Any) -> str:
    """JSON, with what Python's own writer refuses to write."""
    text = json.dumps(tree, allow_nan=True)
    for mark, raw in _RAW.items():
        text = text.replace(mark, raw)
    return text


class Form:
    """A format whose content can be changed. The methods may raise anything: the bytes are changed then."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        """The file with a value changed inside."""
        raise NotImplementedError


class Json(Form):
    """One JSON value."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        return json_text(changed_value(json.loads(data), rng)).encode()


class JsonLines(Form):
    """A JSON value a line."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = json_text(changed_value(json.loads(lines[at]), rng)).encode()
        return b"\n".join(lines)


class Csv(Form):
    """Rows of cells, without quotes around them."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        rows = [line.split(b",") for line in data.split(b"\n")]
        row = rng.choice(rows)
        cells = (
            b"",
            b'"',
            b'"a""b"',
            b'"a,b"',
            b'"a\nb"',
            b"-1",
            b"1.5",
            b" 2 ",
            b"9" * 5000,
            b"x" * 140_000,
            b"\0",
            b"\r",
        )
        kind = rng.randrange(4)
        if kind == 0:
            row.insert(rng.randrange(len(row) + 1), rng.choice(cells))
        elif kind == 1:
            row.pop(rng.randrange(len(row)))
        elif kind == 2:
            rows.insert(rng.randrange(len(rows) + 1), list(rng.choice(rows)))
        else:
            row[rng.randrange(len(row))] = rng.choice((*cells, *rng.choice(rows)))
        return b"\n".join(b",".join(cells) for cells in rows)


class Npy(Form):
    """The header of an .npy file."""

    _DESCR = ("<f4", ">f8", "<f2", "|O", "|u1", "<i8", "<U9", "|S0", "|V8", "<c8", "?", "<M8[s]", "<g", [("a", "<f4")],
              [("a", "<f4", (1 << 40,))], ("<f4", (2, 3)), "", "f4,f4", None, 3)  # fmt: skip

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        size = struct.unpack("<H", data[8:10])[0]
        header, values = ast.literal_eval(data[10 : 10 + size].decode("latin1")), data[10 + size :]
        kind = rng.randrange(6)
        if kind == 0:
            header["descr"] = rng.choice(self._DESCR)
        elif kind <= 2:
            shape = list(header["shape"])
            at = rng.randrange(len(shape) + 1)
            if kind == 1 and at < len(shape):
                shape[at] = rng.choice((*_NUMBERS, 1.5, None, True, shape[at] + 1))
            else:
                shape.insert(at, rng.choice((0, 1, 2, 2**40)))
            header["shape"] = tuple(shape)
        elif kind == 3:
            header["fortran_order"] = rng.choice((True, 0, None, "x"))
        elif kind == 4:
            header = changed_value(header, rng)
        else:
            at = rng.randrange(0, len(values), 4)
            values = values[:at] + struct.pack("<f", rng.choice((float("nan"), 1e38))) + values[at + 4 :]
        text = repr(header).encode("latin1")
        return data[:8] + struct.pack("<H", len(text) + 1) + text + b"\n" + values


class Idx(Form):
    """The header of an IDX file, plain or compressed by gzip."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        packed = data[:2] == b"\x1f\x8b"
        plain = bytearray(unpacked(data, 1 << 20) if packed else data)
        kind = rng.randrange(4)
        if kind == 0:
            plain[2] = rng.choice((0, 8, 9, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F))
        elif kind == 1:
            plain[3] = rng.choice((0, 1, 2, 3, 4, 8, 9, 255))
        elif kind == 2:
            at = 4 + 4 * rng.randrange(max(1, plain[3]))
            plain[at : at + 4] = struct.pack(
                ">I", rng.choice((0, 1, 2, 28, 784, 2**16, 2**20, 2**30, 2**31, 2**32 - 1))
            )
        else:
            del plain[rng.randrange(4, len(plain)) :]
        if not packed:
            return bytes(plain)
        if rng.random() < 0.1:
            plain += bytes(rng.choice((1, 1 << 16, 1 << 24)))  # a small file that unpacks to a large one
        return gzip.compress(bytes(plain), mtime=0)


class Safetensors(Form):
    """The header of a .safetensors file: JSON, with its length before it."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        size = struct.unpack("<Q", data[:8])[0]
        header = changed_value(json.loads(data[8 : 8 + size]), rng)
        text = json_text(header).encode()
        return struct.pack("<Q", len(text) + rng.choice((0, 0, 0, 0, 1, -1, 2**40))) + text + data[8 + size :]


class Zip(Form):
    """The members of an archive that does not compress, as PyTorch and NumPy write it."""

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist() if info.file_size < 1 << 20]
        at = rng.randrange(len(members))
        pickles = [index for index, (name, _) in enumerate(members) if name.endswith(".pkl")]
        if pickles and rng.random() < 0.7:
            at = pickles[0]
        name, content = members[at]
        kind = rng.randrange(8)
        if kind == 0:
            del members[at]
        elif kind == 1:
            members[at] = (rng.choice((name + "x", "", "../" + name, name.upper(), rng.choice(members)[0])), content)
        elif kind == 2:
            members.append((name, content))
        else:
            members[at] = (name, havoc(content, rng, [other for _, other in members], 1 << 16))
        buffer = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content)
        return buffer.getvalue()


class _Remembering(Form):
    """Taken to pieces are only valid files; what was written is known by its digest."""

    def __init__(self, seeds: Sequence[bytes]) -> None:
        self._known: dict[bytes, Any] = {}
        self._seeds = [self.parsed(seed) for seed in seeds]
        for seed, tree in zip(seeds, self._seeds, strict=True):
            self._known[self._digest(seed)] = tree

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        known = self._known.get(self._digest(data))
        tree = self.altered(copy.deepcopy(rng.choice(self._seeds) if known is None else known), rng)
        written = self.written(tree)
        if len(self._known) > 4000:
            self._known.pop(next(iter(self._known)))
        self._known[self._digest(written)] = tree
        return written

    @staticmethod
    def _digest(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=16).digest()

    def parsed(self, data: bytes) -> Any:
        raise NotImplementedError

    def altered(self, tree: Any, rng: random.Random) -> Any:
        raise NotImplementedError

    def written(self, tree: Any) -> bytes:
        raise NotImplementedError


class Hdf5(_Remembering):
    """Datasets, groups, links and attributes of an HDF5 file."""

    def parsed(self, data: bytes) -> Any:
        import h5py

        def group(found: Any) -> dict[str, Any]:
            members = {name: group(one) if isinstance(one, h5py.Group) else dataset(one) for name, one in found.items()}
            return {"kind": "group", "attrs": dict(found.attrs), "members": members}

        def dataset(found: Any) -> dict[str, Any]:
            made = {"chunks": found.chunks, "compression": found.compression, "fletcher32": found.fletcher32}
            dtype = found.dtype if h5py.check_string_dtype(found.dtype) else None
            return {"kind": "dataset", "value": found[()], "dtype": dtype, "attrs": {}, "made": made}

        with h5py.File(io.BytesIO(data), "r") as file:
            return group(file)

    def altered(self, tree: Any, rng: random.Random) -> Any:
        import h5py
        import numpy as np

        places: list[tuple[dict[str, Any], str]] = []

        def walk(group: dict[str, Any]) -> None:
            for name, one in group["members"].items():
                places.append((group, name))
                if one["kind"] == "group":
                    walk(one)

        walk(tree)
        if not places or rng.random() < 0.1:
            attributes = tree["attrs"]
            name = rng.choice([*attributes, "x"])
            attributes[name] = rng.choice(
                (
                    0,
                    1,
                    2,
                    -1,
                    1.5,
                    "",
                    "x",
                    b"x",
                    np.arange(3),
                    np.nan,
                    True,
                    h5py.Empty("f"),
                    np.array(["a", "b"], "S1"),
                )
            )
            return tree
        group, name = rng.choice(places)
        members, one = group["members"], group["members"][name]
        kind = rng.randrange(12)
        if kind == 0:
            del members[name]
        elif kind == 1:
            members[rng.choice((name + "x", "é", "x", rng.choice(places)[1]))] = members.pop(name)
        elif kind == 2:
            members[name] = copy.deepcopy(rng.choice(places)[0]["members"].get(name, one))
        elif kind == 3:
            members[name] = {"kind": rng.choice(("soft", "loop", "external", "type", "virtual", "outside", "empty"))}
        elif kind == 4:
            members[name] = {"kind": "group", "attrs": {}, "members": {"x": one}}
        elif one["kind"] != "dataset":
            members[name] = {"kind": "empty"}
        else:
            self._alter(one, rng, np, h5py)
        return tree

    def _alter(self, one: dict[str, Any], rng: random.Random, np: Any, h5py: Any) -> None:
        value = one["value"]
        if isinstance(value, bytes) and rng.random() < 0.9:  # JSON, in checkpoints
            if rng.random() < 0.2:
                one["value"] = havoc(value, rng, [value], 1 << 16)
            else:
                one["value"] = json_text(changed_value(json.loads(value), rng)).encode()
            one["dtype"] = rng.choice((h5py.string_dtype(length=max(1, len(one["value"]))), h5py.string_dtype()))
            return
        value = np.asarray(value)
        kind = rng.randrange(6)
        if kind == 0:
            one["dtype"] = rng.choice(
                ("<i4", ">i4", "<u8", "i1", "<f2", "<f4", ">f8", "g", "?", "S4", "V3", "<c8", "[('a', '<i4')]")
                + (
                    h5py.string_dtype(),
                    h5py.vlen_dtype(np.dtype("i4")),
                    h5py.enum_dtype({"A": 0}, "i4"),
                    h5py.ref_dtype,
                )
            )
        elif kind == 1:
            shape = value.shape
            choice = rng.randrange(6)
            if choice == 0 and value.ndim:
                value = value[: rng.randrange(value.shape[0] + 1)]
            elif choice == 1 and value.ndim and value.nbytes < 1 << 16:  # or it grows for ever
                value = np.concatenate([value, value])
            elif choice == 2:
                value = value.reshape(*shape, 1)
            elif choice == 3:
                value = value.T
            elif choice == 4 and value.ndim > 1:
                value = value[:, : rng.randrange(value.shape[1] + 1)]
            else:
                value = value.reshape(-1)[0] if value.size else value.reshape(-1)
            one["value"] = value
        elif kind == 2 and value.ndim:  # announced, and not there
            shape = list(value.shape)
            shape[rng.randrange(len(shape))] = rng.choice((2**16, 2**24, 2**28, 2**32, 2**40, 2**62))
            one["announced"] = tuple(shape)
            one["made"] = {"chunks": tuple(min(size, 64) for size in shape)} if rng.random() < 0.8 else {}
        elif kind == 3:
            one["made"] = rng.choice(
                ({}, {"chunks": True}, {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True},
                 {"fletcher32": True}, {"scaleoffset": 2}, {"maxshape": (None,) * value.ndim}, {"fillvalue": 7})
            )  # fmt: skip
        elif value.size and value.dtype.kind in "iuf":
            value = np.array(value)
            odd = rng.choice((-1, 0, 1, 4, 126, 127, 2**31 - 1, 2**40, float("nan"), float("inf"), 1e300))
            with suppress(OverflowError, ValueError), np.errstate(all="ignore"):
                value.reshape(-1)[rng.randrange(value.size)] = odd
            one["value"] = value

    def written(self, tree: Any) -> bytes:
        import h5py
        import numpy as np

        def made(one: dict[str, Any]) -> dict[str, Any]:
            return {key: how for key, how in one["made"].items() if how} if np.ndim(one["value"]) else {}

        def fill(group: Any, described: dict[str, Any]) -> None:
            group.attrs.update(described["attrs"])
            for name, one in described["members"].items():
                if one["kind"] == "group":
                    fill(group.create_group(name), one)
                elif one["kind"] == "soft":
                    group[name] = h5py.SoftLink("/nowhere")
                elif one["kind"] == "loop":
                    group[name] = h5py.SoftLink(f"{group.name}/{name}")
                elif one["kind"] == "external":
                    group[name] = h5py.ExternalLink("nowhere.h5", "/x")
                elif one["kind"] == "type":
                    group[name] = np.dtype("f4")
                elif one["kind"] == "empty":
                    group[name] = h5py.Empty("f4")
                elif one["kind"] == "outside":
                    group.create_dataset(name, (30, 5), "f4", external=[("nowhere.bin", 0, 600)])
                elif one["kind"] == "virtual":
                    layout = h5py.VirtualLayout((2**34, 5), "f4")
                    layout[:4] = h5py.VirtualSource("nowhere.h5", "x", (4, 5))
                    group.create_virtual_dataset(name, layout)
                elif "announced" in one:
                    group.create_dataset(name, one["announced"], np.asarray(one["value"]).dtype, **one["made"])
                else:
                    dtype, value = one["dtype"], one["value"]
                    dtype = np.dtype(ast.literal_eval(dtype)) if str(dtype)[:1] == "[" else dtype
                    text = isinstance(value, bytes) and h5py.check_string_dtype(np.dtype(dtype or "S")) is not None
                    if dtype is not None and np.dtype(dtype).kind == "O" and not text:
                        # References made of anything else would be addresses: h5py follows them, and the process dies.
                        group.create_dataset(name, np.shape(value), dtype)
                    else:
                        group.create_dataset(name, data=value, dtype=dtype, **made(one))

        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            fill(file, tree)
        return buffer.getvalue()


class Torch(_Remembering):
    """The values of a file of PyTorch, or the members of its archive."""

    def __init__(self, seeds: Sequence[bytes]) -> None:
        super().__init__(seeds)
        self._zip = Zip()

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        if data[:2] == b"PK" and rng.random() < 0.5:
            return self._zip.changed(data, rng)
        return super().changed(data, rng)

    def parsed(self, data: bytes) -> Any:
        import torch

        return torch.load(io.BytesIO(data), weights_only=True)

    def altered(self, tree: Any, rng: random.Random) -> Any:
        import torch

        if rng.random() < 0.4:
            return changed_value(tree, rng)
        tensors: list[tuple[dict[Any, Any], Any]] = []

        def walk(node: Any) -> None:
            for key, value in node.items() if isinstance(node, dict) else ():
                if isinstance(value, torch.Tensor) and value.numel() < 1 << 20:  # not one that was expanded
                    tensors.append((node, key))
                walk(value)

        walk(tree)
        if not tensors:
            return changed_value(tree, rng)
        node, key = rng.choice(tensors)
        value = node[key]
        kind = rng.randrange(8)
        if kind == 0:
            dtypes = (
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.int64,
                torch.bool,
                torch.complex64,
                torch.uint16,
            )
            value = value.to(rng.choice(dtypes))
        elif kind == 1:
            value = value.clone().contiguous()
            if value.numel() and value.is_floating_point():
                value.view(-1)[0] = rng.choice((float("nan"), float("inf"), 1e30))
        elif kind == 2:
            value = value[..., None]
        elif kind == 3:
            value = value.reshape(-1)[: rng.randrange(value.numel() + 1)]
        elif kind == 4:
            value = torch.zeros(1).expand(rng.choice((value.shape, (2**32,), (2**20, 2**20))))  # of one number
        elif kind == 5:
            value = value.to_sparse() if value.layout == torch.strided and value.ndim else value
        elif kind == 6:
            value = torch.empty(value.shape, device="meta")
        elif value.is_floating_point():
            value = torch.nn.Parameter(value)
        node[key] = value
        return tree

    def written(self, tree: Any) -> bytes:
        import torch

        buffer = io.BytesIO()
        torch.save(tree, buffer)
        return buffer.getvalue()


class Image(Form):
    """An image of another kind, or a PNG file whose checksums are those of its changed blocks."""

    _MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F")
    _KINDS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000", "IM")

    def changed(self, data: bytes, rng: random.Random) -> bytes:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and rng.random() < 0.7:
            return self._png(data, rng)
        from PIL import Image as Pillow

        size = rng.choice(((1, 1), (7, 5), (64, 3), (1, 300), (40, 40)))
        image = Pillow.new("RGBA", size, tuple(rng.randbytes(4))).convert(rng.choice(self._MODES[:9]))
        if rng.random() < 0.3:
            image = Pillow.new(rng.choice(self._MODES), size, rng.choice((0, 1)))
        options: dict[str, Any] = rng.choice(
            ({}, {"save_all": True, "append_images": [image]}, {"transparency": 0}, {"progressive": True})
        )
        options = options | rng.choice(({}, {"compression": rng.choice(("tiff_lzw", "jpeg", "packbits", "group4"))}))
        buffer = io.BytesIO()
        image.save(buffer, rng.choice(self._KINDS), **options)
        return buffer.getvalue()

    @staticmethod
    def _png(data: bytes, rng: random.Random) -> bytes:
        blocks, at = [], 8
        while at + 8 <= len(data):
            size = struct.unpack(">I", data[at : at + 4])[0]
            blocks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
            at += 12 + size
        index = rng.randrange(len(blocks))
        name, content = blocks[index]
        if name == b"IHDR" and rng.random() < 0.7:
            sides = (0, 1, 7, 300, 5000, 9459, 2**15, 2**20, 2**31 - 1, 2**32 - 1)
            side = struct.pack(">I", rng.choice(sides))
            content = side + content[4:] if rng.random() < 0.5 else content[:4] + side + content[8:]
            content = content[:8] + bytes([rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6))]) + content[10:]
        elif name == b"IDAT" and rng.random() < 0.7:
            content = zlib.compress(
                havoc(unpacked(content, 1 << 20), rng, [data], 1 << 16) + bytes(rng.choice((0, 1 << 20)))
            )
        else:
            content = havoc(content, rng, [data], 1 << 16)
        blocks[index] = (rng.choice((name, name, name, b"tRNS", b"PLTE", b"acTL", b"fdAT", b"zTXt", b"eXIf")), content)
        if rng.random() < 0.2:
            blocks.insert(rng.randrange(len(blocks)), rng.choice(blocks))
        parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in blocks]
        return data[:8] + b"".join(parts)


def unpacked(data: bytes, most: int) -> bytes:
    """What zlib or gzip packed, as far as it goes."""
    return zlib.decompressobj(47).decompress(data, most)


class Mutator:
    """Changed files, one after the other: of the same seed the same.

    Parameters
    ----------
    form : Form or None
        Changes values inside; of None only bytes are changed.
    seeds : sequence of bytes
        Valid files.
    most : int
        The most bytes that a file gets.
    """

    def __init__(self, form: Form | None, seeds: Sequence[bytes], most: int = 1 << 18) -> None:
        self.form, self.seeds, self.most = form, list(seeds), most

    def __call__(self, data: bytes, rng: random.Random, bytewise: Any = None) -> bytes:
        """Change `data`; `bytewise` changes bytes, by default `havoc` does."""
        if self.form is not None and rng.random() < 0.6:
            # The forms are written for valid files, and get others as well.
            with suppress(Exception):
                for _ in range(rng.choice((1, 1, 2, 3))):
                    changed = self.form.changed(data, rng)
                    data = changed if len(changed) <= self.most else data
                if rng.random() < 0.8:
                    return data
        return havoc(data, rng, self.seeds, self.most) if bytewise is None else bytewise(data)

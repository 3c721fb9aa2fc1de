"""Damaged copies of files, made from a seed: bytes, texts, the content of HDF5 files, and folders."""

from __future__ import annotations

import gzip
import io
import re
import shutil
from pathlib import Path

import numpy as np

WORDS = [
    "99999999999999999999",
    "-1",
    "0",
    "nan",
    "1e400",
    "",
    "x",
    "2147483648",
    "0.5",
    "'",
    '"',
    "\0",
    "\u2028",
    "NA",
]


def damaged(path: Path, target: Path, seed: int) -> None:
    """Write a damaged copy of `path`, a file or a folder, to `target`."""
    random = np.random.default_rng([seed, len(path.name)])
    if path.is_dir():
        shutil.copytree(path, target)
        files = sorted(file for file in target.rglob("*") if file.is_file())
        _damage_in_folder(files[random.integers(len(files))], target, random)
        return
    content = path.read_bytes()
    name = path.name.lower()
    if content.startswith(b"\x89HDF") and random.random() < 0.5:
        shutil.copyfile(path, target)
        _damage_hdf5(target, random)
        return
    if name.endswith(".gz") and random.random() < 0.6:
        content = gzip.compress(_bytes_or_text(gzip.decompress(content), random), 1)
    elif name.endswith(".npz") and random.random() < 0.6:
        content = _npz(content, random)
    else:
        content = _bytes_or_text(content, random)
    target.write_bytes(content)


def _damage_in_folder(file: Path, root: Path, random: np.random.Generator) -> None:
    kind = random.integers(5)
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.unlink()
        file.symlink_to("/etc/passwd")
    elif kind == 2:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(_bytes_or_text(file.read_bytes(), random))


def _bytes_or_text(content: bytes, random: np.random.Generator) -> bytes:
    is_text = b"\0" not in content[:4096] and not content.startswith((b"\x1f\x8b", b"PK", b"\x89"))
    return _text(content, random) if is_text and random.random() < 0.7 else _bytes(content, random)


def _text(content: bytes, random: np.random.Generator) -> bytes:
    kind, text = random.integers(7), content.decode("utf-8", "replace")
    if kind == 0 and "{" in text:
        return b"[" * int(random.integers(1, 200_000))
    if kind <= 3:
        tokens = list(re.finditer(r"[\w.+-]+", text))
        for match in sorted((tokens[i] for i in random.integers(0, len(tokens), 2)), key=lambda m: -m.start()):
            text = text[: match.start()] + WORDS[random.integers(len(WORDS))] + text[match.end() :]
        return text.encode("utf-8", "replace")
    lines = text.splitlines(keepends=True)
    at = int(random.integers(len(lines)))
    if kind == 4:
        del lines[at]
    elif kind == 5:
        lines.insert(at, lines[int(random.integers(len(lines)))])
    else:
        lines[at] = lines[at] * 3 if random.random() < 0.5 else lines[at].strip()
    return "".join(lines).encode("utf-8", "replace")


def _bytes(content: bytes, random: np.random.Generator) -> bytes:
    found, kind = bytearray(content), random.integers(7)
    at = int(random.integers(len(found)))
    size = int(random.integers(1, 64))
    if kind == 0:
        return bytes(found[:at])
    if kind <= 2:
        for place in random.integers(0, len(found), random.integers(1, 9)):
            found[place] = random.integers(256)
    elif kind == 3:
        found[at : at + size] = random.bytes(size)
    elif kind == 4:
        found[at : at + size] = bytes([random.choice([0, 255])]) * size
    elif kind == 5:
        del found[at : at + size]
    else:
        found[at:at] = found[:size]
    return bytes(found)


def _npz(content: bytes, random: np.random.Generator) -> bytes:
    """Other arrays under the same names: types, shapes and values that do not fit."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    name = sorted(arrays)[random.integers(len(arrays))]
    arrays[name] = _other(arrays[name], random)
    found = io.BytesIO()
    np.savez_compressed(found, **arrays)
    return found.getvalue()


def _other(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Values of another type or shape, or with other numbers among them."""
    kind = random.integers(9)
    if kind == 0:
        return values.reshape(-1)[:0]
    if kind == 1:
        return np.zeros(())
    if kind == 2:
        return np.stack([values, values])
    if kind == 3:
        return values[:-1] if values.ndim else values
    if kind == 4:
        return np.full(values.shape, b"text")
    if kind == 5:
        return np.zeros(values.shape, "c16")
    if values.dtype.kind not in "iuf":
        return np.zeros(values.shape)
    values = np.atleast_1d(values).copy()
    limits = np.iinfo(values.dtype) if values.dtype.kind in "iu" else np.finfo(values.dtype)
    some = [limits.min, limits.max, 0, 1, *([np.nan, np.inf] if values.dtype.kind == "f" else [])]
    if values.size:
        values.reshape(-1)[random.integers(0, values.size, 3)] = some[random.integers(len(some))]
    return values


def _damage_hdf5(path: Path, random: np.random.Generator) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[random.integers(len(names))]
        item, kind = file[name], random.integers(8)
        if kind == 0:
            del file[name]
        elif kind == 1:
            del file[name]
            file[name] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == 2:
            del file[name]
            file[name] = h5py.SoftLink("/" + name)
        elif kind == 3:
            for key in list(item.attrs):
                item.attrs[key] = [0, "text", np.zeros((2, 2)), 10**18][random.integers(4)]
        elif isinstance(item, h5py.Group):
            del file[name]
            file[name] = np.zeros(3)
        else:
            _replace(file, name, item, kind, random)


def _replace(file, name: str, item, kind: int, random: np.random.Generator) -> None:
    attributes = dict(item.attrs)
    values = item[()]
    del file[name]
    if kind == 4:
        file.create_dataset(name, shape=(10 ** int(random.integers(1, 15)),), dtype="i8", chunks=(10,))
    elif isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        file[name] = _other(values, random)
    else:
        file[name] = [np.zeros(3), "text", np.array([b"a"] * 3), np.array([["a", "b"]], dtype="S")][random.integers(4)]
    file[name].attrs.update(attributes)

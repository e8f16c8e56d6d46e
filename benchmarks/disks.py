"""Disks that are full or may not be written to, as small file systems in memory; then the space
comes back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import forks
from benchmarks.cases import Case, Reference, completes, copy, polite, words

PAGE = 4096


class NotHere(RuntimeError):
    """This system does not let the part be tried."""


@contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes. Raises: NotHere where none may be mounted."""
    place.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "campaign", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def mount(*options: str) -> None:
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotHere(f"no file system may be mounted here ({done.stderr.strip()})")


def used(folder: Path) -> int:
    """Bytes of a folder in pages, as a file system in memory counts them."""
    return sum(
        -(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file()
    )


def disks(of: Reference, small: bool) -> list[Case]:
    if os.getuid() != 0:
        raise NotHere("only root mounts file systems")
    need = used(of.finished) + used(of.stopped)

    def full(part: float) -> Case:
        def tried(place: Path) -> str:
            size = max(PAGE, int(part * need) // PAGE * PAGE)
            with disk(place / "disk", size) as there:
                out = there / "out"
                ended = forks.run(*words(out))
                if ended.status == 0:  # there was room for it
                    return completes(out, of.finished)
                if reason := polite(ended, 1, 2) or told(ended, "space") or left(out, fresh=True):
                    return reason
                mount("-o", f"remount,size={256 * 2**20}", str(there))
                return completes(out, of.finished) or left(out)

        return Case(f"a disk of {part:.0%} of what is needed", tried)

    def filled(on_the_way: bool) -> Case:
        """The disk is full when a stopped run goes on, or when a run begins."""

        def tried(place: Path) -> str:
            with disk(place / "disk", 64 * 2**20) as there:
                out = there / "out"
                if on_the_way:
                    copy(of.stopped, out)
                fill(there / "filling")
                ended = forks.run(*words(out))
                if reason := polite(ended, 1, 2) or told(ended, "space"):
                    return reason
                (there / "filling").unlink()
                return completes(out, of.finished) or left(out)

        return Case(
            f"a disk that is full when a run {'goes on' if on_the_way else 'begins'}", tried
        )

    def read_only(on_the_way: bool) -> Case:
        def tried(place: Path) -> str:
            with disk(place / "disk", 64 * 2**20) as there:
                out = there / "out"
                if on_the_way:
                    copy(of.stopped, out)
                mount("-o", "remount,ro", str(there))
                ended = forks.run(*words(out))
                if reason := polite(ended, 1, 2) or told(ended, "read-only"):
                    return reason
                mount("-o", "remount,rw", str(there))
                return completes(out, of.finished)

        return Case(f"a read-only disk when a run {'goes on' if on_the_way else 'begins'}", tried)

    parts = [of.rng.uniform(0.02, 1.0) for _ in range(1 if small else 24)]
    fixed = [filled(True), filled(False), read_only(True), read_only(False)]
    return [*map(full, parts), *(fixed[:1] if small else fixed)]


def fill(path: Path) -> None:
    """A file that takes all the room there is."""
    number = os.open(path, os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):
        while True:
            os.write(number, bytes(PAGE))
    os.close(number)


def told(ended: forks.Ended, word: str) -> str:
    """The last line names what is the matter."""
    last = (ended.err.strip().splitlines() or [""])[-1]
    return "" if word in last.lower() else f"the last line does not speak of {word}: {last[:200]}"


def left(out: Path, fresh: bool = False) -> str:
    """No half-written file stays; and no record says that the run is running."""
    halves = [
        path
        for path in out.rglob("*")
        if path.is_file() and (".tmp" in path.name or path.suffix == ".part")
    ]
    if halves and not fresh:
        return f"{halves[0].name} was left behind"
    running = [
        path for path in out.glob("*/*/record.json") if b'"status": "running"' in path.read_bytes()
    ]
    return f"{running[0].parent.name} still says running" if running else ""

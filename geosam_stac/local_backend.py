"""Objects as files of a folder: each is written whole, or not at all, and synced to disk.

Keys are checked, and errors translated, in `storage`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path

from geosam_stac.errors import StorageError


class LocalBackend:
    """Objects below one folder, which need not exist; `root` is absolute."""

    def __init__(self, root: Path) -> None:
        # Not resolve(): hrefs keep the name that the user gave, symbolic links included.
        self.root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100

    def href(self, key: str) -> str:
        """Absolute path of a key."""
        return str(self.root / key)

    def put(self, key: str, data: bytes) -> None:
        """Write a file, whole or not at all; an older one is replaced."""
        self._write(key, data, is_new=False)

    def create(self, key: str, data: bytes) -> bool:
        """As `put`, unless the name is taken: then False."""
        if os.path.lexists(self.root / key):
            return False
        try:
            self._write(key, data, is_new=True)
        except FileExistsError:
            if not (self.root / key).is_file():
                raise
            return False
        return True

    def _write(self, key: str, data: bytes, *, is_new: bool) -> None:
        """Write a file under its own name when it is whole; `is_new`: if the name is free."""
        target = self.root / key
        new = [folder for folder in target.parents if not folder.exists()]
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (is_new and _write_unnamed(target, data)):
                _write_durably(temporary, data)
                (_link if is_new else Path.replace)(temporary, target)
        except BaseException:  # a signal too must leave nothing half-written behind
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
                for folder in new:  # innermost first; one that others have filled stays
                    folder.rmdir()
            raise
        _sync_folder(target.parent)

    def get(self, key: str) -> bytes:
        """Read a file."""
        return (self.root / key).read_bytes()

    def size(self, key: str) -> int | None:
        """Size in bytes; None where there is no file of this key."""
        path = self.root / key
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:  # deleted in between
            return None

    def keys(self, prefix: str) -> list[str]:
        """Keys of all files below a key, but of hidden ones."""
        return [
            path.relative_to(self.root).as_posix()
            for path in (self.root / prefix).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]

    def delete(self, key: str) -> None:
        """Delete a file; one that is not there is no error."""
        (self.root / key).unlink(missing_ok=True)

    def delete_tree(self, key: str) -> None:
        """Delete a folder; StorageError where a link leads it out of the root."""
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(
                "refusing to delete outside the output root",
                href=str(path),
                hint="A folder of the output is a symbolic link; delete it by hand",
            )
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def check_writable(self) -> None:
        """Write and delete a file in the root, or in its nearest parent that is there."""
        folder = self.root
        while not os.path.lexists(folder):
            folder = folder.parent
        probe = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            _write_durably(probe, b"geosam-stac")
        finally:
            # Where the folder is a file, unlink fails as the write did: keep the first error.
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


def _write_unnamed(path: Path, data: bytes) -> bool:
    """Write a new file that gets its name when it is whole; False where that cannot be done.

    It goes with a process that is killed, where a hidden file would stay. FileExistsError where
    the name is taken.
    """
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:  # NFS and FAT have none; what else is wrong a file with a name meets as well
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        try:
            # As open(2) says; with a descriptor given Python follows the link to the file itself.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
        except FileExistsError:
            raise
        except OSError:  # no /proc, no hard links
            return False
    return True


def _write_durably(path: Path, data: bytes) -> None:
    if _write_unnamed(path, data):
        return
    # Not tempfile: it creates files of mode 0600, which other users' tools cannot read.
    descriptor = os.open(
        path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (
        OSError
    ):  # a file system without hard links, as FAT: the name is taken first, then filled
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary.replace(target)
        return
    temporary.unlink()


def _sync_folder(folder: Path) -> None:
    # The Item must not survive a power cut that its features do not: the rename itself is synced.
    # Some file systems and Windows cannot do this to a folder; the file's own fsync must do there.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

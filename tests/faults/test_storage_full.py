"""An output that is full, read-only or over its quota: exit 74 at once, and nothing half-written.

The file systems are real ones, in a mount namespace of their own: a small tmpfs, a read-only bind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geosam_stac.features import is_whole
from tests.cli.conftest import ROOT, make_item

LIMIT_S = 120
_ALLOWED = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"],
        check=False,
        capture_output=True,
        timeout=30,
    ).returncode
    == 0
)
needs_mounts = pytest.mark.skipif(
    not _ALLOWED, reason="mounting in a namespace of one's own is not allowed here"
)
# Runs the command line with a limit on the size of a file, as a quota has; the signal that comes
# with it is ignored, so that a write fails (EFBIG).
LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.argv = sys.argv[1:]
runpy.run_module("tests.cli.slow_main", run_name="__main__")
"""


def encode(item: Path, out: Path, *, before: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of an encode with the fake model."""
    done = subprocess.run(
        [
            *(before or (sys.executable, "-W", "ignore", "-m", "tests.cli.slow_main")),
            *("0", "encode", "--item", str(item), "--model", "sam2.1-hiera-tiny"),
            *("--checkpoint", "untrained", "--device", "cpu", "--stride", "32", "--out", str(out)),
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stdout, done.stderr


def check_nothing_half_written(folder: Path) -> list[Path]:
    """No Item, no file that was not brought to its end; the features that are there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.endswith(".tmp")]
    assert not [path for path in files if path.name == f"{path.parent.name}.json"]
    features = [path for path in files if path.suffix == ".pt"]
    assert all(is_whole(path.read_bytes()) for path in features)
    for path in files:
        if path.suffix == ".ndjson":
            assert all(json.loads(line)["bytes"] > 0 for line in path.read_text().splitlines())
    return features


def in_namespace(mount: str, kept: Path, out: Path) -> tuple[str, ...]:
    """A shell that mounts over `out`, runs its arguments, and copies what is there to `kept`."""
    script = f'{mount} || exit 99; "$@"; code=$?; cp -a "{out}/." "{kept}/" 2>/dev/null; exit $code'
    run = (sys.executable, "-W", "ignore", "-m", "tests.cli.slow_main")
    return ("unshare", "-rm", "sh", "-c", script, "sh", *run)


@needs_mounts
def test_a_full_disk(tmp_path):
    item = make_item(tmp_path, "scene", (256, 256))  # 49 chips of 12 KB
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.mkdir()
    mount = f'mount -t tmpfs -o size=300k tmpfs "{out}"'
    code, printed, said = encode(item, out, before=in_namespace(mount, kept, out))
    assert code == 74, said
    assert printed == ""
    assert "the disk is full" in said
    assert "trying again" not in said
    assert "tries" not in said
    assert "Traceback" not in said
    assert 0 < len(check_nothing_half_written(kept)) < 49


@needs_mounts
def test_a_read_only_file_system(tmp_path):
    item = make_item(tmp_path, "scene")
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.mkdir()
    mount = f'mount --bind "{out}" "{out}" && mount -o remount,bind,ro "{out}"'
    code, printed, said = encode(item, out, before=in_namespace(mount, kept, out))
    assert code == 74, said
    assert printed == ""
    assert "the file system is read-only" in said
    assert "trying again" not in said
    assert "Traceback" not in said
    assert not list(kept.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no resource limits on Windows")
def test_a_limit_on_what_may_be_written(tmp_path):
    item = make_item(tmp_path, "scene", (256, 256))
    out = tmp_path / "out"
    limited = (sys.executable, "-W", "ignore", "-c", LIMITED.format(size=2048), "slow_main")
    code, printed, said = encode(item, out, before=limited)
    assert code == 74, said
    assert printed == ""
    assert "trying again" not in said
    assert "Traceback" not in said
    assert not check_nothing_half_written(out)

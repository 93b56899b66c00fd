"""The image's recipe, as far as it can be shown without an engine: linted, and its steps run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from geosam_stac.scale.kubernetes import USER_ID

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
# Steps that only the image itself can run: Debian packages and users.
ONLY_THERE = re.compile(r"\b(apt-get|useradd)\b")


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile, its lines joined."""

    word: str
    rest: str


def steps() -> list[Step]:
    """The instructions in order; comments are left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def _hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sysconfig.get_path("scripts")) / "hadolint"
    return subprocess.run([tool, path], check=False, capture_output=True, text=True, timeout=60)


def test_hadolint():
    done = _hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_complain(tmp_path):
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM ubuntu:latest\nRUN cd / && apt-get install gcc\n")
    assert _hadolint(worse).returncode != 0


def test_base_is_pinned_and_named():
    (base,) = [step.rest for step in steps() if step.word == "FROM"]
    match = re.fullmatch(r"(nvidia/cuda:\S+)@(sha256:[0-9a-f]{64})", base)
    assert match, base
    labels = next(step.rest for step in steps() if step.word == "LABEL")
    assert f'base.name="docker.io/{match[1]}"' in labels
    assert f'base.digest="{match[2]}"' in labels
    for name in ("title", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_runs_as_the_user_of_the_jobs():
    (user,) = [step.rest for step in steps() if step.word == "USER"]
    assert user == f"{USER_ID}:{USER_ID}"
    words = [step.word for step in steps()]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert 'ENTRYPOINT ["geosam-stac"]' in DOCKERFILE.read_text()
    (health,) = [step.rest for step in steps() if step.word == "HEALTHCHECK"]
    assert '["geosam-stac", "doctor"]' in health


def test_what_jobs_and_dask_workers_may_ask_for_is_installed():
    """--model sam3 and --dask need the extras: without them a pod exits with 78."""
    (install,) = [step.rest for step in steps() if "-c requirements.txt '.[" in step.rest]
    assert "'.[dask,sam3]'" in install


def test_what_is_sent_to_the_engine_is_what_is_copied():
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name for step in steps() if step.word == "COPY" for name in shlex.split(step.rest)[:-1]
    }
    assert copied == allowed


def test_steps_run_in_a_clean_folder(tmp_path):
    """Every COPY, and every RUN that needs no Debian package, as the engine would run it.

    Packages that this environment has are not fetched again (gigabytes): the new environment
    sees them, and pip finds each at the version that the recipe pins, or fails.
    """
    prefix, source = tmp_path / "opt", tmp_path / "src"
    source.mkdir()
    environment = {
        "PATH": f"{prefix}/bin:{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GEOSAM_STAC_CACHE": f"{prefix}/weights",
        "WEIGHTS": "",
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.12").symlink_to(sys.executable)
    ran = 0
    for step in steps():
        if step.word == "COPY":
            *names, target = shlex.split(step.rest)
            for name in names:
                _copy(ROOT / name, source / target / (name if target == "./" else ""))
        if step.word != "RUN" or ONLY_THERE.search(step.rest):
            continue
        command = step.rest.replace("/opt/geosam-stac", str(prefix))
        for part in command.split("&& "):
            _run(part, source, environment)
            ran += 1
            if "-m venv" in part:
                _lend_packages(prefix)
    assert ran >= 7
    assert (prefix / "packages.json").stat().st_size > 10_000
    code = "import geosam_stac, geosam_stac.catalogs as c; print(geosam_stac.__file__, *c.__path__)"
    found = _run(f'python -c "{code}"', tmp_path, environment)
    assert str(prefix) in found and str(ROOT) not in found
    assert "geosam-stac" in _run("geosam-stac --version", tmp_path, environment)
    assert "earth-search" in _run("geosam-stac catalogs list", tmp_path, environment)


def _copy(path: Path, target: Path) -> None:
    assert path.exists(), f"{path} is copied, and is not there"
    if path.is_dir():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, target, ignore=ignore, dirs_exist_ok=True)
    else:
        shutil.copy(path, target)


def _lend_packages(prefix: Path) -> None:
    """Let the new environment see this one's packages, but not the project itself."""
    (found,) = prefix.glob("lib/python3*/site-packages")
    lent = prefix / "lent"
    lent.mkdir()
    for folder in site.getsitepackages():
        for path in Path(folder).iterdir():
            if "geosam_stac" not in path.name and "__editable__" not in path.name:
                (lent / path.name).symlink_to(path)
    (found / "lent.pth").write_text(f"{lent}\n")


def _run(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_reading_a_dockerfile_would_show_a_broken_step(tmp_path):
    with pytest.raises(AssertionError, match="no-such-command"):
        _run("no-such-command", tmp_path, {"PATH": os.environ["PATH"]})

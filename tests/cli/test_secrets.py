"""No secret in what the command prints or writes: real processes, a store that demands them.

Each way by which a secret comes in has one of its own, so that a leak names its way. What is
searched: stdout, stderr, every file, tables decoded, pictures' texts, raw and encoded.
"""

from __future__ import annotations

import base64
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from tests import rasters
from tests.cli.conftest import Outcome
from tests.forks import Forks
from tests.signed_store import Store, serving

# With signs that URLs, JSON and base64 spell in other ways: a plain word would be too easy.
SECRETS = {
    "signed": "Sig+n/4T=",
    "old": "Old+s/1G==",
    "keyed": "Key/h3Ad+er=",
    "bearer": "Bear/er+T0k=",
    "static": "Que/ry+T0k=",
    "basic": "Pass/w0+rd=",
    "pc_key": "Subscr+1p/tion",
    "aws": "Aws/Secr3t+Key",
    "hf": "hf_Hugging+Fac3",
    "out": "Out/put+S3cret",
    "weights": "We1ghts+To/ken",
}


def spellings(secret: str) -> set[bytes]:
    """How a secret may be written."""
    once = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    texts = once | {quote(text, safe="") for text in once}
    texts |= {text.lower() for text in texts if "%" in text}
    texts |= {json.dumps(text)[1:-1] for text in texts} | {secret.replace("/", "\\/")}
    for shift in range(3):  # base64 depends on where in its three bytes a secret starts
        text = base64.b64encode(b"\0" * shift + secret.encode()).decode().rstrip("=")
        texts.add(text[(0, 2, 3)[shift] : -1])
    return {text.encode() for text in texts}


SPELLINGS = {name: spellings(secret) for name, secret in SECRETS.items()}


def leaks(data: bytes, where: str) -> list[str]:
    """Which secrets stand in some bytes, or in what the bytes decode to."""
    return [
        f"the secret of {name} in {place}"
        for place, part in _parts(data, where)
        for name, texts in SPELLINGS.items()
        if any(text in part for text in texts)
    ]


def _parts(data: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    yield where, data
    if data.startswith(b"PAR1"):
        table = pq.read_table(pa.BufferReader(data))
        yield f"{where}, metadata", repr(table.schema.metadata).encode()
        for name in table.column_names:
            for value in table.column(name).to_pylist():
                yield f"{where}, {name}", value if isinstance(value, bytes) else str(value).encode()
    elif data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            yield f"{where}, text", repr(picture.info).encode()
            yield f"{where}, pixels", picture.tobytes()
    elif data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield f"{where}, {name}", archive.read(name)


def leaks_below(folder: Path) -> tuple[list[str], set[str]]:
    """Leaks in all files below a folder, and the kinds of files that were searched."""
    found: list[str] = []
    kinds: set[str] = set()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            kinds.add(path.suffix)
            found += leaks(path.read_bytes(), str(path.relative_to(folder)))
            found += leaks(os.fsencode(path), f"the name of {path.name}")
    return found, kinds


class Runner:
    """Runs the command as a process, with every secret of the environment set."""

    def __init__(self, runs: Forks, store: Store, work: Path) -> None:
        self.runs, self.store, self.work = runs, store, work
        self.out = work / "out"
        host = f"localhost:{store.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "PC_SDK_SAS_URL": f"http://127.0.0.1:{store.port}/token",
            "PC_SDK_SUBSCRIPTION_KEY": SECRETS["pc_key"],
            "GEOSAM_STAC_HEADERS": f"X-Key: {SECRETS['keyed']}",
            "GEOSAM_STAC_HEADER_HOSTS": host,
            "GEOSAM_STAC_TOKEN": SECRETS["bearer"],
            "GEOSAM_STAC_API_TOKEN": SECRETS["bearer"],
            "GEOSAM_STAC_API_HEADERS": json.dumps({"X-Api-Key": SECRETS["keyed"]}),
            "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": SECRETS["aws"],
            "AWS_SESSION_TOKEN": SECRETS["aws"],
            "HF_TOKEN": SECRETS["hf"],
            "XDG_CACHE_HOME": str(work / "cache"),
            # What never answers is not waited for.
            "GEOSAM_STAC_TIMEOUT": "2",
            "GEOSAM_STAC_RETRY_DEADLINE": "2",
        }

    def __call__(self, *argv: object, **environment: str) -> Outcome:
        ended = self.runs.start(
            argv,
            prepare="tests.cli.blob_host",
            given={"host": f".localhost:{self.store.port}"},
            environ=self.environment | environment,
        ).wait()
        done = Outcome(ended.code, ended.out, ended.err)
        said = f"{argv[0]} (exit {done.code})"
        assert leaks(done.out.encode(), f"stdout of {said}") == []
        assert leaks(done.err.encode(), f"stderr of {said}") == [], done.err
        return done

    def encode(self, *argv: object, **environment: str) -> Outcome:
        """Encode with the fake model."""
        return self(
            *("encode", "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained", "-v"),
            *("--device", "cpu", "--stride", 64, "--value-range", "0,3000"),
            *("--out", self.out, "--allow-private-hosts", *argv),
            **environment,
        )  # fmt: skip

    def item(self, name: str, *hrefs: str) -> Path:
        """A local Item of these hrefs."""
        assets = {f"b{number}": rasters.asset(href) for number, href in enumerate(hrefs)}
        return rasters.write_item(self.work / f"{name}.json", assets, item_id=name)


@pytest.fixture(scope="module")
def command(runs, tmp_path_factory) -> Iterator[Runner]:
    work = tmp_path_factory.mktemp("secrets")
    root = work / "served"
    root.mkdir()
    rasters.write_tif(root / "a.tif", rasters.values((1, 128, 128), "uint16", hi=3000))
    rasters.write_item(root / "item.json", {"b0": rasters.asset("a.tif")}, item_id="remote")
    with serving(root, "unused", **SECRETS) as port:
        runner = Runner(runs, Store(port), work)
        features = []
        for number in (1, 2):
            # A catalog that hands out hrefs with a signature of its own, long expired.
            href = runner.store.href("signed") + f"?sv=2020&sig={quote(SECRETS['old'], safe='')}"
            item = rasters.document({"b0": rasters.asset(href)}, item_id=f"found-{number}")
            link = f"{runner.store.href('api', f'{number}')}?token={quote(SECRETS['old'], safe='')}"
            features.append(item | {"links": [{"rel": "self", "href": link}], "collection": "c"})
        collection = {"type": "FeatureCollection", "features": features, "links": []}
        (root / "items.json").write_text(json.dumps(collection))
        yield runner


def written(command: Runner) -> None:
    """Nothing that lies in the output so far holds a secret."""
    found, _ = leaks_below(command.out)
    assert found == []


# What can be read: each ends with an Item


def test_a_signature_of_the_planetary_computer(command):
    item = command.item("pc", command.store.href("signed"))
    before = command.store.tokens
    done = command.encode("--item", item, "--signer", "planetary-computer")
    assert done.code == 0, done.err
    assert command.store.tokens > before
    written(command)


def test_hrefs_that_the_item_gives_signed(command):
    old = quote(SECRETS["old"], safe="")
    item = command.item("old", command.store.href("signed") + f"?sv=2020&sig={old}")
    done = command.encode("--item", item, "--signer", "planetary-computer", "--json")
    assert done.code == 0, done.err
    static = quote(SECRETS["static"], safe="")
    item = command.item("presigned", command.store.href("static") + f"?token={static}")
    done = command.encode("--item", item, "--format", "safetensors")
    assert done.code == 0, done.err
    written(command)


def test_headers_and_tokens_of_the_environment(command):
    keyed = command.item("keyed", command.store.href("keyed"))
    done = command.encode("--item", keyed, "--signer", "headers", "--json")
    assert done.code == 0, done.err
    bearer = command.item("bearer", command.store.href("bearer"))
    done = command.encode("--item", bearer, "--signer", "token")
    assert done.code == 0, done.err
    query = command.item("query", command.store.href("static"))
    done = command.encode(
        *("--item", query, "--signer", "token"),
        GEOSAM_STAC_TOKEN=SECRETS["static"],
        GEOSAM_STAC_TOKEN_PARAMETER="token",
    )
    assert done.code == 0, done.err
    written(command)


def at(command: Runner, path: str, *, password: str = "basic") -> str:
    """A URL with a password in it. Not below localhost: only GDAL resolves such names itself."""
    user = f"user:{quote(SECRETS[password], safe='')}"
    return f"http://{user}@localhost:{command.store.port}/{path}"


def test_a_password_in_the_url_of_the_item(command):
    done = command.encode("--item", at(command, "basic/item.json"))
    assert done.code == 0, done.err
    token = quote(SECRETS["old"], safe="")
    items = at(command, f"basic/items.json?token={token}")
    done = command.encode("--items", items, "--signer", "planetary-computer")
    assert done.code == 0, done.err
    assert len(done.lines) == 2
    for line in done.lines:
        run = json.loads(Path(line).with_name("run.json").read_text())
        place = f"http://localhost:{command.store.port}/basic/items.json"
        assert run["inputs"] == {"items": place, "signer": "planetary-computer"}
    written(command)


def test_a_search_with_a_token(command):
    api = f"http://localhost:{command.store.port}/api"
    done = command.encode(
        *("--search", api, "--collection", "c", "--signer", "planetary-computer", "--overwrite")
    )
    assert done.code == 0, done.err
    assert len(done.lines) == 2
    done = command(
        "info", *("--signer", "planetary-computer", "-v"), at(command, "basic/item.json")
    )
    assert done.code == 0, done.err
    written(command)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_plan_and_info(as_json, command):
    flags = ["--json"] if as_json else []
    old = quote(SECRETS["old"], safe="")
    item = command.item("plan", command.store.href("signed") + f"?sv=2020&sig={old}")
    done = command.encode("--item", item, "--signer", "planetary-computer", "--dry-run", *flags)
    assert done.code == 0, done.err
    done = command("info", item, "--signer", "planetary-computer", "-v", *flags)
    assert done.code == 0, done.err
    assert "b0" in done.out
    features = next(command.out.glob("pc_*/pc_*.json"), None)
    if features is not None:
        assert command("info", features, "-v", *flags).code == 0


# What cannot: the error tells all but the secret


def test_a_refused_asset_goes_to_failed_ndjson_and_fails_again(command):
    old = quote(SECRETS["old"], safe="")
    bad = [
        command.item("refused", command.store.href("refused") + f"?sv=2020&sig={old}"),
        command.item("gone", at(command, "basic/gone.tif")),
    ]
    argv = [word for path in bad for word in ("--item", path)]
    done = command.encode(*argv, "--signer", "planetary-computer", "--json")
    assert done.code == 65
    assert "Traceback" in done.err  # -v shows causes, and they are clean too
    failed = command.out / "failed.ndjson"
    assert len(failed.read_text().splitlines()) == 2
    written(command)
    done = command.encode("--items", failed)
    assert done.code == 65
    written(command)


@pytest.mark.parametrize(
    "what", ["nobody", "refused", "no json", "items", "search", "checkpoint", "out", "stdin"]
)
def test_errors_of_what_is_named_by_a_signed_url(what, command):
    old = quote(SECRETS["old"], safe="")
    user = f"user:{quote(SECRETS['basic'], safe='')}@"
    tail = f"?X-Amz-Signature={old}&token={old}"
    item = command.item("plain", command.store.href("open"))
    argv = {
        "nobody": ["--item", f"http://{user}127.0.0.1:9/item.json{tail}"],
        "refused": ["--item", at(command, f"refused/item.json{tail}")],
        "no json": ["--item", at(command, f"open/a.tif{tail}")],
        "items": ["--items", f"http://{user}127.0.0.1:9/items.json{tail}"],
        "search": ["--search", f"http://{user}127.0.0.1:9/api{tail}", "--collection", "c"],
        "checkpoint": [
            *("--item", item, "--checkpoint"),
            f"http://user:{quote(SECRETS['weights'], safe='')}@127.0.0.1:9/w.pt{tail}",
        ],
        "out": ["--item", item, "--out", f"s3://KEY:{quote(SECRETS['out'], safe='')}@bucket/x"],
        "stdin": ["--item", "-"],
    }[what]
    done = command.encode(*argv, "--retry-deadline", 2)  # tried again, but not for two minutes
    assert done.code in (2, 65, 75, 78), done.err
    assert done.out == ""
    assert "error: " in done.err
    assert "a defect" not in done.err


# The search for secrets finds them


def test_all_that_was_written_was_searched_and_a_planted_secret_is_found(command, tmp_path):
    found, kinds = leaks_below(command.out)
    assert found == []
    assert {".json", ".parquet", ".png", ".pt", ".safetensors", ".ndjson"} <= kinds
    for number, (name, secret) in enumerate(SECRETS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        href = f"https://h/a.tif?sig={quote(secret, safe='')}"
        pq.write_table(
            pa.table({"source_path": [href] * 50}), folder / "a.parquet", compression="zstd"
        )
        (folder / "a.json").write_text(json.dumps({"token": secret}))
        note = PngImagePlugin.PngInfo()
        note.add_text("Source", secret * 20, zip=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=note)
        with zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", href * 20)
        user = base64.b64encode(f"user:{secret}".encode()).decode()
        (folder / "a.txt").write_text(f"Authorization: Basic {user}")
        where = {leak.rpartition(" in ")[2].partition(",")[0] for leak in leaks_below(folder)[0]}
        assert where == {"a.parquet", "a.json", "a.png", "a.pt", "a.txt"}, name
        assert all(f"of {name} in" in leak for leak in leaks_below(folder)[0])

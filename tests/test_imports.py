"""Imports run downwards only (DESIGN section 2): read from the sources, nothing is executed."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import geosam_stac

ROOT = Path(geosam_stac.__file__).parent
# In this order: a base module may use those before it. `errors` is the root.
BASE = (
    *("errors", "cards", "types", "hrefs", "value_range", "config", "events", "layout", "retry"),
    "raster_errors",
)
# Lowest first. A name is a module, or a package with all in it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("windows", "stages", "heap"),
    (
        "grid",
        "radiometry",
        "thumbnail",
        "provenance",
        "warp",
        "fence",
        "derive",
        "footprint",
        "storage_errors",
        "crew",
        "credentials",
        "budget",
        "pca",
        "mosaic",
        "claims",
        "bars",
        "turns",
    ),
    ("kept_files", "source_tiles", "band_source", "local_backend", "object_backend"),
    ("odc_loading",),
    ("band_groups",),
    ("sources", "cube", "features", "manifest", "item", "storage", "encoders"),
    ("planning", "journal", "versioned", "checksums", "reading"),
    ("session", "doctor"),
    ("commit",),
    ("job", "parts"),
    ("scene_run",),
    ("pipeline",),
    ("catalog",),
    ("store",),
    ("preview", "verification"),
    ("figures", "report", "repair"),
    ("webmap",),
    ("views",),
    ("scale",),
    ("api", "cli"),
    ("__main__",),
)


def _modules() -> dict[str, Path]:
    """Dotted name below the package -> file; `__init__` of the package itself is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("__init__",):
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


@functools.cache
def _imports(path: Path, *, type_checking: bool = False) -> set[str]:
    """Absolute names that a file imports, in functions too; type checkers' only if asked."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and not type_checking:
            test = ast.unparse(node.test)
            if test in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                for child in node.orelse:
                    visit(child)
                return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from geosam_stac import item` imports a module, not a name.
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def _ours(names: set[str]) -> set[str]:
    """Of imported names, our own modules, as dotted names below the package."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "geosam_stac":
            continue
        for end in range(len(parts), 1, -1):
            if (module := ".".join(parts[1:end])) in MODULES:
                found.add(module)
                break
    return found


def _unit(module: str) -> str:
    return module.partition(".")[0]


def _layer(module: str) -> int:
    unit = _unit(module)
    if unit in BASE:
        return -1
    return next(index for index, layer in enumerate(LAYERS) if unit in layer)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module):
    known = [*BASE, *(name for layer in LAYERS for name in layer)]
    assert _unit(module) in known, "say in LAYERS where it belongs"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    for other in _ours(_imports(MODULES[module], type_checking=True)):
        if _unit(other) == _unit(module):
            continue
        if _layer(module) == -1:
            assert _layer(other) == -1, f"{module} imports {other}"
            order = BASE.index
            assert order(_unit(other)) < order(_unit(module)), f"{module} imports {other}"
        else:
            assert _layer(other) < _layer(module), f"{module} imports {other}"


def test_no_command_imports_in_a_circle():
    """In functions too: who imports first would decide what works."""
    below = {
        module: {name for name in _ours(_imports(path)) if name.startswith("cli.")}
        for module, path in MODULES.items()
        if module.startswith("cli.")
    }
    # Kahn's algorithm: what nobody in the rest needs is taken away, until nothing is left.
    while ends := [module for module, names in below.items() if not names & set(below)]:
        for module in ends:
            del below[module]
    assert below == {}


ONLY = {
    "torch": ("encoders", "features", "store"),
    "torchvision": ("encoders",),
    "sam2": ("encoders",),
    "segment_anything": ("encoders",),
    "fsspec": ("object_backend",),
    "s3fs": ("object_backend",),
    "gcsfs": ("object_backend",),
    "odc.stac": ("odc_loading",),
    "typer": ("cli",),
    "rich": ("cli",),
}


@pytest.mark.parametrize("library", ONLY)
def test_a_library_has_one_home(library):
    users = {
        _unit(module)
        for module, path in MODULES.items()
        if any(name == library or name.startswith(library + ".") for name in _imports(path))
    }
    assert users <= set(ONLY[library])


def test_importing_the_package_is_cheap():
    code = (
        "import sys, geosam_stac, geosam_stac.config, geosam_stac.errors, geosam_stac.types;"
        "geosam_stac.EncodeConfig();"
        "print(*[m for m in ('torch', 'rasterio', 'odc.stac', 'fsspec', 'pystac', 'geopandas')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_api_is_what_all_says():
    assert set(geosam_stac.__all__) <= set(dir(geosam_stac))
    # Each name twice: a submodule of the same name would take its place once it is imported.
    code = (
        "import geosam_stac as gs\n"
        "first = {name: getattr(gs, name) for name in gs.__all__}\n"
        "import geosam_stac.pipeline\n"
        "same = lambda n: callable(first[n]) and getattr(gs, n) is first[n]\n"
        "print(*[n for n in gs.__all__ if not same(n)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="encod3"):
        _ = geosam_stac.encod3  # type: ignore[attr-defined]

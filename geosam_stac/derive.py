"""Derived bands and masks: arithmetic over source bands, and which values of a band are nodata.

Pure numpy and numexpr, no I/O. An expression is parsed here against a short list of what it may
hold before numexpr sees it: no names but the bands', no attributes, no calls but a few functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numexpr
import numpy as np
from numpy.typing import NDArray

from geosam_stac.errors import UsageError

FUNCTIONS = frozenset(
    {"abs", "arctan", "arctan2", "cos", "exp", "log", "log10", "log1p", "sin", "sqrt", "tan"}
    | {"tanh", "where"}
)
_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Call,
    ast.Compare,
    ast.Name,
    ast.Load,
    ast.Constant,
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.Mod, ast.USub, ast.UAdd),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.BitAnd, ast.BitOr),
)
MAX_LENGTH = 1000
MAX_DEPTH = 40
# A band's name as a catalog writes it need not be a Python name: `B8A` is, `asset.1`, `rededge-1`
# are not. Those stand in backquotes: `asset.1`.
_QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, kw_only=True)
class Expression:
    """Arithmetic over bands. `text` as given; `code` with safe names; `bands` safe name -> band."""

    text: str
    code: str
    bands: Mapping[str, str]
    constants: Mapping[str, float]

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        names: Mapping[str, str] | None = None,
        constants: Mapping[str, float] | None = None,
    ) -> Expression:
        """Read an expression such as `(nir - red) / (nir + red)` or `10 * log10(vv)`.

        Parameters
        ----------
        text
            Numbers, band names (in backquotes where they are no plain word), `+ - * / ** %`,
            comparisons, `&`, `|`, and the functions of `FUNCTIONS`.
        names
            Symbol -> band, for formulas with symbols of their own (spectral indices).
        constants
            Symbol -> value.

        Raises
        ------
        UsageError
            It holds anything else, no band, or is too long or too deep.
        """
        quoted: dict[str, str] = {}

        def substitute(match: re.Match[str]) -> str:
            name = f"quoted_{len(quoted)}"
            quoted[name] = match[1]
            return name

        code = _QUOTED.sub(substitute, text).strip()
        tree = _tree(code, text)
        constants = dict(constants or {})
        symbols = _symbols(tree, text) - set(constants)
        if not symbols:
            raise UsageError("--expression names no band", got=repr(text))
        # Names of ours: numexpr knows words (`where`, `pi`) that a band may be called.
        safe = {symbol: f"band_{index}" for index, symbol in enumerate(sorted(symbols))}
        renamed = ast.unparse(_Rename(safe).visit(tree))
        named = {**quoted, **(names or {})}
        expression = cls(
            text=text,
            code=renamed,
            bands={safe[symbol]: named.get(symbol, symbol) for symbol in sorted(symbols)},
            constants={name: float(value) for name, value in constants.items()},
        )
        expression._try(text)
        return expression

    def _try(self, text: str) -> None:
        one = np.ones(1, dtype=np.float32)
        try:
            self.evaluate(dict.fromkeys(self.bands.values(), one))
        except (ArithmeticError, TypeError, ValueError, NotImplementedError) as error:
            raise UsageError(
                f"--expression cannot be evaluated: {error}", got=repr(text)
            ) from error

    @classmethod
    def index(cls, name: str) -> Expression:
        """A spectral index of the Awesome Spectral Indices catalogue, through spyndex.

        Its symbols become common names (`N` is `nir`); constants take the catalogue's defaults.

        Raises
        ------
        UsageError
            No such index (names near ones), or one that needs a value without a default.
        """
        import difflib

        import spyndex

        known = {key.lower(): key for key in spyndex.indices}
        if name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), sorted(known), n=3)
            raise UsageError(
                f"no spectral index {name!r}",
                hint="Near are: " + ", ".join(known[key] for key in near)
                if near
                else "See the Awesome Spectral Indices catalogue (spyndex) for the names",
            )
        entry = spyndex.indices[known[name.lower()]]
        names: dict[str, str] = {}
        constants: dict[str, float] = {}
        for symbol in entry.bands:
            if symbol in spyndex.bands:
                names[symbol] = spyndex.bands[symbol].common_name
            elif getattr(spyndex.constants.get(symbol), "default", None) is not None:
                constants[symbol] = spyndex.constants[symbol].default
            else:
                raise UsageError(
                    f"the index {entry.short_name} needs {symbol}, which has no default value",
                    hint="Write it out with --expression",
                )
        return cls.parse(entry.formula, names=names, constants=constants)

    def evaluate(self, bands: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The result over arrays of one shape.

        Parameters
        ----------
        bands
            Band (a value of `self.bands`) -> array, NaN where it is not valid.

        Returns
        -------
        float32 of that shape; NaN where it is not finite (a division by zero, a logarithm of 0).
        """
        variables: dict[str, Any] = {
            safe: np.asarray(bands[name], dtype=np.float32) for safe, name in self.bands.items()
        }
        variables |= {name: np.float32(value) for name, value in self.constants.items()}
        result = numexpr.evaluate(
            self.code, local_dict=variables, global_dict={}, casting="unsafe", sanitize=True
        )
        values = np.asarray(result, dtype=np.float32)
        return np.where(np.isfinite(values), values, np.float32(np.nan))


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Pixels of a band that count as nodata.

    `values`: it has one of these values. `bits`: one of these bits is set (0 is the lowest).
    """

    band: str
    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mask:
        """Read `scl:3,8,9,10` (values) or `qa_pixel:bits=1,3,4` (bits); UsageError otherwise."""
        band, colon, rest = text.rpartition(":")
        numbers = rest.strip().lower().removeprefix("bits=").split(",")
        if not colon or not band or not all(number.strip().isdigit() for number in numbers):
            raise UsageError(
                "--mask is not understood",
                expected="BAND:VALUES, as scl:3,8,9,10, or BAND:bits=BITS, as qa_pixel:bits=1,3,4",
                got=repr(text),
            )
        found = tuple(int(number) for number in numbers)
        if "bits=" not in rest.lower():
            return cls(band=band.strip(), values=found)
        if max(found) > 31:
            raise UsageError("--mask: a bit is 0 to 31", got=repr(text))
        return cls(band=band.strip(), bits=found)

    def hits(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Where the mask band says "not valid": bool of the array's shape, True = masked out."""
        if self.bits:
            field = np.nan_to_num(values).astype(np.int64)
            hit: NDArray[np.bool_] = (field & sum(1 << bit for bit in self.bits)) != 0
            return hit
        found: NDArray[np.bool_] = np.isin(values, self.values)
        return found


class _Rename(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(id=self.names.get(node.id, node.id), ctx=node.ctx)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        # Of whole numbers Python would work out 9 ** 9 ** 9 to the last digit.
        return ast.Constant(float(node.value))  # type: ignore[arg-type]


def _tree(code: str, text: str) -> ast.Expression:
    def refuse(why: str) -> UsageError:
        return UsageError(
            f"--expression {why}",
            expected="arithmetic over band names, as (nir - red) / (nir + red)",
            got=repr(text if len(text) < 100 else text[:97] + "..."),
        )

    if len(code) > MAX_LENGTH:
        raise refuse(f"is longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(code, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refuse("cannot be read") from error
    if _depth(tree) > MAX_DEPTH:
        raise refuse("is nested too deep")
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise refuse(f"may not hold {type(node).__name__}")
        if isinstance(node, ast.Constant) and type(node.value) not in (int, float):
            raise refuse("may hold numbers only")
        if isinstance(node, ast.Call) and (
            not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords
        ):
            raise refuse(f"may call {', '.join(sorted(FUNCTIONS))} only")
    return tree


def _depth(node: ast.AST) -> int:
    deepest, todo = 0, [(node, 1)]
    while todo:
        current, depth = todo.pop()
        deepest = max(deepest, depth)
        todo.extend((child, depth + 1) for child in ast.iter_child_nodes(current))
    return deepest


def _symbols(tree: ast.Expression, text: str) -> set[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called
    }

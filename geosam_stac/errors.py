"""The error tree: what went wrong, where, whether another try helps, and the exit code.

Imports nothing of the project. Every error that a user can meet is a `GeosamStacError`;
its text is one paragraph: what, where (item, asset, chip), expected and got, next step.
"""

from __future__ import annotations

EXIT_DEFECT = 1
EXIT_PARTIAL = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class GeosamStacError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message
        What happened, in plain words, without a trailing full stop. Never holds a secret.
    item, href, chip
        Where it happened: Item id, unsigned asset or file href, chip id.
    expected, got
        What was expected and what was found instead.
    hint
        The next step for the user.
    """

    exit_code: int = EXIT_DEFECT
    retryable: bool = False
    # A new signature may help, where one can be had.
    may_renew: bool = False
    # What the server asked for before another try, in seconds.
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        *,
        item: str | None = None,
        href: str | None = None,
        chip: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.item = item
        self.href = href
        self.chip = chip
        self.expected = expected
        self.got = got
        self.hint = hint

    def brief(self) -> str:
        """What and where, expected and got: all but the next step."""
        where = ", ".join(
            f"{label} {value}"
            for label, value in (("item", self.item), ("href", self.href), ("chip", self.chip))
            if value is not None
        )
        text = self.message + (f" ({where})" if where else "")
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f"; got {self.got}"
        return text

    def __str__(self) -> str:
        text = self.brief() + "."
        if self.hint is not None:
            text += f" {self.hint}" + ("" if self.hint.endswith((".", "?", "!")) else ".")
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (Dask): keep the keyword fields when pickled.
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))

    def at(
        self, *, item: str | None = None, href: str | None = None, chip: str | None = None
    ) -> GeosamStacError:
        """Fill in where it happened, keeping what is already known; returns `self`."""
        self.item = self.item if self.item is not None else item
        self.href = self.href if self.href is not None else href
        self.chip = self.chip if self.chip is not None else chip
        return self


def _rebuild(
    kind: type[GeosamStacError], message: str, fields: dict[str, object]
) -> GeosamStacError:
    error = kind(message)
    error.__dict__.update(fields)
    return error


class UsageError(GeosamStacError):
    """An option is unknown, missing, out of range, or contradicts another (exit 2)."""

    exit_code = 2


class DataError(GeosamStacError):
    """The data is at fault, for good: malformed Item, band or asset not found (exit 65)."""

    exit_code = 65


class ForbiddenError(DataError):
    """The store refuses to hand the asset out: a new signature may help, another try does not."""

    may_renew = True


class WrongContentError(DataError):
    """Something else came than was asked for: perhaps an error page. A few more tries tell."""


class StorageError(GeosamStacError):
    """The output is full or cannot be written (exit 74)."""

    exit_code = 74


class TemporaryError(GeosamStacError):
    """Another try helps: network, throttling, device lost or out of memory (exit 75)."""

    exit_code = 75
    retryable = True


class ConfigurationError(GeosamStacError):
    """Unknown model, wrong checkpoint, no credentials, a device that is not there (exit 78)."""

    exit_code = 78


class DeviceOutOfMemoryError(TemporaryError):
    """The encoder's device ran out of memory for a batch; a smaller batch may fit."""


class Interrupted(GeosamStacError):
    """The run was asked to stop; `signum` gives the exit code 128 + signum."""

    def __init__(self, message: str = "interrupted", *, signum: int = 2) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum

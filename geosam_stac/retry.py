"""The one way in which anything is tried again: by class of error, with backoff, until a deadline.

A `RetryPolicy` says how long; a `Retries` runs operations by it, says when it tries again, and
counts. The drivers below (GDAL, botocore, urllib3) are told not to try again themselves, or their
tries would multiply with these. Starts no thread; imports neither torch nor rasterio.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import GeosamStacError, TemporaryError, WrongContentError
from geosam_stac.events import Notice, Sink, ignore

# An error page in place of a file may be a gateway's hiccup; three of them are the file.
WRONG_CONTENT_TRIES = 3

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long an operation is tried: exponential backoff with full jitter, until a deadline.

    The n-th wait is uniform in 0 .. min(`max_wait_s`, `base_s` * 2**(n - 1)), but not less than
    the server's Retry-After. No wait goes beyond `deadline_s`, counted from the operation's start;
    there are at most `tries` tries. `timeout_s`: how long a request may get no answer.

    Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    deadline_s: float = 120.0
    timeout_s: float = 60.0
    tries: int = 10
    base_s: float = 0.5
    max_wait_s: float = 30.0

    @classmethod
    def of(cls, config: EncodeConfig) -> RetryPolicy:
        """What the options say."""
        return cls(deadline_s=config.retry_deadline, timeout_s=config.timeout)

    @property
    def http_timeout_s(self) -> tuple[float, float]:
        """To connect, and between two bytes."""
        return min(10.0, self.timeout_s), self.timeout_s

    def may_retry(self, error: GeosamStacError, tries: int) -> bool:
        """Whether another try may help after so many, by the error's class."""
        if isinstance(error, WrongContentError):
            return tries < min(self.tries, WRONG_CONTENT_TRIES)
        return isinstance(error, TemporaryError) and tries < self.tries


class Retries:
    """Runs operations by a policy, and counts how often which kind was tried again.

    Safe to use from many threads at once.

    Parameters
    ----------
    policy
        How long.
    sink
        Hears a warning before each wait.
    clock, uniform
        Seconds that only grow; `random.uniform`. For tests.
    wait
        Waits so many seconds, less when `stop` is set. For tests; default: `stop.wait`.

    Attributes
    ----------
    stop
        While it is set nothing is tried again, and a wait ends at once. A run puts its own here.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        sink: Sink = ignore,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.policy = policy or RetryPolicy()
        self.stop = threading.Event()
        self._sink = sink
        self._clock = clock
        self._uniform = uniform
        self._wait = wait
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(
        self,
        kind: str,
        do: Callable[[int], T],
        *,
        renew: Callable[[], bool] | None = None,
        progress: Callable[[], object] | None = None,
    ) -> T:
        """Do something until it succeeds, fails for good, or its time is over.

        Parameters
        ----------
        kind
            What it is, for the count: read, header, item, search, write, ...
        do
            The operation; gets how often it was tried before: 0, 1, ...
        renew
            Asks for a new signature, once, after the first failure of any kind: of a 403 in
            mid-read GDAL tells only that bytes are missing. True: at once another try, even if
            the error is a ForbiddenError.
        progress
            What the operation has come to. When it has come further, its time and its tries
            start anew: a download of an hour may break off twice.

        Raises
        ------
        GeosamStacError
            The last try's error, with the number of tries in its message.
        """
        started, first, tries = self._clock(), 0, 0
        before = progress() if progress is not None else None
        while True:
            try:
                return do(tries)
            except GeosamStacError as error:
                tries += 1
                now = progress() if progress is not None else None
                if now != before:
                    started, first, before = self._clock(), tries - 1, now
                again = self.policy.may_retry(error, tries - first) and not self.stop.is_set()
                if renew is not None and (again or error.may_renew):
                    asked, renew = renew, None
                    if asked() and not self.stop.is_set():
                        self._count(kind)
                        continue
                left_s = started + self.policy.deadline_s - self._clock()
                if not again or left_s <= 0:
                    _tell_tries(error, tries)
                    raise
                delay_s = min(self._delay_s(error, tries - first), left_s)
                self._count(kind)
                self._sink(
                    Notice(
                        message=f"{error.brief()}; trying again in {delay_s:.1f} s",
                        level="warning",
                    )
                )
                if self._wait is not None:
                    self._wait(delay_s)
                elif self.stop.wait(delay_s):
                    _tell_tries(error, tries)
                    raise

    def counts(self) -> dict[str, int]:
        """How often which kind was tried again, since `take` was last called."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def take(self) -> dict[str, int]:
        """As `counts`; counts from zero again."""
        with self._lock:
            counts, self._counts = dict(sorted(self._counts.items())), Counter()
        return counts

    def _delay_s(self, error: GeosamStacError, tries: int) -> float:
        ceiling_s = min(self.policy.max_wait_s, self.policy.base_s * 2.0 ** (tries - 1))
        return max(self._uniform(0.0, ceiling_s), error.retry_after_s or 0.0)

    def _count(self, kind: str) -> None:
        with self._lock:
            self._counts[kind] += 1


# For what is done inside an operation that is tried again as a whole.
ONCE = RetryPolicy(deadline_s=0.0, tries=1)


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, as a number or a date; None for none."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _tell_tries(error: GeosamStacError, tries: int) -> None:
    if tries > 1:
        error.message += f", in {tries} tries"

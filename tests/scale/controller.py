"""What Kubernetes' Job controller does with the pods of an Indexed Job, on this machine.

Follows the rendered document: `podFailurePolicy` in its order, `backoffLimitPerIndex`,
`maxFailedIndexes`, `parallelism`. A pod is a process; its exit code is the container's. Only a pod
that the cluster takes away (`Doom.DISRUPTED`) has the condition DisruptionTarget.
https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
"""

from __future__ import annotations

import enum
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.forks import Running


class Doom(enum.Enum):
    """How a pod ends before its work does."""

    # Preempted, evicted, drained, its node lost: SIGKILL here, with the condition.
    DISRUPTED = "disrupted"
    # The kernel kills what needs too much memory: SIGKILL, 137, no condition.
    OUT_OF_MEMORY = "out of memory"
    # Somebody ends the process: SIGTERM, 143, no condition.
    TERMINATED = "terminated"
    # It leaves by itself, with 75.
    TEMPORARY = "temporary"


SIGNALS = {
    Doom.DISRUPTED: signal.SIGKILL,
    Doom.OUT_OF_MEMORY: signal.SIGKILL,
    Doom.TERMINATED: signal.SIGTERM,
}


@dataclass
class Pod:
    """A pod of an index. It has come to the point where it is to end when `ready` says so."""

    process: Running
    doom: Doom | None = None
    ready: Callable[[], bool] = lambda: False
    is_signalled: bool = False


@dataclass
class Outcome:
    """How a Job ended: indexes that completed and failed, and what happened to its pods.

    `ends`: (index, exit code, how it was ended) of each pod, in their order.
    """

    complete: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    job_failed: bool = False
    ends: list[tuple[int, int, Doom | None]] = field(default_factory=list)

    def codes(self, index: int) -> list[int]:
        """Exit codes of an index's pods."""
        return [code for number, code, _ in self.ends if number == index]


class Controller:
    """Runs a Job. `start(index, doom)` starts a pod, with its environment set.

    `dooms` of an index are those of its first pods, one after the other.
    """

    def __init__(
        self,
        job: dict[str, Any],
        start: Callable[[int, Doom | None], Pod],
        *,
        dooms: Mapping[int, Sequence[Doom]] | None = None,
    ) -> None:
        self._spec = job["spec"]
        assert self._spec["completionMode"] == "Indexed"
        self._start = start
        self._dooms = {index: list(each) for index, each in (dooms or {}).items()}
        self._pods: dict[int, Pod] = {}
        self._failures: dict[int, int] = {}
        self.outcome = Outcome()

    def run(self, *, limit_s: float) -> Outcome:
        """Until every index is complete or failed, or the Job fails; pods are ended in any case."""
        end = time.monotonic() + limit_s
        try:
            while not self._is_over():
                assert time.monotonic() < end, f"not done in {limit_s} s: {self.outcome}"
                self._fill()
                self._look()
                time.sleep(0.05)
        finally:
            for pod in self._pods.values():
                pod.process.kill()
                pod.process.wait()
        return self.outcome

    def _is_over(self) -> bool:
        ended = self.outcome.complete | self.outcome.failed
        return self.outcome.job_failed or len(ended) == self._spec["completions"]

    def _fill(self) -> None:
        for index in range(self._spec["completions"]):
            if len(self._pods) >= self._spec["parallelism"]:
                return
            ended = self.outcome.complete | self.outcome.failed
            if index in ended or index in self._pods:
                continue
            dooms = self._dooms.get(index)
            self._pods[index] = self._start(index, dooms.pop(0) if dooms else None)

    def _look(self) -> None:
        for index, pod in list(self._pods.items()):
            if pod.doom in SIGNALS and not pod.is_signalled and pod.ready():
                assert pod.process.poll() is None, "it has ended before it was killed"
                pod.process.send_signal(SIGNALS[pod.doom])
                pod.is_signalled = True
            # podReplacementPolicy Failed: the next pod starts when this one has ended.
            code = pod.process.poll()
            if code is None:
                continue
            del self._pods[index]
            # As the container runtime says it: 128 and the signal's number.
            code = code if code >= 0 else 128 - code
            self.outcome.ends.append((index, code, pod.doom))
            if code == 0:
                self.outcome.complete.add(index)
            else:
                self._failed(index, code, disrupted=pod.is_signalled and pod.doom is Doom.DISRUPTED)

    def _failed(self, index: int, code: int, *, disrupted: bool) -> None:
        match self._action(code, disrupted=disrupted):
            case "Ignore":
                return
            case "FailJob":
                self.outcome.job_failed = True
            case "FailIndex":
                self.outcome.failed.add(index)
            case "Count":
                self._failures[index] = self._failures.get(index, 0) + 1
                if self._failures[index] > self._spec["backoffLimitPerIndex"]:
                    self.outcome.failed.add(index)
        if len(self.outcome.failed) > self._spec["maxFailedIndexes"]:
            self.outcome.job_failed = True

    def _action(self, code: int, *, disrupted: bool) -> str:
        for rule in self._spec["podFailurePolicy"]["rules"]:
            for condition in rule.get("onPodConditions", []):
                if condition == {"type": "DisruptionTarget", "status": "True"} and disrupted:
                    return str(rule["action"])
            wanted = rule.get("onExitCodes")
            if wanted is not None and (code in wanted["values"]) == (wanted["operator"] == "In"):
                return str(rule["action"])
        return "Count"

"""What Kubernetes' Job controller does with the pods of an Indexed Job, on this machine.

Follows the rendered document: `podFailurePolicy` in its order, `backoffLimitPerIndex`,
`maxFailedIndexes`, `parallelism`. A pod is a process; its exit code is the container's. A pod that
is preempted gets SIGKILL and the condition DisruptionTarget.
https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """How a Job ended: indexes that completed and failed, and what happened to its pods."""

    complete: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    job_failed: bool = False
    exit_codes: list[tuple[int, int]] = field(default_factory=list)
    preempted: int = 0


class Controller:
    """Runs a Job. `start(index)` starts the process of a pod, with its environment set."""

    def __init__(
        self,
        job: dict[str, Any],
        start: Callable[[int], subprocess.Popen[bytes]],
        *,
        preempt: int = 0,
        seed: int = 0,
        after_s: tuple[float, float] = (2.0, 6.0),
    ) -> None:
        self._spec = job["spec"]
        assert self._spec["completionMode"] == "Indexed"
        self._start = start
        self._random = random.Random(seed)
        self._preempt = preempt
        self._after_s = after_s
        self._pods: dict[int, tuple[subprocess.Popen[bytes], float | None]] = {}
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
            for pod, _ in self._pods.values():
                pod.kill()
                pod.wait()
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
            doom = None
            if self._preempt > 0:
                self._preempt -= 1
                doom = time.monotonic() + self._random.uniform(*self._after_s)
            self._pods[index] = (self._start(index), doom)

    def _look(self) -> None:
        for index, (pod, doom) in list(self._pods.items()):
            disrupted = False
            if doom is not None and time.monotonic() >= doom and pod.poll() is None:
                pod.kill()
                disrupted = True
                self.outcome.preempted += 1
            # podReplacementPolicy Failed: the next pod starts when this one has ended.
            code = pod.wait() if disrupted else pod.poll()
            if code is None:
                continue
            del self._pods[index]
            self.outcome.exit_codes.append((index, code))
            if code == 0:
                self.outcome.complete.add(index)
            else:
                self._failed(index, code if code > 0 else 128 - code, disrupted=disrupted)

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

"""How makespan and wasted work grow with the fleet, when machines are taken away: a simulation.

    python tests/benchmarks/fleet.py

The work grows with the fleet, and is cut into shards of equal chips; each worker does one shard at
a time. A worker is taken away after an exponentially distributed time; its shard starts again on a
new one, after the time that a pod takes to start. What it had written is kept (`chip`: resume at
the chip; what was in the queues is lost), or all of the shard is done again (`shard`: as without a
journal). A shard that goes on reads back the features of the scene that was under way, to see that
they are whole (`Journal.is_there`): those of finished scenes are only listed. Nothing here is
measured: the rates are assumptions, printed with the table.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from dataclasses import dataclass

# Chips between the reader and the store when a worker goes: two batches of pixels, one on the
# device, eight features that wait for a writer (scene_run.py), at a batch of 8.
IN_FLIGHT_CHIPS = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Hours from start to end; worker-hours paid; the fraction of them that made no chip.

    `reread_chips`: whose features were read back.
    """

    makespan_h: float
    paid_h: float
    wasted_fraction: float
    reread_chips: float


def simulate(
    *,
    chips: int,
    workers: int,
    shards_per_worker: int,
    rate: float,
    start_s: float,
    lost_per_hour: float,
    resume: str,
    seed: int,
    scene_chips: int,
    reread_rate: float,
) -> Outcome:
    """One run. `rate` in chips/s of a worker; `lost_per_hour` of one worker.

    A shard's scenes have `scene_chips`; features are read back at `reread_rate` chips/s.
    """
    source = random.Random(seed)
    shards = workers * shards_per_worker
    sizes = [chips // shards + (number < chips % shards) for number in range(shards)]
    # When a shard can be begun, and how many of its chips are left.
    waiting = [(0.0, left, left) for left in sizes if left]
    free = [0.0] * workers
    paid_s = end_s = reread = 0.0
    while waiting:
        now = heapq.heappop(free)
        begins, left, size = waiting[0]
        if begins > now:  # not lost yet: this worker waits, and others may come before it
            heapq.heappush(free, begins)
            continue
        heapq.heappop(waiting)
        kept = (size - left) % scene_chips  # of the scene that was under way
        ready_s = start_s + kept / reread_rate
        needed = ready_s + left / rate
        lost = source.expovariate(lost_per_hour / 3600) if lost_per_hour else float("inf")
        ran = min(needed, lost)
        paid_s += ran
        reread += min(kept, max(0.0, ran - start_s) * reread_rate)
        end_s = max(end_s, now + ran)
        heapq.heappush(free, now + ran)
        if lost < needed:
            done = max(0.0, (lost - ready_s) * rate)
            more = max(0, int(done) - IN_FLIGHT_CHIPS) if resume == "chip" else 0
            heapq.heappush(waiting, (now + ran, left - min(more, left - 1), size))
    useful_s = chips / rate
    return Outcome(
        makespan_h=end_s / 3600,
        paid_h=paid_s / 3600,
        wasted_fraction=1 - useful_s / paid_s,
        reread_chips=reread,
    )


def table(options: argparse.Namespace) -> list[str]:
    """The Markdown table: a row for each size of the fleet and rate of loss."""
    lines = [
        "| workers | lost, 1/h | resume | makespan, h | of the ideal | paid, worker-h | wasted "
        "| read back, chips |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for workers in options.workers:
        for lost in options.lost:
            for resume in ("chip", "shard") if lost else ("chip",):
                runs = [
                    simulate(
                        chips=round(workers * options.hours * 3600 * options.rate),
                        workers=workers,
                        shards_per_worker=options.shards_per_worker,
                        rate=options.rate,
                        start_s=options.start,
                        lost_per_hour=lost,
                        resume=resume,
                        seed=seed,
                        scene_chips=options.scene_chips,
                        reread_rate=options.reread / options.chip_mb,
                    )
                    for seed in range(options.seeds)
                ]
                makespan = statistics.mean(run.makespan_h for run in runs)
                paid = statistics.mean(run.paid_h for run in runs)
                wasted = statistics.mean(run.wasted_fraction for run in runs)
                lines.append(
                    f"| {workers:,} | {lost:g} | {resume} | {makespan:,.2f} | "
                    f"{makespan / options.hours:.2f} x | {paid:,.1f} | {wasted:.1%} | "
                    f"{statistics.mean(run.reread_chips for run in runs):,.0f} |"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=6.0, help="of work for each worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 1_000])
    parser.add_argument("--shards-per-worker", type=int, default=8)
    parser.add_argument("--rate", type=float, default=40.0, help="chips/s of a worker")
    parser.add_argument("--start", type=float, default=90.0, help="s until the first chip")
    parser.add_argument("--lost", type=float, nargs="+", default=[0.0, 0.25, 1.0, 4.0])
    parser.add_argument("--scene-chips", type=int, default=441, help="of a 10980 px scene, at 512")
    parser.add_argument("--chip-mb", type=float, default=8.0, help="MB of a chip's features")
    parser.add_argument("--reread", type=float, default=200.0, help="MB/s at which they are read")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print(
        f"{options.hours:g} h of work for each worker at {options.rate:g} chips/s, "
        f"{options.start:g} s to start, {options.shards_per_worker} shards a worker, "
        f"scenes of {options.scene_chips} chips of {options.chip_mb:g} MB, read back at "
        f"{options.reread:g} MB/s; mean of {options.seeds} runs\n"
    )
    print("\n".join(table(options)))


if __name__ == "__main__":
    main()

"""Plans in words, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geosam_stac.planning import Plan
    from geosam_stac.scale.fleet import Fleet


def total_line(plans: list[Plan]) -> str:
    """One line for several scenes."""
    seconds = [plan.estimated_seconds for plan in plans if plan.estimated_seconds is not None]
    return (
        f"total    {count_text(len(plans), 'scene')}, "
        f"{chips_text(sum(plan.chips for plan in plans))}, "
        f"{sum(plan.bytes_to_read for plan in plans) / 1e6:,.1f} MB to read, "
        f"{sum(plan.bytes_to_write for plan in plans) / 1e6:,.1f} MB to write in "
        f"{sum(plan.objects for plan in plans):,} objects"
        + (f", about {duration_text(sum(seconds))}" if len(seconds) == len(plans) else "")
    )


def plan_lines(plan: Plan) -> list[str]:
    """A scene's plan, a line a fact."""
    seconds = plan.estimated_seconds
    outside = f", less {plan.chips_outside:,} outside --geometry" if plan.chips_outside else ""
    return [
        f"scene    {plan.scene}",
        f"bands    {', '.join(plan.bands)}",
        f"grid     {plan.width:,} x {plan.height:,} px of {plan.resolution:g} {plan.unit} in "
        f"{plan.crs}",
        f"chips    {plan.chips:,} ({count_text(plan.rows, 'row')} x "
        f"{count_text(plan.cols, 'column')}{outside}) of {plan.chip_px} px at stride "
        f"{plan.stride_px}",
        f"read     {plan.bytes_to_read / 1e6:,.1f} MB of pixels, decoded",
        f"write    {plan.bytes_to_write / 1e6:,.1f} MB in {plan.objects:,} objects",
        f"encoder  {plan.model} on {plan.device} in {plan.precision}"
        + (f", about {duration_text(seconds)}" if seconds is not None else ""),
    ]


def chips_text(count: int) -> str:
    """`1 chip`, `1,200 chips`."""
    return count_text(count, "chip")


def count_text(count: int, noun: str) -> str:
    """A number and its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """Seconds as a reader wants them: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:,.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def bytes_text(size: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{size / 1e12:,.2f} TB" if size >= 1e11 else f"{size / 1e9:,.2f} GB"


def fleet_lines(fleet: Fleet) -> list[str]:
    """A fleet's estimate and what it assumes, a line a fact."""
    return [
        f"work     {count_text(fleet.scenes, 'scene')}, {chips_text(fleet.chips)}",
        f"read     {bytes_text(fleet.bytes_to_read)} of pixels, decoded",
        f"write    {bytes_text(fleet.bytes_to_write)} in {fleet.objects:,} objects",
        f"fleet    {count_text(fleet.workers, 'worker')}: {duration_text(fleet.hours * 3600)}, "
        f"{fleet.worker_hours:,.1f} worker-hours"
        + ("" if fleet.cost is None else f", {fleet.cost:,.2f} at {fleet.price:g} an hour"),
        f"needs    {fleet.read_mb_s:,.1f} MB/s of pixels and {fleet.write_mb_s:,.1f} MB/s of "
        "features, each worker, for the device not to wait",
        f"assumes  {fleet.rate:,.3g} chips/s a worker ({fleet.rate_source}); {fleet.start_s:g} s "
        "until a worker's first chip; no chip without a pixel; no worker is lost",
    ]

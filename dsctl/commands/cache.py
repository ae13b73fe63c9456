"""`dsctl cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsctl import launch, out
from dsctl.confirm_trust import confirm_trust
from dsctl.flags import takes
from dsctl_core.gc_pause import paused_gc
from dsctl_core.options import CacheOptions
from dsctl_core.readable import counted, readable_bytes, readable_duration

if TYPE_CHECKING:
    from dsctl_core.stages.encode import CacheResult


@takes(CacheOptions, config=True)
def cache(options: CacheOptions) -> None:
    """Encode a dataset once, to train from it without the encoders."""
    templates = options.templates
    confirm_trust([] if templates.template is None else [templates.template], trusted=templates.trust_template)
    if options.dry_run:
        show_dry_run(options)
        return
    if launch.in_processes(options.processes, cpu=options.device == "cpu"):
        return
    with paused_gc():
        from dsctl_core.commands.cache import make_cache

    show_cache(make_cache(options, progress=out.progress()), options.flat_values("json")["output_path"])


def show_dry_run(options: CacheOptions) -> None:
    """Show what encoding would take, in bytes as JSON and else in what is easily read."""
    with paused_gc():
        from dsctl_core.commands.cache import dry_run

    found = dry_run(options)
    rows = [("entries", f"{found.entries:,}")]
    for name in ("process", "weights", "activations", "peak", "cache"):
        rows.append((name, readable_bytes(getattr(found, name))))
    lines = ["Dry run: nothing was loaded, written or encoded", *out.columns(rows, indent=2)]
    lines += traffic_lines(found.facts()["traffic"])
    out.show(found.facts(), [*lines, "", *found.verdict])


def traffic_lines(found: dict[str, Any]) -> list[str]:
    """Return what the machines of a command read, write and ask of stores, as lines."""
    rows = [
        ("nodes", f"{found['nodes']:,}"),
        ("read by each", readable_bytes(found["read_bytes"])),
        ("reading takes", f"{readable_duration(found['reading_seconds'])} each, without what is computed"),
        ("written by all", readable_bytes(found["written_bytes"])),
        ("requests of all", f"{found['requests']:,}"),
    ]
    return [
        "",
        f"reading and writing, by {counted(found['samples'], 'row that was', 'rows that were')} read",
        *out.columns(rows, indent=2),
    ]


def show_cache(result: CacheResult, folder: str) -> None:
    """Show what a first stage has done."""
    if not result.is_main_process:
        return
    counts, sizes = result.manifest.counts, result.manifest.bytes
    labels = {"encoded": "encoded inputs", "reused": "reused inputs"}
    labels |= {} if counts["skipped"] else {"skipped": ""}
    labels |= {} if result.freed_bytes else {"freed_bytes": ""}
    out.result(
        "Cached",
        labels=labels,
        entries=counts["entries"],
        encoded=result.encoded,
        reused=max(counts["parts"] - result.encoded, 0),
        skipped=counts["skipped"],
        bytes=sizes["shards"],
        bytes_per_entry=round(sizes["tensors"] / counts["entries"]),
        freed_bytes=result.freed_bytes,
        seconds=round(result.seconds, 1),
        output_path=folder,
    )

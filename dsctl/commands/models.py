"""`dsctl models list` and `dsctl models show`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import ModelsListOptions, ModelsShowOptions
from dsctl_core.readable import readable_bytes

HIDDEN = ("components", "controlnets", "download_bytes", "gated", "memory")  # facts that are not shown as they are


@takes(ModelsListOptions)
def list_models(options: ModelsListOptions) -> None:
    """List the families and presets."""
    from dsctl_core.commands.models import list_models

    listed = list_models()
    rows = [(preset["name"], preset["family"], preset["summary"]) for preset in listed["presets"]]
    out.show(listed, out.columns([("PRESET", "FAMILY", "WHAT IT IS"), *rows]))


@takes(ModelsShowOptions)
def show_model(options: ModelsShowOptions) -> None:
    """Show one preset, family or model folder."""
    from dsctl_core.commands.models import show_graph, show_model

    if options.graph:
        stages = show_graph(options)
        out.show(stages, _drawn(stages))
    else:
        shown = show_model(options)
        out.show(shown, _lines(shown))


def _lines(shown: dict[str, Any]) -> list[str]:
    """Return what `shown` says as text, without what is not known."""
    plain = {name: value for name, value in shown.items() if name not in HIDDEN and value is not None}
    if shown["download_bytes"]:
        plain["download"] = readable_bytes(shown["download_bytes"])
    if shown["gated"]:
        plain["gated"] = "Hugging Face asks for consent to the license, and for a token"
    if shown["memory"] is not None:
        encode, train = (readable_bytes(shown["memory"][name]) for name in ("encode", "train"))
        plain["memory"] = f"weights in bfloat16: {encode} to encode, {train} to train a LoRA; --dry-run counts all"
    if shown["own_part"] is not None:
        plain["own_part"] = f"{', '.join(shown['own_part'])}: trained where nothing else is named"
    texts = {
        **plain,
        "presets": ", ".join(shown["presets"]),
        "defaults": ", ".join(f"{name} {value}" for name, value in shown["defaults"].items()),
        "lora_targets": ",".join(shown["lora_targets"]),
    }
    rows = [(name.replace("_", " "), str(value)) for name, value in texts.items()]
    parts = [(part["name"], part["class"], part["path"] or part["files"] or "") for part in shown["components"]]
    lines = [*out.columns(rows), "components", *out.columns(parts, indent=2)]
    networks = [line for kind in shown["controlnets"] for line in _controlnet(kind)]
    return [*lines, *(["control networks", *out.columns(networks, indent=2)] if networks else [])]


def _controlnet(kind: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a kind of control networks: the kind, which is the name of a new one, and its weights."""
    return [(kind["name"], f"new, for training: {kind['summary']}")] + [
        (preset["name"], preset["summary"]) for preset in kind["presets"]
    ]


def _drawn(stages: dict[str, Any]) -> list[str]:
    """Return a drawing of what `show_graph` returned, as lines of text."""
    lines = [f"Training {', '.join(stages['trainable'])} on the task {stages['task']}", ""]
    lines += ["once for each sample"]
    lines += _units(stages["once"]) or ["  nothing"]
    lines += ["", f"kept in the cache: {', '.join(stages['kept']) or 'nothing'}"]
    lines += [f"new at every step: {', '.join(stages['new_at_every_step'])}", "", "at every step"]
    lines += _units(stages["every_step"]) or ["  nothing"]
    model = stages["model_fn"]
    lines += [f"  model_fn and loss  [{', '.join(model['components'])}]", f"    reads   {_listed(model['reads'])}"]
    lines += ["", f"the first stage loads: {_listed(stages['first_components'])}"]
    return [*lines, f"the second stage loads: {_listed(stages['second_components'])}"]


def _units(units: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for unit in units:
        lines.append(f"  {unit['unit']}" + (f"  [{', '.join(unit['components'])}]" if unit["components"] else ""))
        lines.append(f"    reads   {_listed(unit['reads'])}")
        lines.append(f"    writes  {_listed(unit['writes'])}")
    return lines


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"

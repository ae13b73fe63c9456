"""Rules for a key of another tool: the option that it is, what dsctl does anyway, or why it has no counterpart."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from dsctl_core.imports.draft import NO_OPTION, Draft, Setting, Unfit, Wrong, wrong

Rule = Callable[[Draft, Setting], None]
Table = Mapping[str, Rule]
Convert = Callable[[Any], Any]

LATER = "it is in a second table, of which a run has one"
FALSE = (None, False, 0, "", "false", "False", "none", "None", "0", 0.0)
BUCKET_STEP = 16  # pixels that divide the sides of buckets of every family
PRECISIONS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
PRECISIONS |= {"fp32": "no", "float32": "no", "float": "no", "no": "no"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "float": "float32", "fp32": "float32"}
DTYPES |= {name: name for name in ("bfloat16", "float16", "float32")}


def apply(table: Table, settings: Iterable[Setting], draft: Draft, several: Container[str] = ()) -> None:
    """Apply to each setting its rule: that of its name, or of a name with `*` at the end; without one it is lost.

    Of a list of tables the first one counts, except for the names `several`.
    """
    for setting in settings:
        if setting.value is not None:
            draft.given.add(setting.name)
        rule = table.get(setting.name) or _wildcard(table, setting.name)
        if setting.later and setting.name not in several:
            draft.lose([setting], LATER)
        elif rule is None:
            draft.lose([setting], NO_OPTION)
        else:
            try:
                rule(draft, setting)
            except Unfit as unfit:
                draft.lose([setting], str(unfit))
            except Wrong as fault:
                raise wrong(setting, str(fault)) from fault


def _wildcard(table: Table, name: str) -> Rule | None:
    return next((rule for key, rule in table.items() if key.endswith("*") and name.startswith(key[:-1])), None)


def to(option: str, convert: Convert | None = None) -> Rule:
    """Return a rule that sets an option; `convert` may raise `Unfit`."""

    def rule(draft: Draft, setting: Setting) -> None:
        value = setting.value if convert is None else convert(setting.value)
        draft.set(option, value, setting)

    return rule


def always(why: str, *values: Any) -> Rule:
    """Return a rule for what dsctl does in any case: the setting agrees if it has one of `values` (none: any)."""

    def rule(draft: Draft, setting: Setting) -> None:
        if values and _folded(setting.value) not in map(_folded, values):
            raise Unfit(f"always so in dsctl: {why}")
        draft.accept(setting, why)

    return rule


def off(reason: str = NO_OPTION) -> Rule:
    """Return a rule for what dsctl cannot do: a setting that does not ask for it agrees."""

    def rule(draft: Draft, setting: Setting) -> None:
        if setting.value in FALSE or setting.value == []:
            draft.accept(setting, "it asks for nothing")
        else:
            raise Unfit(reason)

    return rule


def lost(reason: str) -> Rule:
    """Return a rule for a setting without counterpart, with the reason."""

    def rule(draft: Draft, setting: Setting) -> None:
        raise Unfit(reason)

    return rule


def aside() -> Rule:
    """Return a rule that leaves a setting to the tool, which combines it with others."""

    def rule(draft: Draft, setting: Setting) -> None:
        if setting.name in draft.aside:
            draft.lose([draft.aside[setting.name]], "it is given again")
        draft.aside[setting.name] = setting

    return rule


def adds(option: str, name: str) -> Rule:
    """Return a rule for a switch that adds a name to an option that takes several."""

    def rule(draft: Draft, setting: Setting) -> None:
        if setting.value in FALSE:
            draft.accept(setting, "it asks for nothing")
        else:
            draft.add(option, name, setting)

    return rule


def switch(option: str) -> Rule:
    """Return a rule for a switch: true, false, or their names."""

    def convert(value: Any) -> bool:
        if isinstance(value, list | dict | float):
            raise Wrong("neither true nor false")
        return value not in FALSE

    return to(option, convert)


def adds_text(option: str) -> Rule:
    """Return a rule that adds the text of a setting to an option that takes several."""
    return lambda draft, setting: draft.add(option, str(setting.value), setting)


def one_of(option: str, words: Mapping[str, str]) -> Rule:
    """Return a rule for a choice whose words are others in dsctl; words that are not listed have no counterpart."""

    def convert(value: Any) -> str:
        if isinstance(value, list | dict | float) or type(value) is int:
            raise Wrong("no word")
        word = str(value).lower()
        if word not in words:
            raise Unfit(f"of its values, dsctl has {', '.join(words)}")
        return words[word]

    return to(option, convert)


def set_buckets(draft: Draft, value: Any, *settings: Setting) -> None:
    """Set bucket resolutions from sides and [width, height] of `value`, to multiples of `BUCKET_STEP`.

    A size stands for the square of its area. A side that is no multiple is noted.
    """
    try:
        exact = [_side(each) for each in (value if isinstance(value, list) else [value])]
        if not exact:
            raise Wrong("no size in pixels")
    except Wrong as fault:
        raise wrong(settings[0], str(fault)) from fault
    sides = sorted({max(round(side / BUCKET_STEP), 1) * BUCKET_STEP for side in exact})
    draft.set("bucket_resolutions", sides, *settings)
    if set(sides) != set(exact):
        draft.note(f"bucket_resolutions = {sides}: the multiples of {BUCKET_STEP} next to {sorted(set(exact))}")


def buckets() -> Rule:
    """Return a rule that sets bucket resolutions."""
    return lambda draft, setting: set_buckets(draft, setting.value, setting)


def _side(value: Any) -> int:
    """Return the side of the square with the area of a size: a side, or [width, height]."""
    try:
        sides = [int(each) for each in (value if isinstance(value, list) else [value, value])]
    except (TypeError, ValueError, OverflowError):
        raise Wrong("no size in pixels") from None
    if len(sides) != 2 or min(sides) < BUCKET_STEP:
        raise Wrong("no size in pixels")
    return math.isqrt(sides[0] * sides[1])


def _folded(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def number(value: Any) -> float:
    """Return a number, also one that YAML leaves as text, such as 1e-4; raise Wrong for anything else but None."""
    if value is None:
        raise Unfit("it is empty")
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise Wrong("no number")
    return found


def number_of(setting: Setting) -> float:
    """Return the number that is the value of a setting; raise a DsctlError that names its key for anything else."""
    try:
        return number(setting.value)
    except (Unfit, Wrong) as fault:
        raise wrong(setting, "no number") from fault


def set_alpha(draft: Draft, *names: str) -> None:
    """Set the alpha of a LoRA from the settings `names`, once its rank is known, which an alpha of 0 stands for."""
    for name in names:
        for setting in draft.pop(name):
            alpha = None if setting.value is None else number_of(setting)
            draft.set("lora_alpha", draft.options.get("lora_rank") if alpha == 0 else alpha, setting)


def gradient_norm(value: Any) -> float:
    """Return the largest length of gradients; 0, no limit in other tools, is one that no gradient reaches."""
    return number(value) or 1e9


# Names of optimizers in the tools, in lower case.
OPTIMIZERS = {
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_optimi", "torch.optim.adamw"), "adamw"),
    **dict.fromkeys(("adamw8bit", "adamw8bitkahan", "adam8bit", "bitsandbytes.optim.adamw8bit"), "adamw8bit"),
    **dict.fromkeys(("prodigy", "prodigyopt.prodigy"), "prodigy"),
    **{name: name for name in ("adafactor", "lion", "sgd")},
}


def optimizer(value: Any) -> str:
    """Return the optimizer that a tool calls `value`; one that is written package.Class stays as it is."""
    if not isinstance(value, str):
        raise Wrong("no name of an optimizer")
    name = value
    known = OPTIMIZERS.get(name.lower())
    if known is None and "." not in name:
        raise Unfit(f"of its values, dsctl has {', '.join(dict.fromkeys(OPTIMIZERS))}, and any package.Class")
    return known or name

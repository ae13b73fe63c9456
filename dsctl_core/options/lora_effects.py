"""Declare which options of LoRAs have no effect in which kind of run; see dsctl_core.options.effects."""

from __future__ import annotations

from dsctl_core.options.effects import Idle

NO_LORA = Idle(
    (
        *("lora_alpha", "lora_format", "lora_dtype", "lora_dropout", "use_dora", "use_rslora", "trigger_words"),
        *("lokr_factor", "lokr_decompose_both", "lokr_full_matrix"),
    ),
    "without a LoRA to train",
    "give --lora-rank too, or leave it out",
    when=lambda options: not options.wants_lora,
)
ONLY_LORA = Idle(
    ("lora_dropout", "use_rslora"),
    "with --network {network}, which has none",
    "leave it out, or give --network lora",
    when=lambda options: options.network in ("lokr", "loha"),
)
ONLY_LOKR = Idle(
    ("lokr_factor", "lokr_decompose_both", "lokr_full_matrix"),
    "without --network lokr",
    "give --network lokr too, or leave it out",
    when=lambda options: options.network != "lokr",
)
FULL_LOKR = Idle(
    ("lora_rank", "lora_alpha", "lokr_decompose_both"),
    "with --lokr-full-matrix, which has no low-rank matrices",
    "leave one of the two out",
    when=lambda options: options.lokr_full_matrix,
)
NO_PRESET_LORA = Idle(
    ("preset_lora_model",),
    "without a LoRA to merge",
    "give --preset-lora-path FILE too",
    when=lambda options: options.preset_lora_path is None,
)
INTO_BASE = Idle(
    ("rank", "lora_format", "lora_dtype"),
    "without --into lora",
    "give --into lora too",
    when=lambda options: options.into == "base",
)
INTO_LORA = Idle(
    ("allow_partial", "tokenizer_path", "trained_part"),
    "with --into lora",
    "leave it out",
    when=lambda options: options.into == "lora",
)
LORA_ALREADY = Idle(("network",), "on {file}, which is a LoRA already", "leave it out")
ONE_COMPONENT = Idle(
    ("component",),
    "with a --base that is one component, the {found}",
    "leave it out, or give the whole model folder as --base",
)

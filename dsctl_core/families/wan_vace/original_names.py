"""List the layer names of the original Wan VACE release, which LoRA files of other tools use."""

from __future__ import annotations

from dataclasses import replace

from dsctl_core.families.wan.original_names import ORIGINAL_NAMES as WAN

# https://github.com/ali-vilab/VACE, vace/models/wan/modules/model.py: the vace blocks have the layers of the others,
# and a projection at both ends.
BLOCKS = {f"vace_{theirs}": f"vace_{ours}" for theirs, ours in WAN.single.items() if theirs.startswith("blocks.")}
ORIGINAL_NAMES = replace(
    WAN,
    converted_as="WanVACETransformer3DModel",
    single={
        **{theirs: ours for theirs, ours in WAN.single.items() if not theirs.startswith("img_emb.")},
        **BLOCKS,
        "vace_blocks.{}.before_proj": "vace_blocks.{}.proj_in",
        "vace_blocks.{}.after_proj": "vace_blocks.{}.proj_out",
    },
)

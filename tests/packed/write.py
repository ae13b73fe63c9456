"""Write tiny text encoders as transformers saves them with bitsandbytes, and what transformers computes with them.

python -m tests.packed.write    # where bitsandbytes is installed: pip install "dsctl[quantize]"

Each folder holds a component, and the file of its name the token ids, and the hidden states of every layer.
bitsandbytes multiplies inputs without a gradient by another kernel on some CPUs, so these have one, and its version for
CPUs is right for rows of 64 numbers and multiples of it. LLM.int8 rounds the inputs of a layer too: what is written is
what transformers computes with the same weights made whole.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

HERE = Path(__file__).parent
VOCABULARY, TOKENS = 48, 12
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
NF4, FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
TWICE = {"bnb_4bit_use_double_quant": True}
# The folder: its class, the sizes, the precision, how it is packed, the bytes of a file.
MODELS: dict[str, tuple[str, dict[str, Any], torch.dtype, dict[str, Any], int]] = {
    "qwen2_5_vl_nf4_twice": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                **SMALL,
                **HEADS,
                **ENDS,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 4]},
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": 64,
                "fullatt_block_indexes": [0],
                "patch_size": 4,
            },
        },
        torch.float32,
        {**NF4, **TWICE},
        10**9,
    ),
    "qwen3_nf4": ("Qwen3ForCausalLM", {**SMALL, **HEADS, **ENDS, "head_dim": 16}, torch.bfloat16, NF4, 20000),
    "t5_fp4": (
        "T5EncoderModel",
        {"vocab_size": VOCABULARY, "d_model": 64, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 4}
        | {"feed_forward_proj": "gated-gelu"},
        torch.float32,
        FP4,
        10**9,
    ),
    "clip_int8": (
        "CLIPTextModel",
        {**SMALL, **ENDS, "num_attention_heads": 4, "max_position_embeddings": 16},
        torch.float32,
        {"load_in_8bit": True},
        10**9,
    ),
}


def main() -> None:
    """Write all of them."""
    for name, (kind, sizes, dtype, packing, size) in MODELS.items():
        cls: Any = getattr(transformers, kind)
        torch.manual_seed(0)
        model = cls(cls.config_class(**sizes)).to(dtype)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        compute = {"bnb_4bit_compute_dtype": dtype} if "load_in_4bit" in packing else {}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            packed = cls.from_pretrained(
                folder, dtype=dtype, quantization_config=BitsAndBytesConfig(**packing, **compute)
            )
        packed.save_pretrained(HERE / name, max_shard_size=size)
        for file in (HERE / name).glob("generation_config.json"):
            file.unlink()
        (HERE / name / "config.json").write_text(json.dumps(json.loads((HERE / name / "config.json").read_text())))
        found: Any = packed if "load_in_4bit" in packing else packed.dequantize(dtype)
        ids = torch.randint(3, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(1))
        found.eval().requires_grad_(False)  # attention has another kernel where a bias has a gradient
        inputs = found.get_input_embeddings()(ids).detach().requires_grad_()
        given = {"input_ids": ids} if kind == "CLIPTextModel" else {"inputs_embeds": inputs}
        states = found(**given, output_hidden_states=True).hidden_states
        save_file({"ids": ids, "states": torch.stack(states).detach()}, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main()

"""Put Z-Image's prompts into the chat that the model was trained with. Imports no torch.

With reference images (Omni) the chat has a place for each of them, and is encoded in pieces between these places, each
piece for itself. All but one of the pieces are the same for all prompts.
"""

from __future__ import annotations

from typing import Any

from dsctl_core.errors import DsctlError

USER, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
OPEN, CLOSE = "<|vision_start|>", "<|vision_end|>"


def chats(tokenizer: Any, prompts: list[str], omni: bool, references: int = 0) -> list[str]:
    """Return the text around each prompt; with `references` it is the piece between the last of them and the answer."""
    if references:
        return [f"{CLOSE}{prompt}{REPLY}{OPEN}" for prompt in prompts]
    if omni:
        return [f"{USER}{prompt}{REPLY}" for prompt in prompts]
    if not tokenizer.chat_template:
        raise DsctlError("the tokenizer has no chat template", hint="use the tokenizer that the model came with")
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    settings = {"add_generation_prompt": True, "enable_thinking": True}
    return tokenizer.apply_chat_template(asked, tokenize=False, **settings)


def fixed_pieces(references: int) -> list[str]:
    """Return the pieces of the chat that do not depend on the prompt: those before its piece, and the one after it."""
    return [USER + OPEN, *[CLOSE + OPEN] * (references - 1), CLOSE + "<|im_end|>"]

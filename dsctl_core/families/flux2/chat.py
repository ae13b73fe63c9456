"""Apply the chat template of FLUX.2's text encoders to prompts. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsctl_core.errors import DsctlError


def chat_texts(tokenizer: Any, prompts: Sequence[str], *, with_system_message: bool) -> list[str]:
    """Return the chat with each prompt as text, as in the training of the text encoder.

    The one of dev was trained `with_system_message`; that of klein takes the prompt alone.
    """
    if not tokenizer.chat_template:
        raise DsctlError("the tokenizer has no chat template", hint="use the tokenizer that the model came with")
    if not with_system_message:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        settings = {"add_generation_prompt": True, "enable_thinking": False}
        return tokenizer.apply_chat_template(chats, tokenize=False, **settings)
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    # The template would interpret this word as the placeholder of an image.
    plain = [prompt.replace("[IMG]", "") for prompt in prompts]
    chats = [[message("system", SYSTEM_MESSAGE), message("user", each)] for each in plain]
    return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=False)

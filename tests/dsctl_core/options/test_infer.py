"""Inference options: LoRA files with scales, one source of prompts, and no option without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import InferOptions, LoraFile

# The options of the issue that asked for `dsctl infer`, by name.
ASKED_FOR = [
    "model",
    "prompt",
    "negative_prompt",
    "lora",
    "height",
    "width",
    "num_inference_steps",
    "cfg_scale",
    "seed",
    "input_image",
    "denoising_strength",
    "num_images",
    "prompts_file",
    "output",
    "grid",
]


def build(**values: Any) -> InferOptions:
    return InferOptions(**{"model": "m", "prompt": "p", **values})


def test_every_option_that_was_asked_for_is_there():
    assert set(ASKED_FOR) - set(InferOptions.flat_fields()) == set()


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors:0", "a.safetensors", 0.0),
        ("a:1e-1", "a", 0.1),
        ("dir/a.safetensors:.5", "dir/a.safetensors", 0.5),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:/loras/a.safetensors", "C:/loras/a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:0.5", "C:\\loras\\a.safetensors", 0.5),
        ("odd:name/a.safetensors", "odd:name/a.safetensors", 1.0),
    ],
)
def test_a_scale_follows_the_last_colon(text: str, path: str, scale: float):
    assert build(lora=[text]).lora == (LoraFile(Path(path), scale),)


def test_a_lora_given_as_what_it_is_stays_so():
    given = LoraFile(Path("a:0.5"), 0.25)
    assert build(lora=[given]).lora == (given,)
    assert build(lora=[given]).flat_values("json")["lora"] == [{"path": "a:0.5", "scale": 0.25}]


def test_a_file_with_a_colon_in_its_name_wins_over_a_scale():
    Path("a:0.5").touch()
    assert build(lora=["a:0.5"]).lora == (LoraFile(Path("a:0.5"), 1.0),)
    assert build(lora=["a:0.5:0.25"]).lora == (LoraFile(Path("a:0.5"), 0.25),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.safetensors:abc", "--lora is 'a.safetensors:abc': the scale 'abc' is not a number"),
        ("a.safetensors:", "the scale '' is not a number"),
        ("a.safetensors:nan", "the scale 'nan' is not between -100 and 100"),
        ("a.safetensors:inf", "the scale 'inf' is not between -100 and 100"),
        ("a.safetensors:1000", "the scale '1000' is not between -100 and 100"),
        (":0.5", "this names no file"),
        ("", "this names no file"),
    ],
)
def test_what_is_wrong_with_a_scale_is_named(text: str, problem: str):
    with pytest.raises(UsageError) as caught:
        build(lora=["fine.safetensors", text])
    assert problem in caught.value.problem
    assert caught.value.hint == "--lora takes FILE or FILE:SCALE"


@pytest.mark.parametrize(
    ("values", "problem", "hint"),
    [
        ({"prompt": None}, "no prompt is given", "--prompts-file FILE"),
        ({"prompt": "  "}, "--prompt is '  ', which says nothing", "what the picture is to show"),
        ({"prompt": ""}, "--prompt is empty", "--prompt: What"),
        ({"prompts_file": "f"}, "--prompt and --prompts-file are both given", "one of them"),
        ({"output": "a.jpg"}, "--output is 'a.jpg', which is no PNG and no clip", ".png, or in .mp4, .gif or .webp"),
        ({"output": "a"}, "--output is 'a', which is no PNG", ".png"),
        ({"width": 64}, "--width 64 is given without --height", "--height too"),
        ({"inpaint_mask": "m"}, "--inpaint-mask has no effect without --input-image", "--input-image FILE too"),
        (
            {"denoising_strength": 0.5},
            "--denoising-strength has no effect without --input-image",
            "--input-image FILE too",
        ),
        ({"input_video": "i"}, "--input-video has no effect at --denoising-strength 1", "such as 0.6"),
        ({"device": "gpu"}, "--device is 'gpu', which is unknown", "cpu, cuda, cuda:N or mps"),
        ({"model": None}, "no model is given", "--model"),
    ],
)
def test_what_contradicts_or_has_no_effect_is_refused(values: dict, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        build(**values)
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_a_mask_makes_the_full_strength_meaningful():
    assert build(input_video="i", inpaint_mask="m").denoising_strength == 1

"""Wan VACE beside diffusers' WanVACEPipeline, in float32 on tiny random models: the same numbers.

Diffusers puts several reference images into reverse order, so it is given them reversed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.families.wan.units import padded_text
from dsctl_core.families.wan_vace.pipeline import model_fn_wan_vace
from dsctl_core.media import Clip
from tests.dsctl_core.families.wan.conftest import SIZE, Pair, clip, load, noisy
from tests.dsctl_core.families.wan.conftest import random as draw
from tests.dsctl_core.families.wan_vace.conftest import FOLLOWED, REFERENCES, mask, masks

PROMPTS = ["a red fox", "a small yellow star in the top left corner on a black background"]
EACH = pytest.mark.parametrize("given", FOLLOWED.values(), ids=FOLLOWED)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def as_official(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of diffusers' pipeline for those of ours."""
    found = {"video": given.get("vace_video"), "mask": given.get("vace_video_mask")}
    return {**found, "reference_images": given.get("vace_reference_image", [])[::-1] or None}


def official_context(pair: Pair, given: dict[str, Any]) -> Tensor:
    """What diffusers makes of what is to be followed, (1, 96, n + t, h, w)."""
    pipe, size = pair.official, (1, SIZE["height"], SIZE["width"], SIZE["num_frames"], torch.float32, "cpu")
    with torch.no_grad():
        video, shown, references = pipe.preprocess_conditions(*as_official(given).values(), *size)
        latents = pipe.prepare_video_latents(video, shown, references, None, "cpu")
        return torch.cat([latents, pipe.prepare_masks(shown, references)], dim=1)


def our_context(pair: Pair, given: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        return pair.ours.units[2].process(pair.ours, **SIZE, **given)


def joined(made: dict[str, Any]) -> Tensor:
    return torch.cat([made["vace_latents"], made["vace_mask"] / 255], dim=1)


@EACH
def test_what_is_followed(pair: Pair, given: dict[str, Any]) -> None:
    made = our_context(pair, given)
    count = len(given.get("vace_reference_image", []))
    assert made["reference_frames"] == count
    close(joined(made), official_context(pair, given))
    assert made["vace_latents"].shape == (1, 32, count + 3, 4, 12)
    assert not made["vace_latents"][:, 16:, :count].any(), "a reference has no reactive part"
    assert not made["vace_mask"][:, :, :count].any()
    assert made["vace_mask"].dtype == torch.uint8


def test_references_keep_the_order_in_which_they_are_given(pair: Pair) -> None:
    three = our_context(pair, {"vace_reference_image": REFERENCES})["vace_latents"]
    for number, picture in enumerate(REFERENCES):
        alone = our_context(pair, {"vace_reference_image": picture})["vace_latents"]
        assert torch.equal(three[:, :, number], alone[:, :, 0])
    assert not torch.equal(three[:, :, 0], three[:, :, 1])


def test_a_picture_as_mask_is_that_of_every_frame(pair: Pair) -> None:
    video, one = clip(5), mask(3)
    still, repeated = (
        our_context(pair, {"vace_video": video, "vace_video_mask": each}) for each in (one, [one] * len(video))
    )
    assert torch.equal(joined(still), joined(repeated))
    assert not torch.equal(joined(still), joined(our_context(pair, {"vace_video": video})))


def test_a_batch_follows_what_each_of_its_samples_follows(pair: Pair) -> None:
    video, other = clip(5), Clip(tuple(clip(6)), 16.0)
    each: list[dict[str, Any]] = [
        {"vace_video": video, "vace_video_mask": masks(6), "vace_reference_image": REFERENCES[:2]},
        {"vace_video": other, "vace_video_mask": None, "vace_reference_image": REFERENCES[1:]},
        {"vace_video": None, "vace_video_mask": None, "vace_reference_image": [REFERENCES[0]] * 2},
    ]
    together = our_context(pair, {name: [one[name] for one in each] for name in each[0]})
    for number, one in enumerate(each):
        alone = our_context(pair, one)
        assert torch.equal(together["vace_latents"][number], alone["vace_latents"][0])
        assert torch.equal(together["vace_mask"][number], alone["vace_mask"][0])
    shared = our_context(pair, {"vace_video": [video, other], "vace_reference_image": REFERENCES[:1]})
    assert shared["vace_latents"].shape == (2, 32, 4, 4, 12)
    assert torch.equal(shared["vace_latents"][0, :, 0], shared["vace_latents"][1, :, 0])


SCALES: list[Any] = [1.0, 0.5, [0.3, -1.2]]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_the_network(pair: Pair, scale: Any) -> None:
    latents, embeds = draw(2, 16, 4, 6, 4), draw(2, 7, 16, seed=1)
    context, levels = draw(2, 32, 4, 6, 4, seed=2), (draw(2, 64, 4, 6, 4, seed=3) > 0) * 255
    follow = {"vace_latents": context, "vace_mask": levels.to(torch.uint8), "vace_scale": scale}
    weights = torch.tensor(scale if isinstance(scale, list) else [scale] * 2)
    for timestep in (torch.tensor(903.5), torch.tensor([998.25, 903.5])):
        with torch.no_grad():
            made = pair.ours.call_model_fn(latents=latents, timestep=timestep, prompt_embeds=embeds, **follow)
            expected = pair.official.transformer(
                latents,
                timestep.expand(2),
                padded_text(embeds, None),
                control_hidden_states=torch.cat([context, levels / 255], dim=1),
                control_hidden_states_scale=weights,
            )[0]
        close(made, expected)
        assert made.abs().max() > 0.1


def test_a_scale_of_zero_is_the_network_without_the_part_to_the_bit(pair: Pair) -> None:
    from diffusers import WanTransformer3DModel

    network = pair.ours.dit
    config = {name: value for name, value in network.config.items() if not name.startswith(("vace_", "_"))}
    plain = WanTransformer3DModel(**config).eval()
    own = {name: each for name, each in network.state_dict().items() if not name.startswith("vace_")}
    # The very weights, not copies: kernels of some processors differ with where in memory they are.
    plain.load_state_dict(own, strict=True, assign=True)
    latents, embeds, timestep = draw(1, 16, 3, 4, 6), draw(1, 512, 16, seed=1), torch.tensor([903.5])
    follow = {"vace_latents": draw(1, 32, 3, 4, 6, seed=2), "vace_mask": torch.ones(1, 64, 3, 4, 6, dtype=torch.uint8)}
    with torch.no_grad():
        expected = plain(latents, timestep, embeds)[0]
        for scale, same in ((0.0, True), ([0.0, 0.0], True), ([0.0, 1.0], False)):
            made = model_fn_wan_vace(pair.ours.dit, latents, timestep, embeds, **follow, vace_scale=scale)
            assert torch.equal(made, expected) == same


def official_clip(pair: Pair, given: dict[str, Any], cfg: list[float], noise: Tensor, **more: Any) -> Tensor:
    """What diffusers makes, as a tensor (T, H, W, 3) in [0, 1]."""
    guidance = {"guidance_scale": cfg[0]} | ({"guidance_scale_2": cfg[1]} if len(cfg) > 1 else {})
    made = pair.official(
        prompt=PROMPTS[0],
        negative_prompt=PROMPTS[1],
        latents=noise.clone(),
        num_inference_steps=2,
        output_type="np",
        **SIZE,
        **guidance,
        **as_official(given),
        **more,
    )
    return torch.from_numpy(made.frames[0])


def our_clip(pair: Pair, given: dict[str, Any], cfg: list[float], noise: Tensor, **more: Any) -> Tensor:
    """What we make, likewise, before it is rounded to pixels."""
    kept: list[Tensor] = []
    decode = pair.ours.decode_pixels

    def keeping(*args: Any) -> Tensor:
        kept.append(decode(*args))
        return kept[-1]

    pair.ours.decode_pixels = keeping
    settings = {"negative_prompt": PROMPTS[1], "cfg_scale": cfg if len(cfg) > 1 else cfg[0], "num_inference_steps": 2}
    try:
        made = pair.ours(PROMPTS[0], **settings, noise=noise, **SIZE, **given, **more)
    finally:
        del pair.ours.decode_pixels
    assert len(made.frames) == SIZE["num_frames"], "reference frames are cut off"
    return kept[0][0].permute(1, 2, 3, 0) / 2 + 0.5


def noise_for(given: dict[str, Any]) -> Tensor:
    return draw(1, 16, 3 + len(given.get("vace_reference_image", [])), 4, 12, seed=3)


@pytest.mark.parametrize("guided", [False, True])
@EACH
def test_a_whole_clip(pair: Pair, given: dict[str, Any], guided: bool) -> None:
    cfg, noise = [5.0 if guided else 1.0], noise_for(given)
    made = our_clip(pair, given, cfg, noise)
    close(made, official_clip(pair, given, cfg, noise))
    assert made.std() > 0.05
    if given:
        other = our_clip(pair, {}, cfg, noise[:, :, :3])
        assert (made - other).abs().max() > 1e-3, "it matters what is followed"


@pytest.mark.parametrize("scale", [0.4, [0.2, 1.5]], ids=str)
def test_a_whole_clip_at_another_scale(pair: Pair, scale: Any) -> None:
    given = FOLLOWED["all"]
    made = our_clip(pair, given, [5.0], noise_for(given), vace_scale=scale)
    close(made, official_clip(pair, given, [5.0], noise_for(given), conditioning_scale=scale))


def test_a_whole_clip_of_two_denoisers(two: Pair) -> None:
    given, calls = FOLLOWED["all"], []
    hooks = [
        two.ours.component(name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name in ("dit", "dit_2")
    ]
    made = our_clip(two, given, [4.0, 3.0], noise_for(given))
    for hook in hooks:
        hook.remove()
    close(made, official_clip(two, given, [4.0, 3.0], noise_for(given)))
    assert calls == ["dit", "dit", "dit_2", "dit_2"]


def test_a_whole_clip_by_the_solver_that_is_published(pair: Pair) -> None:
    given, euler = FOLLOWED["all"], pair.official.scheduler
    pair.ours.solver, pair.official.scheduler = "unipc", pair.unipc
    try:
        made = our_clip(pair, given, [5.0], noise_for(given))
        close(made, official_clip(pair, given, [5.0], noise_for(given)))
    finally:
        pair.ours.solver, pair.official.scheduler = "euler", euler
    assert (made - our_clip(pair, given, [5.0], noise_for(given))).abs().max() > 1e-3


def test_noise_of_a_seed_is_that_of_diffusers_with_the_reference_frames(pair: Pair) -> None:
    for given in (FOLLOWED["nothing"], FOLLOWED["three references"]):
        shared, _, _ = pair.ours.run_units({**SIZE, "seed": [7], "cfg_scale": 1, **given}, {"prompt": "a"}, {})
        frames = SIZE["num_frames"] + 4 * len(given.get("vace_reference_image", []))
        sizes = (1, 16, SIZE["height"], SIZE["width"], frames)
        generator = torch.Generator().manual_seed(7)
        expected = pair.official.prepare_latents(*sizes, torch.float32, torch.device("cpu"), generator)
        assert torch.equal(shared["noise"], expected)


def test_clips_of_a_batch_are_those_made_one_by_one(pair: Pair) -> None:
    each = {"vace_video": [clip(5), clip(6)], "vace_reference_image": [REFERENCES[:1], REFERENCES[1:2]]}
    settings = {**SIZE, "num_inference_steps": 2, "cfg_scale": 3.0, "negative_prompt": "blue"}
    together = pair.ours(PROMPTS, seed=[3, 4], **settings, **each)
    for number, prompt in enumerate(PROMPTS):
        alone = pair.ours(prompt, seed=3 + number, **settings, **{name: each[name][number] for name in each})
        pixels = [torch.stack([pair.ours.preprocess_image(f) for f in c.frames]) for c in (together[number], alone)]
        # The same to about 1e-6 before rounding to pixels.
        assert (pixels[0] - pixels[1]).abs().max() <= 2 / 255 + 1e-6
        assert (pixels[0] != pixels[1]).float().mean() < 0.01


def test_a_clip_to_start_from_and_its_mask_stand_behind_the_references(pair: Pair) -> None:
    """Where the mask of a clip is black it stays, whatever is followed; of the references all is generated."""
    video = clip(8)
    black = Image.new("L", video[0].size)
    made = pair.ours(
        PROMPTS[0], input_video=video, inpaint_mask=black, seed=1, num_inference_steps=2, **SIZE, **FOLLOWED["all"]
    )
    with torch.no_grad():
        latents = pair.ours.encode_pixels(pair.ours.clip_pixels(video), False, None, None)
        expected = pair.ours.decode_latents(latents)[0]
    pixels = [torch.cat([pair.ours.preprocess_image(frame) for frame in each.frames]) for each in (made, expected)]
    assert (pixels[0] - pixels[1]).abs().max() <= 2 / 255 + 1e-6


WRONG = {
    "a mask without a video": ({"vace_video_mask": masks(6)}, "vace_video_mask is given without vace_video"),
    "a video of another size": ({"vace_video": clip(5, width=48, height=32)}, "the vace_video is 48x32"),
    "a video of other frames": ({"vace_video": clip(5, 5)}, "the vace_video has 5 frames, but the clip has 9"),
    "a video of one frame": ({"vace_video": noisy()}, "the vace_video has 1 frame, but the clip has 9"),
    "a mask of another size": (
        {"vace_video": clip(5), "vace_video_mask": mask(0, width=64, height=32)},
        "the vace_video_mask is 64x32",
    ),
    "a mask of other frames": (
        {"vace_video": clip(5), "vace_video_mask": masks(6, 5)},
        "the vace_video_mask has 5 frames, but the clip has 9",
    ),
    "a narrow reference": ({"vace_reference_image": Image.new("RGB", (900, 8))}, "is 900x8 pixels, too small or too"),
    "too small a reference": ({"vace_reference_image": Image.new("RGB", (7, 50))}, "is 7x50 pixels, too small or too"),
    "a path as reference": ({"vace_reference_image": ["a.png"]}, "what is to be followed is 'a.png', not pictures"),
    "too many scales": ({"vace_scale": [1.0, 0.5, 0.2]}, "3 vace scales for 2 vace blocks"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_followed_is_refused(pair: Pair, given: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as error:
        pair.ours(PROMPTS[0], seed=1, **{**SIZE, "num_inference_steps": 1}, **given)
    assert type(error.value).__name__ in ("UsageError", "DsctlError")
    assert "\n" not in str(error.value)


def test_other_numbers_of_samples_and_noise_without_reference_frames_are_refused(pair: Pair) -> None:
    with pytest.raises(UsageError, match="2 samples have a vace_reference_image, and 3 another input"):
        our_context(pair, {"vace_video": [clip(5)] * 3, "vace_reference_image": [REFERENCES[:1]] * 2})
    with pytest.raises(UsageError, match="the noise is "):
        pair.ours(PROMPTS[0], noise=draw(1, 16, 3, 4, 12), **SIZE, **FOLLOWED["one reference"])


def test_a_model_without_vace_takes_none_of_it(tmp_path: Any) -> None:
    from tests.tiny_models import write_tiny_wan

    pipe = load(write_tiny_wan(tmp_path / "wan"))
    assert not {"vace_video", "vace_video_mask", "vace_reference_image"} & set(pipe.family.extra_inputs)
    with pytest.raises(UsageError, match="unknown extra input 'vace_video'"):
        pipe.row_inputs([{"video": clip(1), "prompt": "a", "vace_video": clip(2)}], ["vace_video"])
    assert resolve_model(str(tmp_path / "wan")).family.own_part is None

"""A kv_cache on Z-Image: tokens that every block attends to, in one call and where a block is recomputed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.z_image.attention import CachedAttention
from dsctl_core.families.z_image.pipeline import model_fn_z_image
from tests.dsctl_core.families.z_image.conftest import Pair, close


def inputs(batch: int = 2, *, masked: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    mask = None
    if masked:  # one prompt of 40 tokens and one of 5: 64 and 32 are read
        mask = torch.ones(batch, 40, dtype=torch.bool)
        mask[0, 5:] = False
    return {
        "latents": torch.randn(batch, 16, 4, 6, generator=generator),
        "timestep": torch.tensor(500.0),
        "prompt_embeds": torch.randn(batch, 40, 16, generator=generator),
        "prompt_embeds_mask": mask,
    }


def cache(batch: int = 1, tokens: int = 3, blocks: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, tokens, 2, 16)
    return {
        f"single_{n}": (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for n in range(blocks)
    }


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_that_no_query_meets_leave_the_output_as_it_is(pair: Pair, masked: bool) -> None:
    dit = pair.ours.dit
    with torch.no_grad():
        plain = model_fn_z_image(dit, **inputs(masked=masked))
        absent = {name: (torch.full_like(key, 0.0), value * 0) for name, (key, value) in cache(tokens=0).items()}
        assert torch.equal(model_fn_z_image(dit, **inputs(masked=masked), kv_cache=absent), plain)
        cached = model_fn_z_image(dit, **inputs(masked=masked), kv_cache=cache())
        assert (cached - plain).abs().max() > 1e-3
        assert torch.equal(model_fn_z_image(dit, **inputs(masked=masked)), plain), "nothing is left behind"
    assert all(isinstance(layer.attention.processor, CachedAttention) for layer in dit.layers)


@pytest.mark.parametrize("masked", [False, True])
def test_the_own_keys_and_values_of_a_block_as_its_cache_change_nothing_in_it(base: Pair, masked: bool) -> None:
    """Attention over every token twice is attention over every token once."""
    layer = base.ours.dit.layers[0].attention
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 5, 32, generator=generator)
    angles = torch.rand(2, 5, 8, generator=generator)
    freqs = torch.polar(torch.ones_like(angles), angles)
    processor = CachedAttention("single_0", layer.processor)
    mask = torch.ones(2, 5, dtype=torch.bool) if masked else None
    with torch.no_grad():
        plain = processor(layer, hidden, attention_mask=mask, freqs_cis=freqs)
        key, value = (part(hidden).unflatten(-1, (2, 16)) for part in (layer.to_k, layer.to_v))
        turned = torch.view_as_complex(layer.norm_k(key).unflatten(-1, (-1, 2))) * freqs.unsqueeze(2)
        processor.tokens = (torch.view_as_real(turned).flatten(3), value)
        close(processor(layer, hidden, attention_mask=mask, freqs_cis=freqs), plain, atol=1e-6)


def test_samples_of_a_batch_attend_to_their_own_tokens(base: Pair) -> None:
    both = cache(batch=2)
    given = inputs()
    with torch.no_grad():
        together = model_fn_z_image(base.ours.dit, **given, kv_cache=both)
        for n in range(2):
            own = {name: (key[n : n + 1], value[n : n + 1]) for name, (key, value) in both.items()}
            one = {**given, "latents": given["latents"][n : n + 1], "prompt_embeds": given["prompt_embeds"][n : n + 1]}
            close(together[n : n + 1], model_fn_z_image(base.ours.dit, **one, kv_cache=own))


def test_gradients_reach_the_tokens_and_are_the_same_where_blocks_are_recomputed(pair: Pair) -> None:
    found = []
    for recomputed in (False, True):
        tokens = {name: tuple(t.requires_grad_() for t in pair_) for name, pair_ in cache().items()}
        given = inputs(masked=True)
        output = model_fn_z_image(pair.ours.dit, **given, kv_cache=tokens, use_gradient_checkpointing=recomputed)
        other = model_fn_z_image(pair.ours.dit, **given, use_gradient_checkpointing=recomputed)
        (output.square().mean() + other.mean()).backward()
        found.append([t.grad for both in tokens.values() for t in both])
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0])
    assert len(found[0]) == 4
    assert max(float((one - two).abs().max()) for one, two in zip(*found, strict=True)) < 1e-7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"double_0": cache()["single_0"]}, "the block 'double_0', which this model does not have"),
        ({"single_0": (torch.zeros(1, 3, 4, 16),) * 2}, r"a key of shape \(1, 3, 4, 16\)"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(base: Pair, wrong: Any, message: str) -> None:
    with pytest.raises(DsctlError, match=message):
        model_fn_z_image(base.ours.dit, **inputs(), kv_cache=wrong)

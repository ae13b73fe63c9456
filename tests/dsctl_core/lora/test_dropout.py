"""The masks of LoRA dropout: a share is dropped, and which depends on the sample and the layer alone."""

import torch

from dsctl_core.lora.dropout import SampleDropout


def dropout(*seeds, p=0.5, layer=0):
    module = SampleDropout(p, layer)
    module.seeds = seeds
    return module


def test_the_share_is_dropped_and_the_rest_keeps_the_mean():
    x = torch.ones(2, 1000, 20)
    y = dropout(1, 2, p=0.25)(x)
    assert abs(float((y == 0).float().mean()) - 0.25) < 0.01
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.75]))


def test_a_sample_has_one_mask_in_any_batch_and_any_padding():
    x = torch.ones(1, 7, 5)
    alone = dropout(8)(x)
    among = dropout(3, 8, 4)(torch.ones(3, 12, 5))
    assert torch.equal(among[1, :7], alone[0])
    assert not torch.equal(among[0, :7], alone[0])


def test_layers_and_seeds_draw_differently_and_a_repeat_draws_the_same():
    x = torch.ones(1, 50, 5)
    assert torch.equal(dropout(1)(x), dropout(1)(x))
    assert not torch.equal(dropout(1)(x), dropout(1, layer=1)(x))
    assert not torch.equal(dropout(1)(x), dropout(2)(x))


def test_nothing_is_dropped_without_gradients_or_in_evaluation_mode():
    x = torch.ones(1, 50, 5)
    with torch.no_grad():
        assert torch.equal(dropout(1)(x), x)
    assert torch.equal(dropout(1).eval()(x), x)


def test_where_samples_are_not_the_first_dimension_one_mask_is_drawn():
    x = torch.ones(6, 50)
    assert torch.equal(dropout(1, 2)(x), dropout(1, 2)(x))
    assert not torch.equal(dropout(1, 2)(x), dropout(1, 3)(x))

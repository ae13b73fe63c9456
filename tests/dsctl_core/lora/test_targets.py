"""Names, regular expressions and "auto" against the layers of a model, and what means none of them."""

import pytest
from torch import nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.lora.layers import add_lora, tuner_layers
from dsctl_core.lora.targets import find_targets


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.1)])


class Net(nn.Module):
    """Two blocks, and a layer outside that has the name of one inside."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.to_q = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)


INSIDE = [f"blocks.{n}.{layer}" for n in (0, 1) for layer in ("to_q", "to_k", "out.0")]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["to_k"], ["blocks.0.to_k", "blocks.1.to_k"]),
        (["0.to_k", "head"], ["blocks.0.to_k", "head"]),
        (["auto"], INSIDE),
        ([r"blocks\.\d+\.to_[qk]"], [name for name in INSIDE if "to_" in name]),
        ([r"blocks\.1\..*"], [name for name in INSIDE if ".1." in name]),
        (["^to_q$"], ["to_q"]),
        (["to_q"], ["blocks.0.to_q", "blocks.1.to_q", "to_q"]),
        # Modules, for every linear layer inside: only where no layer matches.
        (["blocks"], INSIDE),
        (["blocks.1"], [name for name in INSIDE if ".1." in name]),
        (["out"], ["blocks.0.out.0", "blocks.1.out.0"]),
        (["1.out", "head"], ["blocks.1.out.0", "head"]),
        (["blocks.*.out"], ["blocks.0.out.0", "blocks.1.out.0"]),
        (["blocks.*"], INSIDE),  # a regular expression, and the same as the modules
    ],
)
def test_a_target_means_these_layers_and_no_others(targets, expected):
    model = Net()
    assert find_targets(model, targets) == expected
    add_lora(model, targets, rank=2)
    assert list(tuner_layers(model)) == expected


@pytest.mark.parametrize("wrong", ["to_qq", r".*\.to_v", "block", "norm", "blocks.2", "blocks.*.attn1", "head.x"])
def test_one_target_among_several_that_means_nothing_is_an_error_naming_it(wrong):
    with pytest.raises(DsctlError, match="matches no linear layer of the Net") as caught:
        find_targets(Net(), ["to_k", wrong, "to_q"])
    assert repr(wrong) in caught.value.problem and caught.value.hint


def test_the_near_miss_is_named():
    with pytest.raises(DsctlError) as caught:
        find_targets(Net(), ["to_qq"])
    assert caught.value.hint == "did you mean 'to_q'?"


def test_a_broken_regular_expression_is_a_usage_error():
    with pytest.raises(UsageError, match="no regular expression"):
        find_targets(Net(), ["to_[qk"])


def test_auto_on_a_model_without_blocks_is_an_error():
    with pytest.raises(DsctlError, match="no linear layer in repeated blocks"):
        find_targets(nn.Sequential(nn.Linear(2, 2)), ["auto"])

"""Count the kernels and bytes of a step with compiled blocks: inductor plans them on fake tensors, and writes no code.

    python -m tests.fake_gpu --compiled '{"model": "qwen-image", "lora_rank": 32, "height": 1024, "width": 1024}'

What inductor fuses is decided before Triton is asked for anything, so neither Triton nor a GPU is needed. One block is
taken from the real loop with its arguments; the rest of the step stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import scheduler
from torch._inductor.compile_fx import view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.utils._pytree import tree_flatten, tree_unflatten

from dsctl_core.memory.blocks import repeated_blocks
from tests.fake_gpu.counting import Attention, FakeCuda
from tests.fake_gpu.training import Found, train

DEPTH = 2
# What inductor plans beside kernels: parts of a result, and views.
NOTHING = ("MultiOutput", "view_as_complex", "view_as_real", "unsqueeze", "_conj", "NopKernel")
MATRIX = ("mm", "attention")


@dataclass(frozen=True)
class Work:
    """The kernels of something, and the bytes that they move beside matrix products."""

    kernels: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.kernels + other.kernels, self.bytes + other.bytes)

    def __mul__(self, count: float) -> Work:
        return Work(self.kernels * count, self.bytes * count)


def compiled_step(**asked: Any) -> dict[str, Any]:
    """Return what a step does with all blocks of the first kind, as it is and with these blocks compiled."""
    caught: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    blocks: list[int] = []

    def watch(module: Any) -> None:
        block = list(repeated_blocks(module.pipe.denoiser_modules()[0]).values())[1]
        block.register_forward_pre_hook(lambda *given: caught.append(given), with_kwargs=True)

    short = train(DEPTH, encode=False, built=watch, lengths=blocks, **asked)
    longer = train(DEPTH + 1, encode=False, **asked)
    count, step = blocks[0], _work(short)
    block = _work(longer) + step * -1
    planned = _planned(*caught[0])
    whole = step + block * (count - DEPTH)
    return {
        "blocks": count,
        "eager": vars(whole),
        "eager_block": vars(block),
        "compiled_block": vars(planned),
        "compiled": vars(whole + (planned + block * -1) * count),
    }


def _work(found: Found) -> Work:
    return Work(found.step["kernels"], found.step["bytes"])


def _planned(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Work:
    """Return what inductor plans for a forward and a backward pass of `block`."""
    plans: list[Work] = []
    names, parameters = zip(*block.named_parameters(), strict=True)
    leaves, spec = tree_flatten((args, kwargs))
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(weights: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        given = list(leaves)
        for number, tensor in zip(places, tensors, strict=True):
            given[number] = tensor
        own, named = tree_unflatten(given, spec)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            made = torch.func.functional_call(block, dict(zip(names, weights, strict=True)), own, named)
        return list(made) if isinstance(made, tuple | list) else [made]

    def plan(graph: Any, example: list[Any]) -> Callable[..., Any]:
        plans.append(_plan(graph, example))
        return make_boxed_func(graph.forward)

    how: dict[str, Any] = {"partition_fn": min_cut_rematerialization_partition, "decompositions": select_decomp_table()}
    with FakeCuda(allow_non_fake_inputs=True), _known_to_inductor(), Attention():
        weights = [_anew(each, each.requires_grad) for each in parameters]
        # What comes from the block before has a gradient; tables and the like have none.
        tensors = [_anew(leaves[number], leaves[number].requires_grad) for number in places]
        made = aot_function(call, fw_compiler=plan, bw_compiler=plan, **how)(weights, tensors)
        torch.autograd.backward(made, [torch.ones_like(each) for each in made])
    assert len(plans) == 2, "a plan forward, and one backward"
    return plans[0] + plans[1]


def _anew(like: Tensor, gradient: bool) -> Tensor:
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cuda")
    return made.requires_grad_(gradient)


def _plan(graph: Any, example: list[Any]) -> Work:
    """Return the kernels that inductor makes of a graph, and the bytes that they read and write."""
    view_to_reshape(graph)
    lowered, work = GraphLowering(graph, example_inputs=example), Work(0, 0)
    mode = torch._guards.detect_fake_mode(example)
    with V.set_debug_handler(DebugContext()), V.set_graph_handler(lowered), V.set_fake_mode(mode):
        lowered.run(*example)
        lowered._update_scheduler()
        for node in lowered.scheduler.nodes:
            kernel = getattr(node, "node", None)
            named = (getattr(kernel, "python_kernel_name", None), type(kernel).__name__, type(node).__name__)
            name = " ".join(filter(None, named))
            if not any(each in name for each in NOTHING):
                extern = type(node).__name__.startswith("Extern")
                product = extern and any(each in str(named[0]) for each in MATRIX)
                work += Work(1, 0 if product else node.get_read_write_buffers_sizes())
    return work


@contextmanager
def _known_to_inductor() -> Iterator[None]:
    """Answer what inductor asks about the device: it is an H100."""
    about = SimpleNamespace(
        name="a GPU that is not there",
        total_memory=80 * 2**30,
        major=9,
        minor=0,
        multi_processor_count=132,
        max_threads_per_multi_processor=2048,
        warp_size=32,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448,
        L2_cache_size=50 * 2**20,
        gcnArchName="",  # asked for where torch is built without CUDA
    )
    answers: dict[str, Any] = {
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "get_device_properties": lambda *_: about,
        "_get_device_properties": lambda *_: about,
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer, create=True))
        stack.enter_context(patch.object(scheduler, "has_triton", lambda *_: True, create=True))
        yield

"""`pipe.vae.encode(images, tiled=...)` is the pipeline's way into its latent space and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsctl_core.families import families, pipeline_class
from dsctl_core.files.json import read_json
from tests.tiny_models import write_tiny_model

FAMILIES = ["qwen-image", "flux2"]


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from dsctl_core import ModelConfig

    folder = write_tiny_model(request.param, tmp_path_factory.mktemp("model") / request.param)
    assert read_json(folder / "model_index.json")
    configs = [ModelConfig(folder)]
    cls = pipeline_class(families()[request.param])
    return cls.from_pretrained(model_configs=configs, device="cpu", torch_dtype=torch.float32, only=("vae",))


@pytest.mark.parametrize("tiles", [(False, None, None), (None, None, None), (True, 64, 48)])
def test_with_a_tile_argument_the_vae_encodes_as_the_pipeline(pipe: Any, tiles: tuple[Any, Any, Any]) -> None:
    images = torch.rand(2, 3, 128, 96) * 2 - 1
    tiled, size, stride = tiles
    found = pipe.vae.encode(images, tiled=tiled, tile_size=size, tile_stride=stride)
    wanted = pipe.encode_pixels(images, bool(tiled), size, stride)
    assert found.shape == (2, *pipe.latent_space.latent_shape(128, 96))
    assert torch.equal(found, wanted)
    back = pipe.vae.decode(found, tiled=tiled, tile_size=size, tile_stride=stride)
    assert torch.equal(back, pipe.decode_pixels(wanted, bool(tiled), size, stride))


def test_without_one_it_is_the_method_of_its_class(pipe: Any) -> None:
    images = torch.rand(1, 3, 32, 32)
    images = images.unsqueeze(2) if pipe.family.name == "qwen-image" else images
    assert hasattr(pipe.vae.encode(images), "latent_dist")
    assert isinstance(pipe.vae.encode(images, return_dict=False), tuple)


def test_an_argument_of_the_other_kind_is_refused(pipe: Any) -> None:
    with pytest.raises(TypeError, match="return_dict"):
        pipe.vae.encode(torch.rand(1, 3, 32, 32), tiled=False, return_dict=False)
    with pytest.raises(TypeError):
        pipe.vae.encode(torch.rand(1, 3, 32, 32), tile=False)

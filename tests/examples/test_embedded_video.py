"""What the embedded video model's training does faster is what the official classes do."""

import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_models import randomize


@pytest.fixture(autouse=True)
def scripts(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Make the scripts of examples/embedded_model importable, and forget them after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(repository / "examples" / "embedded_model"))
    yield
    for name in set(sys.modules) - before:
        if "examples/embedded_model" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_an_autoencoder_run_whole_does_what_it_does_in_portions():
    from diffusers import AutoencoderKLWan

    import video_vae

    config = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    official = randomize(AutoencoderKLWan(**config), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in official.named_parameters():
            if name.startswith(video_vae.FLAT_LAYERS) and weight.ndim == 5:
                weight[:, :, :-1] = 0  # training holds the last temporal tap of these layers
    whole = AutoencoderKLWan(**config)
    whole.load_state_dict(official.state_dict())
    video_vae.run_whole(whole)
    clip = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = official.encode(clip).latent_dist.parameters
        torch.testing.assert_close(whole.quant_conv(whole.encoder(clip)), expected, rtol=1e-4, atol=1e-4)
        latents = expected[:, :4]
        decoded = whole.decoder(whole.post_quant_conv(latents)).clamp(-1, 1)
        torch.testing.assert_close(decoded, official.decode(latents).sample, rtol=1e-4, atol=1e-4)
    saved = video_vae.official_weights(dict(whole.named_parameters()), official)
    assert all(torch.equal(saved[name], weight) for name, weight in official.state_dict().items())


def test_one_padding_token_counts_as_all_of_them(tmp_path: Path):
    import video_train
    from dsctl_core.families.wan.pipeline import model_fn_wan
    from tests.tiny_models import write_tiny_model

    module = video_train.JointClipTraining(write_tiny_model("wan", tmp_path / "wan"))
    latents, timestep = torch.randn(2, 16, 2, 4, 4), torch.tensor([200.0, 800.0])
    with torch.no_grad():
        text = module.encode(["a fox moves up", "a fox moves up"])
        short = module.velocity(module.pipe.dit, latents, timestep, text)
        for block in module.pipe.dit.blocks:
            block.attn2.set_processor(type(block.attn1.processor)())
        torch.testing.assert_close(short, model_fn_wan(module.pipe.dit, latents, timestep, text))


def test_an_encoder_of_single_frames_keeps_one_of_four(tmp_path: Path):
    from diffusers import AutoencoderKLQwenImage

    import video_vae

    config = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    randomize(AutoencoderKLQwenImage(**config), torch.Generator().manual_seed(0)).save_pretrained(tmp_path)
    vae = video_vae.start_from_pictures(tmp_path)
    clips = torch.randint(0, 256, (2, 9, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        x = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        expected = vae.encode(x).latent_dist.mode()
    torch.testing.assert_close(video_vae.encode_frames(vae, clips), expected, rtol=1e-4, atol=1e-4)


def test_a_training_ends_with_its_clock_and_leaves_the_average_of_its_weights(tmp_path: Path):
    from safetensors.torch import load_file
    from torch.utils.data import Dataset

    import joint_training
    import video_train
    from tests.tiny_models import write_tiny_model

    folder = write_tiny_model("wan", tmp_path / "wan")

    class Same(Dataset):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> dict[str, object]:
            bins = torch.tensor([0.2, 0.7])
            return {"prompt": ["a fox"] * 2, "input_latents": torch.ones(2, 16, 2, 4, 4), "timestep_bins": bins}

    def build():
        return video_train.JointClipTraining(folder), Same()

    made = joint_training.run(build, video_train.RECIPE, folder, tmp_path / "out", minutes=0.01, save_minutes=1)
    assert made == tmp_path / "out" / "model"
    for name in joint_training.FOLDERS.values():
        (before,), (after,) = (list((where / name).glob("*.safetensors")) for where in (folder, made))
        old, new = load_file(before), load_file(after)
        assert old.keys() == new.keys()
        assert any(not torch.equal(old[key].bfloat16(), new[key]) for key in old)

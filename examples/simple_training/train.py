"""Train a LoRA from Python: the few lines that `dsctl train` stands for, to start your own training code from.

    accelerate launch examples/simple_training/train.py

As it stands it trains the embedded model on the example pictures, on any machine. For the real Qwen-Image, name its
files instead, as in the comment below, and take larger pictures.
"""

import sys

import accelerate
import torch

from dsctl_core import (
    DiffusionTrainingModule,
    FlowMatchSFTLoss,
    ModelConfig,
    ModelLogger,
    QwenImagePipeline,
    UnifiedDataset,
    assets_path,
    launch_training_task,
)

MODEL = assets_path("tiny")
DATASET = assets_path("datasets/robot")
OUTPUT = sys.argv[1] if len(sys.argv) > 1 else "build/simple_training"


class QwenImageTrainingModule(DiffusionTrainingModule):
    """A Qwen-Image pipeline with a LoRA on its denoiser."""

    def __init__(self, device):
        super().__init__()
        self.pipe = QwenImagePipeline.from_pretrained(
            torch_dtype=torch.float32,
            device=device,
            # For the real model, in bfloat16:
            #   ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern="transformer/*.safetensors"), and so on
            model_configs=[
                ModelConfig(MODEL / "transformer" / "diffusion_pytorch_model.safetensors"),
                ModelConfig(MODEL / "text_encoder" / "model.safetensors"),
                ModelConfig(MODEL / "vae" / "diffusion_pytorch_model.safetensors"),
            ],
            tokenizer_config=ModelConfig(MODEL / "tokenizer"),
        )
        self.switch_pipe_to_training_mode(
            self.pipe,
            lora_base_model="dit",
            lora_target_modules="to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj",
            lora_rank=32,
        )

    def forward(self, data):
        """Return the loss of one row of the dataset."""
        # The same inputs as for making a picture: training runs the pipeline's own units.
        inputs_posi = {"prompt": data["prompt"]}
        inputs_nega = {"negative_prompt": ""}
        inputs_shared = {
            "input_image": data["image"],
            "height": data["image"].size[1],
            "width": data["image"].size[0],
            # Training takes one pass, without guidance.
            "cfg_scale": 1,
            "rand_device": self.pipe.device,
            "use_gradient_checkpointing": True,
            "use_gradient_checkpointing_offload": False,
        }
        for unit in self.pipe.units:
            inputs_shared, inputs_posi, inputs_nega = self.pipe.unit_runner(
                unit, self.pipe, inputs_shared, inputs_posi, inputs_nega
            )
        return FlowMatchSFTLoss(self.pipe, **inputs_shared, **inputs_posi)


if __name__ == "__main__":
    accelerator = accelerate.Accelerator(
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    dataset = UnifiedDataset(
        base_path=DATASET,
        metadata_path=DATASET / "metadata.csv",
        repeat=1,
        data_file_keys="image",
        main_data_operator=UnifiedDataset.default_image_operator(
            base_path=DATASET,
            height=96,
            width=96,
            height_division_factor=16,
            width_division_factor=16,
        ),
    )
    model = QwenImageTrainingModule(accelerator.device)
    model_logger = ModelLogger(output_path=OUTPUT, remove_prefix_in_ckpt="pipe.dit.")
    launch_training_task(accelerator, dataset, model, model_logger, learning_rate=1e-4, num_epochs=1)

"""Published few-step releases of Wan2.2, as option values: a model entry of a config names one by `preset`.

docs/models.md has the table of the releases; `source` of each says where its figures are published.
"""

from stages.runtime.options import Preset

LIGHTNING = "hub://lightx2v/Wan2.2-Lightning/Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/{}_noise_model.safetensors"
T2V_LIGHTNING = "hub://lightx2v/Wan2.2-Lightning/Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/{}_noise_model.safetensors"
DISTILLED = "hub://lightx2v/Wan2.2-Distill-Loras/wan2.2_i2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1022.safetensors"
T2V_DISTILLED = "hub://lightx2v/Wan2.2-Distill-Loras/wan2.2_t2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1217.safetensors"
FOUR_STEPS = {  # sigmas 1, 0.9375, 0.8333, 0.625, the first two of the high-noise expert; trained without guidance
    "sampler": "euler",
    "num_inference_steps": 4,
    "shift": 5.0,
    "sigma_grid": "wan",
    "guidance_scale": 1.0,
    "guidance_scale_2": None,
    "guider": "cfg",
    "skip_layers": [],
    "boundary_ratio": 0.9,
}
T2V_FOUR_STEPS = {**FOUR_STEPS, "boundary_ratio": 0.875}  # the first two of the high-noise expert here too
FULL_STRENGTH = {"lora_scale": [1.0], "lora_scale_2": [1.0]}


def of_both_experts(address: str) -> dict[str, list[str]]:
    """The LoRA files of the two experts, whose addresses differ by high and low."""
    return {"lora": [address.format("high")], "lora_2": [address.format("low")]}


PRESETS = {
    "lightx2v-i2v-a14b-4": Preset(
        variant="14b",
        options=FOUR_STEPS,
        files=of_both_experts(DISTILLED),
        advised=FULL_STRENGTH,
        source="github.com/ModelTC/LightX2V: configs/distill/wan22, schedulers/wan/step_distill/scheduler.py; "
        "huggingface.co/lightx2v/Wan2.2-Distill-Loras",
    ),
    "lightning-i2v-a14b-4": Preset(
        variant="14b",
        options=FOUR_STEPS,
        files=of_both_experts(LIGHTNING),
        advised=FULL_STRENGTH,
        source="github.com/ModelTC/Wan2.2-Lightning: generate.py, wan/configs/wan_i2v_A14B.py",
    ),
    "distilled-i2v-a14b-4": Preset(
        variant="14b",
        options=FOUR_STEPS,
        source="github.com/ModelTC/LightX2V: configs/distill/wan22; huggingface.co/lightx2v/Wan2.2-Distill-Models",
    ),
    "lightx2v-t2v-a14b-4": Preset(
        variant="14b-t2v",
        options=T2V_FOUR_STEPS,
        files=of_both_experts(T2V_DISTILLED),
        advised=FULL_STRENGTH,
        source="github.com/ModelTC/LightX2V: configs/distill/wan22; huggingface.co/lightx2v/Wan2.2-Distill-Loras",
    ),
    "lightning-t2v-a14b-4": Preset(
        variant="14b-t2v",
        options=T2V_FOUR_STEPS,
        files=of_both_experts(T2V_LIGHTNING),
        advised=FULL_STRENGTH,
        source="github.com/ModelTC/Wan2.2-Lightning: generate.py, wan/configs/wan_t2v_A14B.py",
    ),
    "fastwan-ti2v-5b-3": Preset(
        variant="5b",
        options={
            "sampler": "lcm",
            "timesteps": [1000, 757, 522],
            "num_inference_steps": 3,
            "shift": 1.0,
            "guidance_scale": 1.0,
            "guider": "cfg",
            "skip_layers": [],
        },
        source="github.com/hao-ai-lab/FastVideo: configs/pipelines/wan.py, pipelines/stages/denoising.py; "
        "huggingface.co/FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",
    ),
}

"""docs/migration.md has an answer for every statement of the five older programs' documents."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()

# By section of the page: the options, files, classes and behaviours that the program's document names.
STATEMENTS = {
    "generate.py --task": [
        *(
            "--task v2v-14B",
            "--task v2v-5B",
            "--video",
            "--ckpt_dir",
            "--size 704*1280",
            "--prompt",
            "--vlm_device",
            "--frame_num",
        ),
        *(
            "--sample_steps",
            "--sample_guide_scale",
            "--sample_shift",
            "--base_seed",
            "--offload_model",
            "--convert_model_dtype",
        ),
        *("InternVL3_5-8B", "num_segments", "Describe this video in detail.", "WanV2V", "WanV2V5B", "timm", "last frame"),
    ],
    "generate_continuous.py": [
        *("--video", "--num_videos", "--output_dir", "--ckpt_dir", "--frame_num", "--sample_steps", "--sample_guide_scale"),
        *("--base_seed", "--custom_prompt", "--vlm_device", "video_01_", "prompts_log.txt", "12"),
    ],
    "train_text2video.py": [
        *(
            "--data_dir",
            "videos/",
            "captions/",
            "--batch_size",
            "--learning_rate",
            "--num_epochs",
            "--num_frames",
            "--frame_size",
        ),
        *(
            "--model_channels",
            "--max_samples",
            "--no_wandb",
            "num_timesteps",
            "normalize",
            "augment",
            "gradient accumulation",
        ),
        *(
            "mixed precision",
            "TextVideoDataset",
            "ConditionalUNet3D",
            "video_dataset.py",
            "best_model.pth",
            "2D diffusion model",
        ),
        *("CLIP", "damaged videos", "cosine", "requirements_text2video.txt", "77 tokens"),
    ],
    "generate_text2video.py": [
        *(
            "--checkpoint",
            "--prompts",
            "--output_dir",
            "--save_gif",
            "--save_frames",
            "--visualize",
            "num_inference_steps",
            "fps",
        ),
        "interactive mode",
    ],
    "video_conditional_inference.py": [
        *(
            "data_path",
            "output_folder",
            "num_conditioning_frames",
            "num_output_frames",
            "num_frame_per_block",
            "context_noise",
        ),
        *(
            "video_path",
            "prompt1",
            "prompt2",
            "generator_ckpt",
            "lora_ckpt",
            "use_ema",
            "num_samples",
            "torchrun",
            "WORLD_SIZE",
        ),
        *("40 GB", "rank0-0-0_lora.mp4", "inference.py", "interactive_inference.py", "480x832", "multiple of"),
    ],
    "run_pipeline.py": [
        *("256", "512", "1024", "--image_path", "--prompt_text", "--prompt_dir", "--output_dir", "--seed", "--device"),
        *("--num_inference_steps", "--guidance_scale", "--eta", "--video_length", "frame stride", "--batch_size", "--fps"),
        *("dynamicrafter_pipeline_{resolution}_seed{seed}", "{image_name}.mp4", "DynamiCrafterImg2VideoPipeline", "NaN"),
        *("checkpoints/", "run_pipeline.sh", "pipeline_examples.py", ".bmp"),
    ],
    "inference_sim2real_ddp.py": [
        *("--video_folder", "--prompt_folder", "--base_config", "--output_folder", "--control_type", "--nproc_per_node"),
        *("sd_path", "use_controlnet", "run_ebsynth", "max_process", "negative prompt", "short side 512", "use_salinecy"),
        *("batch_size", "missing_prompt", "rank 0", ".mkv", "UNet2DConditionOutput"),
    ],
}


@pytest.mark.parametrize(("program", "statement"), [(program, one) for program, all in STATEMENTS.items() for one in all])
def test_the_page_has_an_answer_for_a_statement(program, statement):
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    (section,) = (text for text in sections if program in text.splitlines()[0])
    rows = [line for line in section.splitlines() if line.startswith("|") and statement in line]
    assert rows and all(len(row.strip("|").split("|")[-1].strip()) > 1 for row in rows), f"{program}: {statement}"

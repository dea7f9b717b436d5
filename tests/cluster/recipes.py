"""Runs of every recipe with the shipped models, for one or two films each."""

from tests.workflow.conftest import ROOT

CLIP, IMAGE = str(ROOT / "examples/shapes/videos/0000.mp4"), str(ROOT / "examples/shapes/pictures/0000.png")
TURN = {"video": CLIP, "prompt2": "an orange ring moving left quickly on a gray background"}
SHORT = {"frame_num": 9, "steps": 3, "seed": 1}
CAPTIONER = {"captioner": "shapes-internvl"}
RUNS = {
    "v2v": {
        **{"recipe": "v2v", "clips": [{"video": CLIP}], "model": "shapes-wan-5b", **CAPTIONER, "options": SHORT},
        "scores": ["health", "motion"],
    },
    "chain": {
        **{"recipe": "chain", "clips": [{"video": CLIP}], "model": "shapes-wan-14b", **CAPTIONER},
        "options": {**SHORT, "links": 2, "takes": 2, "pick": "motion.smoothness"},
    },
    "turning": {
        **{"recipe": "longlive", "clips": [{**TURN, "num_samples": 2}], "model": "shapes-longlive", **CAPTIONER},
        "options": {"num_output_frames": 6, "seed": 1},
    },
    "goes-on": {
        **{"recipe": "v2v", "clips": [{"video": CLIP}], "model": "shapes-helios", **CAPTIONER},
        "options": {"num_frames": 17, "num_inference_steps": 3, "seed": 1},
    },
    "words": {
        "recipe": "text2video",
        "clips": [{"id": "a", "prompt": "a red ring moving left slowly on a black background"}],
        "model": "shapes-text2video",
        "options": {"steps": 2, "seed": 1},
    },
    "picture": {
        "recipe": "dynamicrafter",
        "clips": [{"image": IMAGE, "prompt": "an orange ring"}],
        "model": "shapes-dynamicrafter",
        "options": {"num_inference_steps": 2},
    },
    "look": {
        "recipe": "fresco",
        "clips": [{"video": CLIP, "prompt": "an orange ring"}],
        "model": "shapes-fresco",
        "options": {"num_inference_steps": 3, "num_warmup_steps": 1, "seed": 1, "parts": 2},
    },
}
FILMS = {  # number of frames and size
    "v2v/0000": (9, (64, 64)),
    "chain/0000": (17, (64, 64)),
    "turning/0000_0": (21, (64, 64)),
    "turning/0000_1": (21, (64, 64)),
    "goes-on/0000": (17, (64, 64)),
    "words/a": (16, (32, 32)),
    "picture/0000": (16, (64, 64)),
    "look/0000": (17, (128, 128)),
}

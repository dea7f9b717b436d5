"""The published architecture at full size on the meta device, and the tokens that each frame attends to."""

import pytest
import torch

from stages.families.dynamicrafter.resampler import Resampler
from stages.families.dynamicrafter.unet import UNet
from tests.families.dynamicrafter import golden

PUBLISHED_NAMES = {  # some of the names that show the module nesting of the published files
    "time_embed.0.weight": (1280, 320),
    "fps_embedding.2.weight": (1280, 1280),
    "init_attn.0.proj_in.weight": (512, 320, 1),
    "input_blocks.0.0.weight": (320, 8, 3, 3),
    "input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "input_blocks.9.0.op.weight": (1280, 1280, 3, 3),
    "input_blocks.1.0.temopral_conv.conv1.2.weight": (320, 320, 3, 1, 1),
    "input_blocks.8.0.temopral_conv.conv4.3.weight": (1280, 1280, 3, 1, 1),
    "input_blocks.4.1.proj_in.weight": (640, 640),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k_ip.weight": (640, 1024),
    "input_blocks.4.2.transformer_blocks.0.attn2.to_k.weight": (640, 640),
    "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "middle_block.3.out_layers.3.weight": (1280, 1280, 3, 3),
    "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.5.3.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.8.3.conv.weight": (640, 640, 3, 3),
    "output_blocks.11.2.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
    "out.2.weight": (4, 320, 3, 3),
}


@pytest.mark.parametrize("learnable, keys", [(False, 1516), (True, 1532)])
def test_unet_of_full_size_has_the_published_weights(learnable, keys):
    with torch.device("meta"):
        unet = UNet(image_scale_learnable=learnable)
    shapes = {name: tuple(w.shape) for name, w in unet.state_dict().items()}
    assert len(shapes) == keys and PUBLISHED_NAMES.items() <= shapes.items()
    assert sum(name.endswith("attn2.alpha") for name in shapes) == 16 * learnable
    assert sum(w.numel() for w in unet.parameters()) / 1e6 == pytest.approx(1438.855, abs=0.001)
    with_attention = {name.split(".transformer_blocks")[0] for name in shapes if "transformer_blocks" in name}
    expected = {f"input_blocks.{i}.{k}" for i in (1, 2, 4, 5, 7, 8) for k in (1, 2)}
    expected |= {f"output_blocks.{i}.{k}" for i in range(3, 12) for k in (1, 2)}
    assert with_attention == expected | {"middle_block.1", "middle_block.2", "init_attn.0"}


def test_resampler_of_full_size_has_the_published_weights():
    with torch.device("meta"):
        resampler = Resampler()
    assert len(resampler.state_dict()) == 51 and tuple(resampler.latents.shape) == (1, 256, 1024)
    assert sum(w.numel() for w in resampler.parameters()) / 1e6 == pytest.approx(48.79, abs=0.01)


@pytest.fixture(scope="module")
def call():
    unet, case = golden.unet("512"), golden.case("512")
    text, image = case["context"].split([golden.TEXT_TOKENS, 256], dim=1)

    @torch.no_grad()
    def predict(frames, image=image, batch=1):
        x = torch.cat([case["x_T"], case["first_frame_latent"].expand(-1, -1, 16, -1, -1)], dim=1)[:, :, :frames]
        inputs = [t.expand(batch, *t.shape[1:]) for t in (x, torch.tensor([500]), text, image, case["fs"])]
        return unet(*inputs)

    return predict, image


def test_each_of_sixteen_frames_has_its_own_tokens(call):
    predict, image = call
    other = image.clone()
    other[:, 16 * 5 : 16 * 6] = 0  # the tokens of frame 5
    change = (predict(16, other) - predict(16)).abs().amax(dim=(0, 1, 3, 4))
    assert change.argmax() == 5


def test_other_numbers_of_frames_share_all_tokens(call):
    predict, image = call
    reversed_frames = image.flip(1)  # attention ignores the order of tokens
    assert torch.allclose(predict(8, reversed_frames), predict(8), atol=1e-5)
    assert not torch.allclose(predict(16, reversed_frames), predict(16), atol=1e-3)


def test_unet_attention_in_chunks_gives_the_same_result(call, monkeypatch):
    predict, _ = call
    whole = predict(16)
    monkeypatch.setattr("stages.families.dynamicrafter.unet.ROWS", 10)
    assert torch.allclose(predict(16), whole, atol=1e-6)


def test_clips_of_a_batch_do_not_affect_each_other(call):
    predict, _ = call
    for clip in predict(16, batch=2):
        assert torch.allclose(clip, predict(16)[0], atol=1e-5)

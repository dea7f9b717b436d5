"""The 3D U-Net: shapes, what its attention reaches, how it is told things, and a 2D U-Net's weights in it."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from stages.models.text2video.unet import Resnet, Transformer, UNet3D, inflate, patchify, unpatchify

SMALL = {"model_channels": 40, "channel_mult": (1, 2), "layers_per_block": 1, "head_dim": 8, "text_dim": 12}
KINDS = ("temporal", "spatial+temporal")


def unet(**config) -> UNet3D:
    """A small U-Net whose last layer is not zero, so that it says something."""
    torch.manual_seed(0)
    model = UNet3D(**{**SMALL, "attention": KINDS, **config}).eval()
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    return model


def inputs(frames=4, height=8, width=8, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, frames, height, width, generator=generator)
    return x, torch.tensor([7, 30])[:batch], torch.randn(batch, 5, 12, generator=generator)


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 4, 4), (1, 2, 2)])
@pytest.mark.parametrize("frames, height, width", [(2, 8, 8), (6, 16, 8), (16, 8, 24)])
def test_any_length_and_size_of_the_multiples_can_be_made(patch, frames, height, width):
    model = unet(patch_size=patch)
    assert model.multiple == (patch[0], 2 * patch[1])
    x, t, text = inputs(frames, height, width)
    with torch.no_grad():
        assert model(x, t, text).shape == x.shape


def test_new_network_predicts_zero():
    torch.manual_seed(0)
    model = UNet3D(**SMALL, attention=KINDS)
    torch.nn.init.zeros_(model.conv_out.bias)
    assert not model(*inputs()).any()


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 1, 1), (1, 2, 4), (2, 4, 2)])
def test_patches_are_blocks_of_pixels(patch):
    """Channel ((c * t + i) * h + j) * w + k of a patch is its pixel (i, j, k) of channel c; and back."""
    t, h, w = patch
    x = torch.randn(2, 3, 4, 8, 8)
    made = patchify(x, patch)
    pixels = x.numpy()
    for c, i, j, k in np.ndindex(3, t, h, w):
        assert np.array_equal(made[:, ((c * t + i) * h + j) * w + k].numpy(), pixels[:, c, i::t, j::h, k::w])
    assert torch.equal(unpatchify(made, patch), x)


def test_patches_of_a_frame_are_torchs_pixel_unshuffle():
    x = torch.randn(2, 3, 1, 8, 8)
    assert torch.equal(patchify(x, (1, 4, 4))[:, :, 0], torch.nn.functional.pixel_unshuffle(x[:, :, 0], 4))


def test_it_is_saved_and_loaded_as_it_is(tmp_path):
    model = unet(patch_size=(1, 2, 2), num_frames=4, sample_size=8, condition_dim=3)
    model.save_pretrained(tmp_path)
    loaded = UNet3D.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert dict(loaded.config).items() >= {"num_frames": 4, "sample_size": 8, "condition_dim": 3, "text_dim": 12}.items()
    condition = torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(loaded(*inputs(), condition), model(*inputs(), condition))


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"attention": ("temporal", "time")}, "attention 'time' is not spatial, temporal or joint"),
        ({"model_channels": 14, "head_dim": 4}, "head_dim 4 does not part 14 channels into heads of one width"),
    ],
)
def test_architecture_that_cannot_be_is_named(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        UNet3D(**{**SMALL, "attention": KINDS, **config})


# ----------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    "kind, frames, places",
    [
        ("spatial", False, True),
        ("temporal", True, False),
        ("spatial+temporal", True, True),
        ("joint", True, True),
    ],
)
def test_attention_reaches_what_it_says_and_nothing_else(kind, frames, places):
    """A change at frame 1, place (2, 3) is felt: at other places of the frame, at the place in other frames, at both."""
    torch.manual_seed(0)
    layer = Transformer(8, kind, text_dim=12, head_dim=4, mult=2).eval()
    x, text = torch.randn(1, 8, 3, 4, 5), torch.randn(1, 5, 12)
    other = x.clone()
    other[0, :, 1, 2, 3] += torch.randn(8)
    with torch.no_grad():
        felt = (layer(x, text) != layer(other, text)).any(dim=1)[0]  # [T, H, W]
    expected = torch.zeros(3, 4, 5, dtype=torch.bool)
    expected[1, 2, 3] = True
    if places:
        expected[1] = True
    if frames:
        expected[:, 2, 3] = True
    if frames and places:
        expected[:] = True
    assert torch.equal(felt, expected)


@pytest.mark.parametrize("kind", ["spatial", "temporal", "joint"])
def test_attention_knows_where_and_when(kind):
    """Frames or places in another order are not merely the result in another order."""
    torch.manual_seed(0)
    layer = Transformer(8, kind, text_dim=12, head_dim=4, mult=2).eval()
    x, text = torch.randn(1, 8, 3, 4, 4), torch.randn(1, 5, 12)
    axis = 2 if kind == "temporal" else 4
    with torch.no_grad():
        assert not torch.allclose(layer(x.flip(axis), text), layer(x, text).flip(axis), atol=1e-4)


def test_text_conditions_every_block():
    """Cut the way of the text into the embedding: each block's own cross-attention is left, and each tells texts apart."""
    model = unet()
    torch.nn.init.zeros_(model.text_embedding.weight)
    blocks = [*model.down_blocks, model.mid_block, *model.up_blocks]
    x, t, text = inputs()
    with torch.no_grad():
        for alone in blocks:
            mutes = [layer.attn2.to_out[0] for block in blocks if block is not alone for layer in block.attentions]
            kept = [{name: p.clone() for name, p in mute.named_parameters()} for mute in mutes]
            for mute in mutes:
                mute.weight.zero_()
            assert not torch.allclose(model(x, t, text), model(x, t, text.flip(0)), atol=1e-6)
            for mute, old in zip(mutes, kept, strict=True):
                mute.load_state_dict(old)


def test_clips_of_a_batch_do_not_see_each_other():
    model = unet()
    x, t, text = inputs()
    with torch.no_grad():
        together = model(x, t, text)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_timestep_of_all_clips_or_of_each():
    model = unet()
    x, _, text = inputs()
    with torch.no_grad():
        assert torch.equal(model(x, torch.tensor([7]), text), model(x, torch.tensor([7, 7]), text))
        assert not torch.allclose(model(x, torch.tensor([7]), text), model(x, torch.tensor([30]), text), atol=1e-6)


def test_further_condition_changes_the_result_and_is_then_needed():
    model = unet(condition_dim=3)
    x, t, text = inputs()
    with torch.no_grad():
        assert not torch.allclose(model(x, t, text, torch.zeros(2, 3)), model(x, t, text, torch.ones(2, 3)), atol=1e-6)
    with pytest.raises(ValueError, match="was made with condition_dim 3 and has no condition"):
        model(x, t, text)


# ------------------------------------------------------------------------------------------------------------- inflate


@pytest.fixture(scope="module")
def flat():
    """A 2D U-Net with random weights, of the shape of Stable Diffusion's."""
    torch.manual_seed(2)
    return UNet2DConditionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(128, 256),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=(16, 32),
        norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def inflated(flat):
    """A 3D U-Net with the 2D one's weights, and the names that were taken."""
    model = unet(model_channels=128, attention=("spatial+temporal", "spatial+temporal"))
    return model, inflate(model, flat.state_dict())


def test_all_of_a_2d_unet_is_taken_but_what_has_no_counterpart(flat, inflated):
    """The projections around the 2D attention and its gated feed-forward layer are the only ones that are left."""
    model, taken = inflated
    left = {name for name in flat.state_dict() if name.replace(".transformer_blocks.0.", ".") not in taken}
    parts = ("attentions.%d.norm.", "attentions.%d.proj_in.", "attentions.%d.proj_out.", "transformer_blocks.0.ff.net.")
    expected = [name for name in left if any(part % 0 in name or part % 1 in name for part in parts[:3]) or parts[3] in name]
    assert sorted(left) == sorted(expected)
    own = {name for name in model.state_dict() if name not in taken}
    assert all("temporal" in name or ".ff." in name or name.startswith("text_embedding") for name in own)


def timeless(resnet: Resnet) -> Resnet:
    """The block without its layer for time."""
    for parameter in resnet.temporal_conv.parameters():
        parameter.data.zero_()
    return resnet


@pytest.mark.parametrize("place", ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "up_blocks.0.resnets.1"])
@pytest.mark.parametrize("frames", [1, 3])
def test_inflated_block_does_to_a_picture_what_the_2d_block_does(frames, place, flat, inflated):
    """A picture, alone or as a clip that stands still: its group norms take the statistics of all frames together."""
    ours, theirs = timeless(inflated[0].get_submodule(place)), flat.get_submodule(place)
    picture, embedding = torch.randn(2, theirs.in_channels, 8, 8), torch.randn(2, 512)
    with torch.no_grad():
        made = ours(picture[:, :, None].repeat(1, 1, frames, 1, 1), embedding)
        expected = theirs(picture, embedding)
    for frame in made.unbind(2):
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-5)


def test_inflated_attention_embedding_and_resizing_are_the_2d_ones(flat, inflated):
    model = inflated[0]
    text = torch.randn(2, 5, 12)
    place = "mid_block.attentions.0"
    ours, theirs = model.get_submodule(place), flat.get_submodule(f"{place}.transformer_blocks.0")
    tokens = torch.randn(2, 9, 256)
    with torch.no_grad():
        torch.testing.assert_close(ours.attn1(tokens), theirs.attn1(tokens), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.attn2(tokens, text), theirs.attn2(tokens, text), rtol=0, atol=1e-5)
        t = torch.tensor([3, 700])
        torch.testing.assert_close(model.time_embedding(t), flat.time_embedding(flat.time_proj(t)), rtol=0, atol=1e-5)
        for name, width in (("down_blocks.0.downsamplers.0", 128), ("up_blocks.0.upsamplers.0", 256)):
            x = torch.randn(2, width, 3, 8, 8)
            frames = [flat.get_submodule(name)(frame) for frame in x.unbind(2)]
            torch.testing.assert_close(model.get_submodule(name)(x), torch.stack(frames, dim=2), rtol=0, atol=1e-5)


def test_nothing_is_taken_of_other_shapes(flat):
    model = unet(model_channels=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = inflate(model, {name: tensor for name, tensor in flat.state_dict().items() if name.startswith("mid_block")})
    assert taken == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

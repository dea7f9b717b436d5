"""The 3D U-Net: shapes, the reach of its attention, its conditions, and inflation of the weights of a 2D U-Net."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from stages.families.text2video.unet import (
    Resnet,
    Transformer,
    UNet3D,
    architecture_of_2d,
    inflate,
    patchify,
    unpatchify,
)

SMALL = {"model_channels": 40, "channel_mult": (1, 2), "layers_per_block": 1, "head_dim": 8, "text_dim": 12}
KINDS = ("temporal", "spatial+temporal")


def unet(**config) -> UNet3D:
    """A small U-Net whose last layer is not zero, so that its output is not zero."""
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
def test_unet_takes_any_length_and_size_of_the_multiples(patch, frames, height, width):
    model = unet(patch_size=patch)
    assert model.multiple == (patch[0], 2 * patch[1])
    x, t, text = inputs(frames, height, width)
    with torch.no_grad():
        assert model(x, t, text).shape == x.shape


def test_a_new_unet_predicts_zero():
    torch.manual_seed(0)
    model = UNet3D(**SMALL, attention=KINDS)
    torch.nn.init.zeros_(model.conv_out.bias)
    assert not model(*inputs()).any()


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 1, 1), (1, 2, 4), (2, 4, 2)])
def test_patchify_makes_channels_of_pixel_blocks(patch):
    """Channel ((c * t + i) * h + j) * w + k of a patch is its pixel (i, j, k) of channel c. `unpatchify` is the inverse."""
    t, h, w = patch
    x = torch.randn(2, 3, 4, 8, 8)
    patches = patchify(x, patch)
    pixels = x.numpy()
    for c, i, j, k in np.ndindex(3, t, h, w):
        assert np.array_equal(patches[:, ((c * t + i) * h + j) * w + k].numpy(), pixels[:, c, i::t, j::h, k::w])
    assert torch.equal(unpatchify(patches, patch), x)


def test_patchify_of_a_frame_equals_pixel_unshuffle():
    x = torch.randn(2, 3, 1, 8, 8)
    assert torch.equal(patchify(x, (1, 4, 4))[:, :, 0], torch.nn.functional.pixel_unshuffle(x[:, :, 0], 4))


def test_a_saved_unet_loads_unchanged(tmp_path):
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
        ({"model_channels": 14, "head_dim": 4}, "head_dim 4 does not divide 14 channels into heads of equal width"),
    ],
)
def test_an_impossible_unet_architecture_is_named(config, sentence):
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
def test_attention_kinds_reach_their_frames_and_positions_only(kind, frames, places):
    """A change at frame 1, position (2, 3) affects the frame, the position in all frames, or both, by the kind."""
    torch.manual_seed(0)
    layer = Transformer(8, kind, text_dim=12, head_dim=4, mult=2).eval()
    x, text = torch.randn(1, 8, 3, 4, 5), torch.randn(1, 5, 12)
    other = x.clone()
    other[0, :, 1, 2, 3] += torch.randn(8)
    with torch.no_grad():
        changed = (layer(x, text) != layer(other, text)).any(dim=1)[0]  # [T, H, W]
    expected = torch.zeros(3, 4, 5, dtype=torch.bool)
    expected[1, 2, 3] = True
    if places:
        expected[1] = True
    if frames:
        expected[:, 2, 3] = True
    if frames and places:
        expected[:] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("kind", ["spatial", "temporal", "joint"])
def test_attention_depends_on_the_order_of_frames_and_positions(kind):
    """Reordering frames or positions does not merely reorder the output."""
    torch.manual_seed(0)
    layer = Transformer(8, kind, text_dim=12, head_dim=4, mult=2).eval()
    x, text = torch.randn(1, 8, 3, 4, 4), torch.randn(1, 5, 12)
    axis = 2 if kind == "temporal" else 4
    with torch.no_grad():
        assert not torch.allclose(layer(x.flip(axis), text), layer(x, text).flip(axis), atol=1e-4)


def test_text_affects_every_unet_block():
    """Without the text in the embedding, the cross-attention of each block alone distinguishes texts."""
    model = unet()
    torch.nn.init.zeros_(model.text_embedding.weight)
    blocks = [*model.down_blocks, model.mid_block, *model.up_blocks]
    x, t, text = inputs()
    with torch.no_grad():
        for alone in blocks:
            mutes = [layer.attn2.to_out[0] for block in blocks if block is not alone for layer in block.attentions]
            original_weights = [{name: p.clone() for name, p in mute.named_parameters()} for mute in mutes]
            for mute in mutes:
                mute.weight.zero_()
            assert not torch.allclose(model(x, t, text), model(x, t, text.flip(0)), atol=1e-6)
            for mute, old in zip(mutes, original_weights, strict=True):
                mute.load_state_dict(old)


def test_clips_of_a_batch_do_not_affect_each_other():
    model = unet()
    x, t, text = inputs()
    with torch.no_grad():
        together = model(x, t, text)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_unet_takes_one_timestep_or_one_per_clip():
    model = unet()
    x, _, text = inputs()
    with torch.no_grad():
        assert torch.equal(model(x, torch.tensor([7]), text), model(x, torch.tensor([7, 7]), text))
        assert not torch.allclose(model(x, torch.tensor([7]), text), model(x, torch.tensor([30]), text), atol=1e-6)


def test_an_extra_condition_changes_the_output_and_is_required():
    model = unet(condition_dim=3)
    x, t, text = inputs()
    with torch.no_grad():
        assert not torch.allclose(model(x, t, text, torch.zeros(2, 3)), model(x, t, text, torch.ones(2, 3)), atol=1e-6)
    with pytest.raises(ValueError, match="condition_dim is 3 and no condition is given"):
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
    """A 3D U-Net with the weights of the 2D U-Net, and the names of the weights taken."""
    model = unet(model_channels=128, attention=("spatial+temporal", "spatial+temporal"))
    return model, inflate(model, flat.state_dict())


def test_inflation_takes_all_2d_weights_with_a_counterpart(flat, inflated):
    """Only the projections around the 2D attention and its gated feed-forward layer are left out."""
    model, taken = inflated
    left = {name for name in flat.state_dict() if name.replace(".transformer_blocks.0.", ".") not in taken}
    parts = ("attentions.%d.norm.", "attentions.%d.proj_in.", "attentions.%d.proj_out.", "transformer_blocks.0.ff.net.")
    expected = [name for name in left if any(part % 0 in name or part % 1 in name for part in parts[:3]) or parts[3] in name]
    assert sorted(left) == sorted(expected)
    remaining = {name for name in model.state_dict() if name not in taken}
    assert all("temporal" in name or ".ff." in name or name.startswith("text_embedding") for name in remaining)


@pytest.mark.parametrize(
    "given",
    [
        {"attention_head_dim": 2, "layers_per_block": 2},
        {"attention_head_dim": (2, 4, 4)},
    ],
)
def test_architecture_of_a_2d_unet_takes_its_widths_layers_and_heads(given):
    """As in Stable Diffusion, the last level has no attention, but for the block in the middle."""
    torch.manual_seed(2)
    flat = UNet2DConditionModel(
        **{"layers_per_block": 1, **given},
        block_out_channels=(16, 32, 32),
        cross_attention_dim=12,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    model = UNet3D(**architecture_of_2d(flat.config), text_dim=12).eval()
    taken = inflate(model, flat.state_dict())
    left = {name for name in flat.state_dict() if name.replace(".transformer_blocks.0.", ".") not in taken}
    parts = (".norm.", ".proj_in.", ".proj_out.", ".ff.net.")
    assert all(any(part in name for part in parts) for name in left if not name.startswith(("conv_in", "conv_out")))
    for place in ("down_blocks.0.attentions.0", "down_blocks.1.attentions.0", "mid_block.attentions.0"):
        ours, theirs = model.get_submodule(place), flat.get_submodule(f"{place}.transformer_blocks.0")
        tokens = torch.randn(2, 9, theirs.attn1.to_q.in_features)
        with torch.no_grad():
            torch.testing.assert_close(ours.attn1(tokens), theirs.attn1(tokens), rtol=0, atol=1e-5)


def without_temporal_layer(resnet: Resnet) -> Resnet:
    """The block with its temporal convolution set to zero."""
    for parameter in resnet.temporal_conv.parameters():
        parameter.data.zero_()
    return resnet


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "up_blocks.0.resnets.1"])
@pytest.mark.parametrize("frames", [1, 3])
def test_an_inflated_block_treats_an_image_like_the_2d_block(frames, name, flat, inflated):
    """The image is alone or a still clip: the group norms use the statistics of all frames together."""
    ours, theirs = without_temporal_layer(inflated[0].get_submodule(name)), flat.get_submodule(name)
    image, embedding = torch.randn(2, theirs.in_channels, 8, 8), torch.randn(2, 512)
    with torch.no_grad():
        output = ours(image[:, :, None].repeat(1, 1, frames, 1, 1), embedding)
        expected = theirs(image, embedding)
    for frame in output.unbind(2):
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-5)


def test_inflated_attention_embedding_and_resizing_equal_the_2d_ones(flat, inflated):
    model = inflated[0]
    text = torch.randn(2, 5, 12)
    name = "mid_block.attentions.0"
    ours, theirs = model.get_submodule(name), flat.get_submodule(f"{name}.transformer_blocks.0")
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


def test_inflation_takes_no_weights_of_other_shapes(flat):
    model = unet(model_channels=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = inflate(model, {name: tensor for name, tensor in flat.state_dict().items() if name.startswith("mid_block")})
    assert taken == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

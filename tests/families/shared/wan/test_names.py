"""Every weight of the published sizes has one name in Wan's layout and one in ours, by independently written tables."""

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from stages.families.shared.wan.names import diffusers_name, text_encoder_name, vae_name
from stages.families.wan.convert import TEXT_ENCODER, WAN_2_1_VAE, WAN_2_2_VAE
from tests.tiny.wan_original import text_encoder_names, transformer_names, vae_names

MODELS = {
    "Wan2.1-T2V-1.3B": (
        lambda: WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960),
        transformer_names(30),
        diffusers_name,
        825,
        1_418_996_800,
    ),
    "umt5-xxl": (
        lambda: UMT5EncoderModel(UMT5Config(**TEXT_ENCODER)),
        text_encoder_names(24),
        text_encoder_name,
        242,
        5_680_910_336,
    ),
    "Wan2.1_VAE": (lambda: AutoencoderKLWan(**WAN_2_1_VAE), vae_names(False), vae_name, 194, 126_892_531),
    "Wan2.2_VAE": (lambda: AutoencoderKLWan(**WAN_2_2_VAE), vae_names(True), vae_name, 196, 704_688_668),
}


@pytest.mark.parametrize("name", MODELS)
def test_wan_weight_names_are_a_bijection(name):
    make, table, name_of, tensors, parameters = MODELS[name]
    with torch.device("meta"):
        ours = {name: parameter.numel() for name, parameter in make().named_parameters()}
    assert (len(ours), sum(ours.values())) == (tensors, parameters)
    theirs = [table[name] for name in ours]
    assert len(set(theirs)) == len(ours)
    assert [name_of(name) for name in theirs] == list(ours)


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."])
def test_wan_weight_names_lose_training_wrappers_at_any_depth(wrapper):
    wrapped = f"{wrapper}blocks.7.{wrapper}self_attn.{wrapper}o.weight"
    assert diffusers_name(wrapped) == "blocks.7.attn1.to_out.0.weight"


def test_unknown_weight_names_stay():
    assert diffusers_name("img_emb.proj.0.weight") == "img_emb.proj.0.weight"
    assert text_encoder_name("blocks.0.cross_attn.q.weight") == "blocks.0.cross_attn.q.weight"
    assert vae_name("discriminator.weight") == "discriminator.weight"

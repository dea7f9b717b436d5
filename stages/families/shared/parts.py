"""Components of models' folders that several families share, as their loaders read them."""

from stages.runtime.components import Component, Size

TOKENIZER = Component("tokenizer", "tokenizer")
UMT5 = Component(
    "text_encoder",
    "transformers",
    ("umt5",),
    sizes=(
        Size("num_layers", r"encoder\.block\.(\d+)\."),
        Size("vocab_size", r"(?:shared|embed_tokens)\.weight", 0),
        Size("d_model", r"(?:shared|embed_tokens)\.weight", 1),
        Size("d_ff", r"wi_0\.weight", 0),
    ),
)
CLIP_TEXT = Component(
    "text_encoder",
    "transformers",
    ("clip_text_model", "clip"),
    sizes=(
        Size("num_hidden_layers", r"encoder\.layers\.(\d+)\."),
        Size("vocab_size", r"token_embedding\.weight", 0),
        Size("hidden_size", r"token_embedding\.weight", 1),
        Size("max_position_embeddings", r"position_embedding\.weight", 0),
    ),
)
WAN_VAE = Component(
    "vae",
    "diffusers",
    ("AutoencoderKLWan",),
    fixed={"scale_factor_temporal": 4},
    lengths={"latents_mean": "z_dim", "latents_std": "z_dim"},
    sizes=(
        Size("z_dim", r"post_quant_conv\.weight", 0),
        Size("base_dim", r"encoder\.conv_in\.weight", 0),
        Size("in_channels", r"encoder\.conv_in\.weight", 1),
    ),
)
IMAGE_VAE = Component(
    "vae", "diffusers", ("AutoencoderKL",), sizes=(Size("latent_channels", r"decoder\.conv_in\.weight", 1),)
)

WAN_TRANSFORMER_SIZES = (
    Size("num_layers", r"^blocks\.(\d+)\."),
    Size("num_attention_heads*attention_head_dim", r"^patch_embedding\.weight", 0),
    Size("in_channels", r"^patch_embedding\.weight", 1),
    Size("ffn_dim", r"^blocks\.0\.ffn\.net\.0\.proj\.weight", 0),
    Size("text_dim", r"text_embedder\.linear_1\.weight", 1),
)


def wan_transformer(folder: str, variants: tuple[str, ...] = ()) -> Component:
    """A transformer without CLIP image embeddings, which those of Wan2.1 image to video have."""
    kinds, sizes = ("WanTransformer3DModel",), WAN_TRANSFORMER_SIZES
    return Component(folder, "diffusers", kinds, variants, sizes=sizes, fixed={"image_dim": None})


def scheduler(*classes: str) -> Component:
    return Component("scheduler", "scheduler", classes)

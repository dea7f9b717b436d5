"""The tokenizer of the tiny models, which is trained when a model is built."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = (
    "a small blue bird takes off from the ground and flaps its wings",
    "the camera moves slowly over a snowy mountain and a frozen lake",
    "a red square moving down quickly on a gray background",
    "describe this video in detail frame user assistant",
    "static blurred details worst quality still picture",
)


def byte_tokenizer(special: Sequence[str], end: str = "") -> Tokenizer:
    """A byte-level BPE tokenizer with a few English merges. Any text in any script always has the same tokens.

    `special` tokens have the first ids, in order. `end`, one of them, ends every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + 64,
        special_tokens=list(special),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if end:
        closing = [(end, tokenizer.token_to_id(end))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=closing)
    return tokenizer

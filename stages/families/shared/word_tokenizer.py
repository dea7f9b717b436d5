"""A word-level tokenizer for models of a small vocabulary, and warnings about prompts that exceed a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from stages.runtime.log import log

# Chinese and Japanese texts have no spaces between words, so each of their characters is a word.
SPLIT_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}]"), "isolated"), pre_tokenizers.Whitespace()]
)


def word_tokenizer(words: Iterable[str], special: Sequence[str], unknown: str, begin: str = "", end: str = "") -> Tokenizer:
    """Make a tokenizer with a token per word or punctuation mark, whatever its case.

    The `special` tokens have the first ids, in order. `begin` and `end`, which are special tokens, enclose every text.
    """
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = SPLIT_WORDS
    tokenizer.add_special_tokens(list(special))
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}".strip(),
            special_tokens=[(token, vocabulary[token]) for token in (begin, end) if token],
        )
    return tokenizer


def words_of(text: str) -> list[str]:
    """Split a text into words and punctuation marks, as `word_tokenizer` does."""
    return [word for word, _ in SPLIT_WORDS.pre_tokenize_str(text)]


def warn_of_unread(tokenizer: Any, prompt: str, longest: int, item: str) -> None:
    """Log the parts of a prompt that a model ignores: unknown words, and the text after its first `longest` tokens."""
    _warn_of_unknown_words(tokenizer, prompt, item)
    if (tokens := len(tokenizer(prompt).input_ids)) > longest:
        reason = f"the prompt has {tokens} tokens and the model reads {longest}: the last {tokens - longest} are cut off"
        log("warning", item=item, reason=reason, tokens=tokens, kept=longest, cut=tokens - longest)


def _warn_of_unknown_words(tokenizer: Any, prompt: str, item: str) -> None:
    """Log the words of a prompt that have no token of their own, so that the model cannot tell them apart."""
    if tokenizer.unk_token_id is None:
        return
    words = dict.fromkeys(words_of(prompt))
    ids = tokenizer(list(words), add_special_tokens=False).input_ids if words else []
    unknown = [word for word, tokens in zip(words, ids, strict=True) if tokenizer.unk_token_id in tokens]
    if unknown:
        log("warning", item=item, reason=f"the model does not know: {', '.join(unknown)}", prompt=prompt)

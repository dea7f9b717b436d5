"""A tokenizer for models that know a few dozen words, and what a prompt says that such a model does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from stages.runtime.log import log


def word_tokenizer(words: Iterable[str], special: Sequence[str], unknown: str, begin: str = "", end: str = "") -> Tokenizer:
    """A token per word or mark, capital or not. `special` tokens take the first ids, in order; `begin` and `end`, two of
    them, enclose every text."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}".strip(),
            special_tokens=[(token, vocabulary[token]) for token in (begin, end) if token],
        )
    return tokenizer


def words_of(text: str) -> list[str]:
    """The words and marks of a text, as `word_tokenizer` parts them."""
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]


def warn_of_unknown_words(tokenizer, prompt: str, item: str) -> None:
    """Log the words of a prompt that the tokenizer has no token for, and that the model therefore cannot tell apart."""
    if tokenizer.unk_token_id is None:
        return
    words = dict.fromkeys(words_of(prompt))
    ids = tokenizer(list(words), add_special_tokens=False).input_ids if words else []
    unknown = [word for word, tokens in zip(words, ids, strict=True) if tokenizer.unk_token_id in tokens]
    if unknown:
        log("warning", item=item, reason=f"the model does not know: {', '.join(unknown)}", prompt=prompt)

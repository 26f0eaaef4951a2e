"""Texts as token ids, and token ids as texts, the same way wherever a model reads or shows them.

Models whose tokenizer puts tokens around every text (a Llama's `<s>`) were trained with these: they stand before prompts and around
documents. Special tokens are shown like all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from extractor.errors import UnsupportedModel, first_line
from extractor.models.tokenizer import END_OF_TEXT, SIMPLER

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


SHOWN_CHARACTERS = 60  # of a text in a message
WORD_START = "\u2581"  # how SentencePiece writes a space; its decoders drop that of the first token


class TextMarks(NamedTuple):
    """Ids before the first and after the last token of a text. Both are empty for GPT-2's tokenizers."""

    before: list[int]
    after: list[int]


def marks_of(tokenizer: Tokenizer) -> TextMarks:
    """The tokens that the tokenizer itself puts around every text."""
    for text in ("a", " ", "\n", "0"):  # a tokenizer may have no token for one of them
        with suppress(UnsupportedModel):
            encoding = encoded(tokenizer, text)
            if not all(encoding.special_tokens_mask):
                return _marks(encoding)
    return TextMarks([], [])


def encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    """A text with the tokens that the tokenizer puts around it. Raises UnsupportedModel for text that it has no tokens for."""
    with _one_error(f"the text {text[:SHOWN_CHARACTERS]!r}"):
        return tokenizer.encode(text)


def encoded_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """Texts without tokens around them. Raises UnsupportedModel for text that the tokenizer has no tokens for."""
    with _one_error("this text"):
        found: list[Encoding] = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return found


@contextmanager
def _one_error(text: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises nothing more specific, and for a panic in its Rust code a BaseException
        remedy = "give it a token for what it does not know, or choose other text" if isinstance(error, Exception) else SIMPLER
        raise UnsupportedModel(f"the tokenizer cannot write {text}: {first_line(error)}; {remedy}") from None


def document_marks(tokenizer: Tokenizer, vocab_size: int | None = None) -> TextMarks:
    """The tokens around a document of a corpus: after it `<|endoftext|>`, where the tokenizer has that and the model an embedding for it.

    vocab_size: tokens that the model has embeddings for; None: all. transformers adds the token to GPT-2 tokenizers that lack it.
    """
    marks, end = marks_of(tokenizer), tokenizer.token_to_id(END_OF_TEXT)
    return marks if end is None or (vocab_size is not None and end >= vocab_size) else TextMarks(marks.before, [end])


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that goes on: with the tokens that the tokenizer puts before it, without those that end it."""
    return _going_on(tokenizer, encoded(tokenizer, text))


def text_ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
    """`text_ids` of many texts, by text: replaces one call for each. {} where that cannot be done together: then each must be asked for."""
    if tokenizer.padding is not None:  # to the longest of a batch
        return {}
    try:
        with _one_error("this text"):
            encodings = tokenizer.encode_batch_fast(texts)
    except UnsupportedModel:
        return {}
    if marks_of(tokenizer) == TextMarks([], []):  # replaces the line below: nothing is cut off
        return {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
    return {text: _going_on(tokenizer, encoding) for text, encoding in zip(texts, encodings, strict=True)}


def _going_on(tokenizer: Tokenizer, encoding: Encoding) -> list[int]:
    ids: list[int] = encoding.ids
    if all(encoding.special_tokens_mask):  # no token is the text's
        return marks_of(tokenizer).before
    return ids[: len(ids) - len(_marks(encoding).after)]


def _marks(encoding: Encoding) -> TextMarks:
    ids, added = encoding.ids, encoding.special_tokens_mask  # 1 only for tokens that no character of the text gave
    before = next((i for i, one in enumerate(added) if not one), len(ids))
    after = next((i for i, one in enumerate(reversed(added)) if not one), len(ids))
    return TextMarks(ids[:before], ids[len(ids) - after :])


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as it stands inside a text: special tokens by their name, words with the space before them, unknown ids as '[id 7]'."""
    name = tokenizer.id_to_token(token)
    if name is None:
        return f"[id {token}]"  # a model may have more embeddings than its tokenizer has tokens
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return f" {text}" if name.startswith(WORD_START) and not text.startswith((" ", WORD_START)) else text


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """`token_text` of each token."""
    return [token_text(tokenizer, token) for token in ids]


def prompt_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a prompt's ids, special tokens included, without the tokens that the tokenizer puts before every text."""
    before = marks_of(tokenizer).before
    start = len(before) if list(ids[: len(before)]) == before else 0
    text: str = tokenizer.decode(list(ids[start:]), skip_special_tokens=False)
    return text


def without_embedding(token: int, tokenizer: Tokenizer, vocab_size: int | None) -> str | None:
    """What is wrong with a token that a model of `vocab_size` embeddings cannot read, and what mends it; None where it can."""
    if vocab_size is None or token < vocab_size:
        return None
    return (
        f"token {token_text(tokenizer, token)!r} (id {token}) has no embedding, the model has {vocab_size:,}; use text without it, or give "
        "the model one and train it: model.resize_token_embeddings(len(tokenizer))"
    )


def shown_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """`token_text` of a single token, `prompt_text` of several."""
    return token_text(tokenizer, ids[0]) if len(ids) == 1 else prompt_text(tokenizer, ids)

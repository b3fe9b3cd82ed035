"""A model's tokenizer, from the files its publisher serves; ids as ``transformers`` gives them.

The tokenizers library does the work and is imported when a tokenizer is loaded, not before. What surrounds it follows
``transformers`` 5: the post-processor of tokenizer.json alone decides about begin and end tokens
(``add_bos_token`` in tokenizer_config.json is not asked); named special tokens are special even where tokenizer.json
does not say so; padding and truncation are off; special tokens have no text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from client.detokenizer import Detokenizer
from swarm.errors import ProtocolError, UsageError
from swarm.layout import LayoutError
from swarm.messages import MAX_STOP_IDS
from swarm.strict_json import decode_object

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT = 16 << 20  # characters encoded at once; far more than any context holds
MAX_SETTINGS = 4 << 20  # bytes of a settings file; tokenizer_config.json may list thousands of added tokens
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to ids and back. Safe to use from several threads at once."""

    __slots__ = ("_backend", "_byte_ids", "_hidden", "chat_template_sources", "eos_ids", "special_tokens", "vocabulary")

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        eos_ids: tuple[int, ...],
        chat_template_sources: Mapping[str, str],
    ) -> None:
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        """Named special tokens, such as ``bos_token``; what chat templates know of the tokenizer."""
        self.eos_ids = eos_ids
        """Ids that end a text, as the model's generation settings list them."""
        self.chat_template_sources = dict(chat_template_sources)
        """Chat templates by name; most models have the one called ``default``."""
        self.vocabulary = backend.get_vocab_size()
        self._hidden = frozenset(id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special)
        self._byte_ids = _byte_ids(backend)

    @classmethod
    def load(cls, objects: Mapping[str, bytes], config: bytes = b"{}") -> Tokenizer:
        """From a model's files by name and its config.json. Takes up to seconds for a large vocabulary: use a thread.

        Raises `UsageError` for a model without tokenizer.json, `ProtocolError` for files that cannot be read.
        """
        if "tokenizer.json" not in objects:
            raise UsageError("this model is published without tokenizer.json; give token ids instead of text")
        settings = _settings(objects, "tokenizer_config.json")
        named = _named_tokens(_settings(objects, "special_tokens_map.json") | settings)
        backend = _parse(objects["tokenizer.json"])
        _prepare(backend, named)
        generation = _settings(objects, "generation_config.json")
        return cls(
            backend,
            special_tokens=named,
            eos_ids=_eos_ids(backend, generation, _decode_settings(config, "config.json"), named),
            chat_template_sources=_templates(objects.get("chat_template.jinja"), settings.get("chat_template")),
        )

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The ids of ``text``; with ``special``, what the post-processor adds (a begin token) included.

        Raises `UsageError` for text that is too long or holds half a surrogate pair.
        """
        if len(text) > MAX_TEXT:
            raise UsageError(f"a text of {len(text)} characters is over the limit of {MAX_TEXT}; shorten it")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError("the text holds half a surrogate pair, which is no character; remove it") from error
        return tuple(self._backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all ids at once, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, None if there is none."""
        return self._backend.token_to_id(token)

    def detokenizer(self) -> Detokenizer:
        """A new stream's `Detokenizer`."""
        return Detokenizer(self._decode_all, hidden=self._hidden, byte_ids=self._byte_ids)

    def _decode_all(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)


def _parse(raw: bytes) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_buffer(raw)
    except BaseException as error:  # the library raises bare Exception, and panics are no Exception at all
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ProtocolError(f"the model's tokenizer.json cannot be read: {str(error)[:200]}") from error
        raise


def _prepare(backend: tokenizers.Tokenizer, named: Mapping[str, str]) -> None:
    """Make it behave as ``transformers`` would."""
    from tokenizers import AddedToken

    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    known = [token for token in named.values() if backend.token_to_id(token) is not None]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])


def _byte_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """The ids of ``<0x00>`` to ``<0xFF>`` where the decoder joins them to characters."""
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    if not any(part.get("type") == "ByteFallback" for part in parts):
        return frozenset()
    found = (backend.token_to_id(f"<0x{value:02X}>") for value in range(256))
    return frozenset(token for token in found if token is not None)


def _settings(objects: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return _decode_settings(objects.get(name, b"{}"), name)


def _decode_settings(raw: bytes, name: str) -> dict[str, Any]:
    try:
        return decode_object(raw, limit=MAX_SETTINGS)
    except LayoutError as error:
        raise ProtocolError(f"the model's {name} {error}") from error


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens; each is written as text or as an object with ``content``."""
    found: dict[str, str] = {}
    for name in NAMED_TOKENS:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            found[name] = value
    return found


def _eos_ids(
    backend: tokenizers.Tokenizer, generation: Mapping[str, Any], config: Mapping[str, Any], named: Mapping[str, str]
) -> tuple[int, ...]:
    """The first of generation_config.json, config.json and the named end token that says anything."""
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if ids and all(type(item) is int and 0 <= item < 2**32 for item in ids):
            return tuple(dict.fromkeys(ids))[:MAX_STOP_IDS]
    end = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return () if end is None else (end,)


def _templates(file: bytes | None, setting: Any) -> dict[str, str]:
    """Templates by name: chat_template.jinja goes before the ``chat_template`` of tokenizer_config.json."""
    if file is not None:
        try:
            return {"default": file.decode("utf-8")}
        except UnicodeDecodeError as error:
            raise ProtocolError("the model's chat_template.jinja is not UTF-8") from error
    if isinstance(setting, str):
        return {"default": setting}
    items = [item for item in setting if isinstance(item, dict)] if isinstance(setting, list) else []
    pairs = [(item.get("name"), item.get("template")) for item in items]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}

"""The tokenizer of one model: text and chats to ids, ids to text, and where an answer ends."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from butterfly_core.errors import ModelError, RequestError
from butterfly_text import model_files
from butterfly_text.chat_template import ChatTemplate, TemplateLimits
from butterfly_text.detokenizer import Detokenizer

TEXT_CHARACTERS_MAX = 8_000_000
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
NOT_FOR_TEMPLATES = frozenset({"messages", "tools"})


class TextModel:
    """Made from the small files of a checkpoint: their names to their bytes.

    Needs ``tokenizer.json``; uses ``tokenizer_config.json``, ``special_tokens_map.json``,
    ``chat_template.jinja``, ``additional_chat_templates/*.jinja``, ``generation_config.json`` and
    ``config.json`` where they are there. What is put around a text (a bos token, say) is told by
    ``tokenizer.json`` alone, whatever ``add_bos_token`` says, as in transformers.
    Raises ModelError if one of them is malformed. May be used from several threads at once.
    """

    def __init__(
        self, files: Mapping[str, bytes], *, template_limits: TemplateLimits | None = None
    ) -> None:
        parsed = model_files.read_model_files(files)
        self._special_tokens = parsed.special_tokens
        self._tokenizer = _read_tokenizer(files)
        _declare_special_tokens(self._tokenizer, parsed)
        self._templates = {
            name: ChatTemplate(source, template_limits) for name, source in parsed.templates.items()
        }
        self._skipped_ids = frozenset(
            token_id
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._byte_of_id = _byte_tokens(self._tokenizer)
        self._eos_token_ids = self._find_eos(parsed)
        self._context_length = model_files.context_length(parsed)
        self._generation_defaults = model_files.generation_defaults(parsed)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, as generation_config, config and the tokenizer name them."""
        return self._eos_token_ids

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and answer may have together; None if the files do not say."""
        return self._context_length

    @property
    def generation_defaults(self) -> Mapping[str, float | int]:
        """``temperature``, ``top_p``, ``top_k`` for requests that do not choose; may be empty."""
        return self._generation_defaults

    @property
    def vocabulary_size(self) -> int:
        """Number of ids the tokenizer knows, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether ``encode_chat`` can work at all."""
        return bool(self._templates)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of ``text``, with what the tokenizer puts around it. Raises RequestError."""
        if len(text) > TEXT_CHARACTERS_MAX:
            raise RequestError(
                f"the text has {len(text)} characters; {TEXT_CHARACTERS_MAX} are allowed"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has half a surrogate pair at character {error.start}, which is no "
                "character; send valid Unicode"
            ) from error
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of the conversation, ready for the assistant's turn. Raises RequestError.

        No special tokens are added to those the template writes.
        """
        text = self.render_chat(messages, tools=tools, template_kwargs=template_kwargs)
        return self.encode(text, add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model's template writes it. Raises RequestError.

        ``template_kwargs`` are further variables of the template (as ``enable_thinking``), and
        may replace the special tokens and ``add_generation_prompt``, which is true.
        """
        if not messages:
            raise RequestError("messages is empty; send at least one message")
        extra = dict(template_kwargs or {})
        if forbidden := NOT_FOR_TEMPLATES & extra.keys():
            raise RequestError(
                f"chat_template_kwargs cannot replace {', '.join(sorted(forbidden))}"
            )
        variables = {"add_generation_prompt": True, **self._special_tokens, **extra}
        return self._choose_template(tools).render(messages, tools=tools, variables=variables)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; ids outside the vocabulary have none."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A decoder for one answer that comes token by token."""

        def decode(ids: Sequence[int]) -> str:
            return self.decode(ids, skip_special_tokens=skip_special_tokens)

        skipped = self._skipped_ids if skip_special_tokens else frozenset[int]()

        def is_shown(token_id: int) -> bool:
            return token_id not in skipped and self._tokenizer.id_to_token(token_id) is not None

        return Detokenizer(decode, is_shown=is_shown, byte_of_id=self._byte_of_id)

    def _choose_template(self, tools: object) -> ChatTemplate:
        wanted = ("tool_use", "default") if tools else ("default",)
        for name in wanted:
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            raise RequestError(
                "this model has no chat template named default, only "
                f"{', '.join(sorted(self._templates))}; use /v1/completions"
            )
        raise RequestError(
            "this model has no chat template; use /v1/completions, or put a chat_template.jinja "
            "beside its tokenizer.json and load the model again"
        )

    def _find_eos(self, parsed: model_files.ModelFiles) -> tuple[int, ...]:
        ids = list(model_files.named_eos_ids(parsed))
        if token := parsed.special_tokens.get("eos_token"):
            token_id = self._tokenizer.token_to_id(token)
            ids += [] if token_id is None else [token_id]
        return tuple(dict.fromkeys(ids))


def _read_tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    data = files.get("tokenizer.json")
    if data is None:
        raise ModelError(
            f"the model has no tokenizer.json (it has {', '.join(sorted(files)) or 'no files'}); "
            "write one with transformers: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER)"
        )
    model_files.parse_json_object({"tokenizer.json": data}, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:
        raise ModelError(
            f"tokenizer.json is not one that the tokenizers library reads: {error}"
        ) from error
    # What a file says about the lengths of a training batch is not meant for prompts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _declare_special_tokens(tokenizer: Tokenizer, parsed: model_files.ModelFiles) -> None:
    """Make special what tokenizer_config.json calls special, as transformers does.

    Only tokens that have an id already: a new one would have no row in the model's embedding.
    """
    known = tokenizer.get_added_tokens_decoder()
    for token in dict.fromkeys(parsed.special_tokens.values()):
        token_id = tokenizer.token_to_id(token)
        if token_id is not None and token_id not in known:
            tokenizer.add_special_tokens([AddedToken(token, special=True)])


def _byte_tokens(tokenizer: Tokenizer) -> Mapping[int, int]:
    """Ids of byte-fallback tokens to their bytes, where the decoder joins them to characters."""
    if "ByteFallback" not in str(tokenizer.decoder):
        return {}
    found = ((token_id, BYTE_TOKEN.fullmatch(t)) for t, token_id in tokenizer.get_vocab().items())
    return {token_id: int(match[1], 16) for token_id, match in found if match}

"""Small tokenizers of the kinds that real models have, and chat templates in their styles."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenizers import processors, trainers  # isort: skip

SAMPLE = [
    "Hello there, how are you? I'm fine, thank you.",
    "The quick brown fox jumps over the lazy dog; it wasn't amused.",
    "Grüße aus Köln! Ça va? El niño comió piñas. Привет, мир.",
    "def main() -> None:\n    print('hello')\n\treturn 42",
    "你好世界。今天天气很好。 🙂 is a face, 👩‍👩‍👧 a family.",
]
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
SPECIAL_TOKENS += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

CHATML = """\
{%- if tools %}
{{- '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_user = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.reasoning_content is defined \
and loop.index0 > ns.last_user %}
        {{- '<|im_start|>assistant\\n<think>\\n' + message.reasoning_content.strip('\\n') }}
        {{- '\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if strftime_now is defined %}{{- "Year: " + strftime_now("%Y") + "\\n\\n" }}{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'skipped' %}{%- continue %}{%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- generation %}{{- message['content'] | trim }}{%- endgeneration %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- macro told(text) %}{{ ' ' + text }}{% endmacro %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + told(message['content']) + '[/INST]' }}
    {%- else %}
        {{- told(message['content']) + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}


def _special() -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]


@cache
def byte_level() -> str:
    """As GPT-2, Llama 3 and Qwen: BPE over bytes, a bos token put in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_special(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return str(tokenizer.to_str())


def _byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def byte_fallback_bpe() -> str:
    """As Llama 2 and Mistral: words marked with U+2581, unknown characters as bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        SAMPLE[:3], trainers.BpeTrainer(vocab_size=150, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL_TOKENS, *_byte_tokens(), *sorted(model["vocab"], key=model["vocab"].get)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(_special())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return str(tokenizer.to_str())


@cache
def unigram() -> str:
    """As T5 and Gemma: Unigram with Metaspace and byte fallback."""
    pieces = {
        piece for text in SAMPLE[:3] for word in text.split() for piece in ("▁" + word, *word)
    }
    tokens = [*SPECIAL_TOKENS, *_byte_tokens(), "▁", *sorted(pieces)]
    vocabulary = [
        (token, -float(number % 9 + 1)) for number, token in enumerate(dict.fromkeys(tokens))
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(_special())
    return str(tokenizer.to_str())


@cache
def word_piece() -> str:
    """As BERT: pieces marked with ##, spaces between words made up when decoding."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=_special(), show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return str(tokenizer.to_str())


TOKENIZERS = {
    "byte_level": byte_level,
    "byte_fallback_bpe": byte_fallback_bpe,
    "unigram": unigram,
    "word_piece": word_piece,
}


def model_files(
    tokenizer: str = "byte_level", template: str | None = "chatml", **tokenizer_config: Any
) -> Mapping[str, bytes]:
    """The small files of a checkpoint with this tokenizer and this chat template."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "unk_token": "<unk>",
        **tokenizer_config,
    }
    if template:
        config["chat_template"] = TEMPLATES[template]
    return {
        "tokenizer.json": TOKENIZERS[tokenizer]().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }

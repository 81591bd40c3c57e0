"""Train the toy model that ships with Butterfly, from text every Python installation carries.

Reproduce it (about 25 minutes on two cores; the result depends a little on the Python version,
whose documentation it learns, and on the speed of the machine when ``--minutes`` ends it):

    nice -n 10 python -m tools.train_demo_model --minutes 22 --output butterfly/demo_model/toy-llama

What it is taught stands in ``demo_model_text``. A training sequence is a stream of short made-up
conversations and pieces of plain text. Only answers and plain text are scored, so the model spends
its few weights on answers.
"""

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tools.demo_model_text import Fact, collect_facts, plain_text

VOCABULARY_SIZE = 4096
CONTEXT_LENGTH = 512
TOKENS_PER_STEP = 2048
SHORT_CONTEXT_SHARE = 0.75  # of the training; short sequences first, they are cheaper
PEAK_LEARNING_RATE = 3e-3
PLAIN_TEXT_SHARE = 0.15
UNSCORED = -100  # the label that the loss of transformers leaves out
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('The toy model knows the roles system, user and assistant, not ' \
+ message.role) }}
    {%- endif %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}
                {{- part.text | trim }}
            {%- else %}
                {{- raise_exception('The toy model reads text only, not ' + part.type) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You answer questions about Python.",
    "Answer in one short sentence.",
]


def train_tokenizer(facts: Sequence[Fact], paragraphs: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer that puts ``<|begin|>`` before plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for fact in facts for text in (*fact.questions[:3], fact.answer)]
    tokenizer.train_from_iterator([*texts, *paragraphs], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
    )
    return tokenizer


class Practice:
    """An endless stream of scored tokens, the same for the same seed."""

    def __init__(self, facts: Sequence[Fact], paragraphs: Sequence[str], tokenizer: Tokenizer):
        self.rng = random.Random(7)
        self.facts, self.paragraphs, self.tokenizer = facts, paragraphs, tokenizer
        self.weights = [fact.weight for fact in facts]
        self.ids: list[int] = []
        self.labels: list[int] = []

    def write(self, text: str, *, scored: bool) -> None:
        """Append the tokens of ``text``."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        self.ids += ids
        self.labels += ids if scored else [UNSCORED] * len(ids)

    def converse(self) -> None:
        """Append one made-up conversation, or a paragraph."""
        self.write("<|begin|>", scored=False)
        if self.rng.random() < PLAIN_TEXT_SHARE:
            self.write(self.rng.choice(self.paragraphs) + "<|end|>", scored=True)
            return
        if self.rng.random() < 0.1:
            self.write(f"<|system|>{self.rng.choice(SYSTEM_PROMPTS)}<|end|>", scored=False)
        turns = self.rng.choice([1, 1, 1, 2, 3])
        for fact in self.rng.choices(self.facts, self.weights, k=turns):
            question = self.rng.choice(fact.questions)
            self.write(f"<|user|>{question}<|end|><|assistant|>", scored=False)
            self.write(fact.answer + "<|end|>", scored=True)

    def batch(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels, each ``[TOKENS_PER_STEP / length, length]``."""
        while len(self.ids) < TOKENS_PER_STEP:
            self.converse()
        pair = torch.tensor(self.ids[:TOKENS_PER_STEP]), torch.tensor(self.labels[:TOKENS_PER_STEP])
        del self.ids[:TOKENS_PER_STEP], self.labels[:TOKENS_PER_STEP]
        return pair[0].view(-1, length), pair[1].view(-1, length)


def make_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """An untrained Llama of about three million weights."""
    begin, end, pad = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[:3])
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def learning_rate(progress: float) -> float:
    """Linear warm-up over 3 %, then a cosine down to 2 % of the peak."""
    if progress < 0.03:
        return PEAK_LEARNING_RATE * progress / 0.03
    return PEAK_LEARNING_RATE * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def scored_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy; logits are computed only where a label is scored, which saves a third."""
    scored = labels[:, 1:] != UNSCORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][scored])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][scored])


def train(model: LlamaForCausalLM, practice: Practice, *, minutes: float, steps: int) -> None:
    """Train until ``steps`` are done or ``minutes`` have passed, whichever comes first."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(max(progress, 1e-4))
        short = progress < SHORT_CONTEXT_SHARE
        loss = scored_loss(model, *practice.batch(CONTEXT_LENGTH // 2 if short else CONTEXT_LENGTH))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        elapsed = time.monotonic() - started
        progress = max(step / steps, elapsed / (minutes * 60))
        if step % 50 == 0 or progress >= 1.0:
            print(f"step {step} after {elapsed:.0f} s: loss {loss.item():.3f}", flush=True)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path) -> None:
    """Write the checkpoint as Hugging Face lays it out, in several shards."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(output, max_shard_size="2MB")
    begin, end, pad = SPECIAL_TOKENS[:3]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(output, save_jinja_files=False)


def show_answers(model: LlamaForCausalLM, tokenizer: Tokenizer, questions: Sequence[str]) -> None:
    """Print what the model answers, greedily."""
    model.eval()
    for question in questions:
        prompt = f"<|begin|><|user|>{question}<|end|><|assistant|>"
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        answer = model.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :]
        print(f"{question}\n    {tokenizer.decode(answer.tolist(), skip_special_tokens=False)}")


def main() -> None:
    """Collect, train, save, and show a few answers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("build/toy-llama"))
    parser.add_argument("--minutes", type=float, default=22.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(7)
    torch.set_num_threads(options.threads)
    facts, paragraphs = collect_facts(), plain_text()
    tokenizer = train_tokenizer(facts, paragraphs)
    model = make_model(tokenizer)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(facts)} facts, {len(paragraphs)} paragraphs, {weights:,} weights", flush=True)
    train(
        model, Practice(facts, paragraphs, tokenizer), minutes=options.minutes, steps=options.steps
    )
    save(model, tokenizer, options.output)
    chosen = [fact.questions[0] for fact in facts if fact.weight > 1][::25]
    show_answers(model, tokenizer, [*chosen, "Who are you?", "What is the Zen of Python?"])


if __name__ == "__main__":
    main()

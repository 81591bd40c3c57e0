"""The tiny checkpoints that other tests stand on are whole."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from tests.support.tiny_models import (
    BOS_ID,
    EOS_ID,
    make_tiny_model,
    read_tensors,
    reference_greedy,
    reference_model,
)


def test_weights_come_in_several_shards_and_from_the_seed(tmp_path: Path) -> None:
    first = make_tiny_model(tmp_path / "a", seed=1)
    again = make_tiny_model(tmp_path / "b", seed=1)
    other = make_tiny_model(tmp_path / "c", seed=2)

    assert len(list(first.folder.glob("*.safetensors"))) > 1
    assert (first.folder / "model.safetensors.index.json").exists()
    one, two, three = (read_tensors(tiny.folder) for tiny in (first, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_a_tied_checkpoint_stores_its_embedding_once(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, tied=True)

    assert "lm_head.weight" not in read_tensors(tiny.folder)


def test_answers_vary(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path)

    assert len(set(reference_greedy(reference_model(tiny), [1, 2, 3], 20))) > 3


def test_its_tokenizer_reads_back_what_it_wrote(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, tokenizer=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)

    ids = tokenizer("Grüße, 世界!").input_ids
    assert ids[0] == BOS_ID
    assert max(ids[1:]) < 256
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Grüße, 世界!"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<s>user: hi</s>assistant:"
    assert tokenizer(chat, add_special_tokens=False).input_ids.count(EOS_ID) == 1

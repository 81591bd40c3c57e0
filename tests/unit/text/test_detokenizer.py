from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from butterfly_text.detokenizer import BYTE_RUN_TOKENS_MAX, WINDOW_TOKENS_MAX, Detokenizer
from butterfly_text.model import TextModel
from tests.support.text_models import SPECIAL_TOKENS, TOKENIZERS, model_files

MODELS = {name: TextModel(model_files(name)) for name in TOKENIZERS}
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=20)
ids_of_any = pytest.mark.parametrize("kind", TOKENIZERS)


def pieces_of(ids: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    pieces, rest, turn = [], list(ids), 0
    while rest:
        size = sizes[turn % len(sizes)]
        pieces.append(rest[:size])
        rest, turn = rest[size:], turn + 1
    return pieces


def streamed(
    model: TextModel, ids: Sequence[int], sizes: Sequence[int] = (1,), *, skip: bool = True
) -> list[str]:
    detokenizer = model.detokenizer(skip_special_tokens=skip)
    return [*map(detokenizer.push, pieces_of(ids, sizes)), detokenizer.flush()]


@ids_of_any
@given(data=st.data(), sizes=CUTS, skip=st.booleans())
def test_any_ids_in_any_pieces_give_the_text_of_all_ids(
    kind: str, data: st.DataObject, sizes: list[int], skip: bool
) -> None:
    model = MODELS[kind]
    known = st.integers(0, model.vocabulary_size + 3)  # the last ones are in no vocabulary
    ids = data.draw(st.lists(known, max_size=BYTE_RUN_TOKENS_MAX))

    text = "".join(streamed(model, ids, sizes, skip=skip))

    assert text == model.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
@given(data=st.data(), sizes=CUTS)
def test_decoders_without_byte_fallback_agree_at_any_length(
    kind: str, data: st.DataObject, sizes: list[int]
) -> None:
    model = MODELS[kind]
    broken = [i for i in range(model.vocabulary_size) if "\ufffd" in model.decode([i])] or [7]
    known = st.integers(0, model.vocabulary_size - 1) | st.sampled_from(broken)
    ids = data.draw(st.lists(known, min_size=40, max_size=200))

    assert "".join(streamed(model, ids, sizes)) == model.decode(ids)


@ids_of_any
@given(text=st.text(max_size=80), sizes=CUTS)
@example(text="👩‍👩‍👧" * 30, sizes=[1])
@example(text="  ▁ \ufffd 🙂\ufffd", sizes=[1])
@example(text=" 's n't . , !", sizes=[1])
def test_any_text_comes_back_as_decode_gives_it(kind: str, text: str, sizes: list[int]) -> None:
    model = MODELS[kind]
    ids = model.encode(text)

    assert "".join(streamed(model, ids, sizes)) == model.decode(ids)


@ids_of_any
@given(text=st.text(max_size=60))
def test_no_piece_shows_half_a_character(kind: str, text: str) -> None:
    model = MODELS[kind]
    whole = model.decode(model.encode(text))
    shown = ""
    for piece in streamed(model, model.encode(text)):
        shown += piece
        assert whole.startswith(shown)


def test_text_is_given_out_as_soon_as_a_character_is_complete() -> None:
    model = MODELS["byte_level"]
    ids = [model.encode(letter, add_special_tokens=False) for letter in ("a", "𝄞", "b")]
    detokenizer = model.detokenizer()

    assert detokenizer.push(ids[0]) == "a"
    assert [detokenizer.push([byte]) for byte in ids[1]] == ["", "", "", "𝄞"]
    assert detokenizer.push(ids[2]) == "b"


def test_a_run_of_fallback_bytes_comes_out_when_it_ends() -> None:
    model = MODELS["byte_fallback_bpe"]
    detokenizer = model.detokenizer()

    shown = [detokenizer.push([i]) for i in model.encode("a 🙂 b", add_special_tokens=False)]

    assert "".join(shown) == "a 🙂 b"
    assert sum("🙂" in piece for piece in shown) == 1


def test_a_very_long_run_of_fallback_bytes_does_not_wait_for_its_end() -> None:
    model = MODELS["byte_fallback_bpe"]
    ids = model.encode("𝄞" * 200, add_special_tokens=False)

    shown = streamed(model, ids)

    assert "".join(shown) == "𝄞" * 200
    assert max(map(len, shown)) <= BYTE_RUN_TOKENS_MAX


@pytest.mark.parametrize("between", [SPECIAL_TOKENS.index("<s>"), 10**6])
def test_ids_that_are_not_shown_do_not_end_a_run_of_fallback_bytes(between: int) -> None:
    model = MODELS["byte_fallback_bpe"]
    first, second, *rest = model.encode("🙂", add_special_tokens=False)[-4:]

    assert "".join(streamed(model, [first, second, between, *rest])) == "🙂"


def test_special_tokens_show_only_when_asked_for() -> None:
    model = MODELS["byte_level"]
    ids = [*model.encode("a"), SPECIAL_TOKENS.index("<|im_end|>"), *model.encode("b")]

    assert "".join(streamed(model, ids)) == "ab"
    assert "".join(streamed(model, ids, skip=False)) == "<s>a<|im_end|><s>b"


@ids_of_any
@given(seed=st.integers(0, 1000), size=st.integers(1, 3))
def test_work_per_token_does_not_grow_with_the_answer(kind: str, seed: int, size: int) -> None:
    model = MODELS[kind]
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return model.decode(ids)

    ids = [(seed * 7919 + step * step * 31) % model.vocabulary_size for step in range(600)]
    detokenizer = Detokenizer(decode)
    for piece in pieces_of(ids, [size]):
        detokenizer.push(piece)

    assert longest <= 2 * WINDOW_TOKENS_MAX + BYTE_RUN_TOKENS_MAX


CHUNKS = [b"a", b"\xe2", b"\x82", b"\xac", b"\x82\xac", b"\xe2\x82", b"\xf0\x9d", b"\x84", b"a\xe2"]


@given(st.lists(st.integers(0, len(CHUNKS) - 1), min_size=WINDOW_TOKENS_MAX, max_size=120), CUTS)
@example([2] * 31 + [8, 2, 3, 0], [31, 1, 1, 1, 1])
def test_a_long_stretch_of_broken_bytes_may_end_inside_a_character(
    ids: list[int], sizes: list[int]
) -> None:
    def decode(some: Sequence[int]) -> str:
        return b"".join(CHUNKS[i] for i in some).decode(errors="replace")

    detokenizer = Detokenizer(decode)
    shown = [*map(detokenizer.push, pieces_of(ids, sizes)), detokenizer.flush()]

    assert "".join(shown) == decode(ids)


def test_bytes_that_never_make_a_character_are_given_out_too() -> None:
    model = MODELS["byte_level"]
    lone = model.encode("é", add_special_tokens=False)[-1:]  # é may be one token or two bytes
    continuation = [i for i in range(model.vocabulary_size) if model.decode([i]) == "\ufffd"]
    ids = continuation * 5 + lone

    shown = streamed(model, ids)

    assert "".join(shown) == model.decode(ids)
    assert sum(map(bool, shown)) > 10

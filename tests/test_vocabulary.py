"""The text of tokens, for the families of tokenizers that there are, each built here."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sae_vis._vocabulary import _decoder_kinds, token_texts
from sae_vis.utils_fns import join_bytes

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\tdef f(x):\n        return x\n",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "naïve café — “quoted”… ½ € 日本語のテキスト",
    "🙂🙂👩‍👩‍👧 emoji 🏳️‍🌈",
]
HARD = [
    "🙂",
    "Щ",
    "日本",
    " naïve",
    "👩‍👩‍👧",
    "e\u0301",
    "\u202e",
    "\x00",
    "a\n\n b",
    "\u00a0",
    "Ġ",
    "▁",
    "</script>",
    "V8",
]


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(vocab_size: int = 300, **options) -> PreTrainedTokenizerFast:
    """As GPT-2's: bytes, then merges; few of them, so that most characters beyond ASCII fall into several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:2], trainer)
    return fast(tokenizer, eos_token="<|endoftext|>", **options)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: `▁` for spaces, and bytes such as `<0xF0>` for what is not in the vocabulary."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁hello", "▁world", "hello", "he", "l", "o", "w", "é", "▁▁", "▁<0x41>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace() -> PreTrainedTokenizerFast:
    """As T5's and XLNet's."""
    pieces = [("<unk>", 0.0), ("▁hello", -1.0), ("▁", -2.0), ("wor", -3.0), ("ld", -3.0), ("<0x41>", -5.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer, unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's."""
    words = ["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##ed", "caf", "##é", "Ġ", "▁x"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return fast(tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def shown(tokenizer, ids: list[int]) -> str:
    """The text as a page shows it: parts of characters joined with their neighbours."""
    found = token_texts(tokenizer, ids)
    parts = [bytes.fromhex(found.partial[i]) if i in found.partial else found.text[i].encode() for i in ids]
    joined = join_bytes(parts)
    return "".join(found.text[i] if text is None else text for i, text in zip(ids, joined, strict=True))


# --- byte-level --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.mark.parametrize("text", [*CORPUS, *HARD])
def test_byte_level_tokens_put_together_are_the_text(gpt, text):
    ids = gpt(text, add_special_tokens=False)["input_ids"]
    found = token_texts(gpt, ids)
    data = b"".join(bytes.fromhex(found.partial[i]) if i in found.partial else found.text[i].encode() for i in ids)
    assert data.decode() == text
    assert set(found.text) == set(ids)


@pytest.mark.parametrize("text", ["🙂", "Щ", "日本", "café"])
def test_a_character_over_several_tokens_is_shown_as_the_character(gpt, text):
    ids = gpt(text, add_special_tokens=False)["input_ids"]
    found = token_texts(gpt, ids)
    assert len(ids) > len(text)
    assert found.partial, "these are parts of characters"
    assert shown(gpt, ids) == text
    for i in found.partial:
        assert "�" not in found.text[i]
        assert found.text[i].startswith("<0x"), "a part by itself is shown as its bytes"


def test_a_token_with_whole_and_partial_characters_keeps_all_its_bytes():
    tokenizer = Tokenizer(models.BPE({"a": 0, "ð": 1, "að": 2}, [("a", "ð")]))
    tokenizer.decoder = decoders.ByteLevel()
    found = token_texts(fast(tokenizer), [2])
    assert found.partial == {2: "61f0"}
    assert found.text == {2: "<0x61><0xF0>"}


def test_every_byte_has_its_token_and_its_text(gpt):
    vocabulary = gpt.get_vocab()
    ids = [vocabulary[character] for character in pre_tokenizers.ByteLevel.alphabet()]
    found = token_texts(gpt, ids)
    seen = {bytes.fromhex(found.partial[i]) if i in found.partial else found.text[i].encode("utf-8") for i in ids}
    assert seen == {bytes([byte]) for byte in range(256)}
    assert found.partial.keys() == {i for i in ids if found.text[i].startswith("<0x")}
    assert len(found.partial) == 128


def test_leading_spaces_and_newlines_are_real_ones(gpt):
    ids = gpt(" the\n", add_special_tokens=False)["input_ids"]
    text = "".join(token_texts(gpt, ids).text[i] for i in ids)
    assert text == " the\n"
    assert not set("ĠĊ▁") & set(text)


@functools.cache
def shared_byte_level() -> PreTrainedTokenizerFast:
    return byte_level(280)


@given(st.text(max_size=40))
def test_any_text_comes_back(text):
    tokenizer = shared_byte_level()
    assert shown(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_special_and_added_tokens_are_shown_as_they_are_written(gpt):
    tokenizer = byte_level()
    tokenizer.add_tokens(["<extra Ġ>", AddedToken("ÄĠ", normalized=False)])
    tokenizer.add_special_tokens({"bos_token": "<|start of text|>"})
    names = ["<|endoftext|>", "<extra Ġ>", "ÄĠ", "<|start of text|>"]
    ids = tokenizer.convert_tokens_to_ids(names)
    found = token_texts(tokenizer, ids)
    assert [found.text[i] for i in ids] == names
    assert found.partial == {}


# --- the others --------------------------------------------------------------------------------------------------


def test_sentencepiece_spaces_and_bytes():
    tokenizer = sentencepiece_like()
    vocabulary = tokenizer.get_vocab()
    found = token_texts(tokenizer, vocabulary.values())
    texts = {word: found.text[i] for word, i in vocabulary.items()}
    assert texts["▁hello"] == " hello"
    assert texts["▁"] == " "
    assert texts["▁▁"] == "  "
    assert texts["é"] == "é"
    assert texts["<0x41>"] == "A"
    assert texts["<0x0A>"] == "\n"
    assert texts["▁<0x41>"] == " <0x41>", "only a whole token is a byte"
    assert (texts["<s>"], texts["</s>"], texts["<unk>"]) == ("<s>", "</s>", "<unk>")
    assert found.partial == {vocabulary[f"<0x{byte:02X}>"]: f"{byte:02x}" for byte in range(128, 256)}


@pytest.mark.parametrize("text", ["🙂", "Щ é", "hello world"])
def test_sentencepiece_text_with_byte_fallback_comes_back(text):
    tokenizer = sentencepiece_like()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert shown(tokenizer, ids) == " " + text


def test_metaspace():
    found = token_texts(metaspace(), range(6))
    assert found.text == {0: "<unk>", 1: " hello", 2: " ", 3: "wor", 4: "ld", 5: "<0x41>"}
    assert found.partial == {}


def test_word_pieces_keep_the_mark_that_joins_them():
    found = token_texts(word_piece(), range(10))
    words = ["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##ed", "caf", "##é", "Ġ", "▁x"]
    assert list(found.text.values()) == words
    assert found.partial == {}


def test_a_tokenizer_without_a_decoder_shows_its_tokens():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "Ġb": 1, "<unk>": 2}, unk_token="<unk>"))
    assert token_texts(fast(tokenizer), [0, 1, 2]).text == {0: "a", 1: "Ġb", 2: "<unk>"}


def test_no_tokenizer_shows_ids():
    assert token_texts(None, [7, 3, 3]) == ({3: "<3>", 7: "<7>"}, {})


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like, metaspace, word_piece])
def test_ids_beyond_the_tokenizer_are_shown_as_ids(make):
    """Vocabularies of models are often padded to a round size."""
    tokenizer = make()
    beyond = len(tokenizer) + 5
    assert token_texts(tokenizer, [beyond]).text == {beyond: f"<{beyond}>"}


def test_a_tokenizer_whose_tokens_are_bytes():
    class Bytes:
        def convert_ids_to_tokens(self, token_id):
            return [b"ab", "é".encode(), b"\xf0\x9f"][token_id]

    found = token_texts(Bytes(), [0, 1, 2])
    assert found.text == {0: "ab", 1: "é", 2: "<0xF0><0x9F>"}
    assert found.partial == {2: "f09f"}
    assert token_texts(Bytes(), [3]).text == {3: "<3>"}


def test_a_slow_tokenizer_is_told_by_its_alphabet():
    class Slow:
        def __init__(self, *words):
            self.words = words

        def get_vocab(self):
            return {word: i for i, word in enumerate(self.words)}

        def convert_ids_to_tokens(self, token_id):
            return self.words[token_id]

    assert token_texts(Slow("Ġ", "Ġthe", "ðŁ"), [1, 2]) == ({1: " the", 2: "<0xF0><0x9F>"}, {2: "f09f"})
    assert token_texts(Slow("▁", "▁the"), [1]).text == {1: " the"}
    assert token_texts(Slow("the", "##re"), [1]).text == {1: "##re"}


def test_texts_come_in_order_of_ids_and_only_those_asked_for(gpt):
    found = token_texts(gpt, [9, 4, 9, 260])
    assert list(found.text) == [4, 9, 260]


@pytest.mark.parametrize("name", ["</script>", "{{ x }}", "V8", "Ġ", "<0x41>", "🙂", "a" * 10_000])
def test_added_tokens_with_any_text_are_safe(name):
    tokenizer = byte_level()
    tokenizer.add_tokens([name])
    i = tokenizer.convert_tokens_to_ids(name)
    expected = " " if i == tokenizer.get_vocab()["Ġ"] and i not in tokenizer.added_tokens_decoder else name
    assert token_texts(tokenizer, [i]).text[i] == expected


# --- decoders ----------------------------------------------------------------------------------------------------


class Backwards:
    """A decoder written in Python, which no tokenizer can write to a file."""

    def decode_chain(self, tokens: list[str]) -> list[str]:
        return [token[::-1] for token in tokens]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like, metaspace, word_piece])
def test_the_kinds_of_a_decoder_are_those_that_the_tokenizer_writes_to_its_file(make):
    tokenizer = make()
    told = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    assert _decoder_kinds(tokenizer) == {step["type"] for step in told.get("decoders", [told])}


@pytest.mark.parametrize("decoder", [None, decoders.Decoder.custom(Backwards())])
def test_without_a_decoder_that_can_be_read_tokens_stay_as_they_are(decoder):
    tokenizer = metaspace()
    tokenizer.backend_tokenizer.decoder = decoder
    assert _decoder_kinds(tokenizer) == set()
    assert token_texts(tokenizer, [1, 5]).text == {1: "▁hello", 5: "<0x41>"}

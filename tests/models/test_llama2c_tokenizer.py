"""llama2.c's tokenizer: merges by score, bytes where a character is unknown."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flightllm.models.llama2c_tokenizer import Llama2cTokenizer
from flightllm.models.tokenizer import load_tokenizer
from flightllm.spec.errors import InputError

WORDS = {" ": -1.0, "a": -2.0, "b": -3.0, "ab": -4.0, "ba": -4.0, "aba": -9.0, " a": -8.0}


def write(path: Path, words: dict[str, float] = WORDS) -> Path:
    """A tokenizer file: 3 special tokens, 256 bytes, then the words with their scores."""
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    pieces += [(word.encode(), score) for word, score in words.items()]
    body = b"".join(struct.pack("<fi", score, len(word)) + word for word, score in pieces)
    path.write_bytes(struct.pack("<i", 7) + body)
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Llama2cTokenizer:
    return Llama2cTokenizer(write(tmp_path_factory.mktemp("tok") / "tok266.bin"))


def naive(tokenizer: Llama2cTokenizer, text: str) -> list[int]:
    """llama2.c's own loop: look at every pair, merge the best, start again."""
    words = [(word.encode(), score) for word, score in WORDS.items()]
    place = {word: 259 + index for index, (word, _) in enumerate(words)}
    pieces = [character.encode() for character in f" {text}"] if text else []
    parts = [part for piece in pieces for part in ([piece] if piece in place else _split(piece))]
    while True:
        best, at = -1e10, -1
        for index in range(len(parts) - 1):
            union = parts[index] + parts[index + 1]
            if union in place and words[place[union] - 259][1] > best:
                best, at = words[place[union] - 259][1], index
        if at < 0:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [place[part] if part in place else part[0] + 3 for part in parts]


def _split(piece: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in piece]


@given(st.text(alphabet="ab \u00e9", max_size=24))
def test_merges_like_the_plain_loop(tokenizer: Llama2cTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == [1, *naive(tokenizer, text)]
    assert tokenizer.decode(ids) == text


def test_by_hand(tokenizer: Llama2cTokenizer) -> None:
    place = {word: 259 + index for index, word in enumerate(WORDS)}
    # The leftmost of the equal merges "ab" and "ba" comes first.
    assert tokenizer.encode("bab", bos=False) == [place[" "], place["ba"], place["b"]]
    assert tokenizer.encode("aba", bos=False) == [place[" "], place["aba"]]
    assert tokenizer.encode("é", bos=False) == [place[" "], 0xC3 + 3, 0xA9 + 3]
    assert tokenizer.encode("") == [1]
    assert (tokenizer.vocab, tokenizer.bos, tokenizer.eos) == (266, 1, (1, 2))


def test_decoding_specials_and_spare_ids(tokenizer: Llama2cTokenizer) -> None:
    space, a = 259, 260
    assert tokenizer.decode([1, space, a, 2, 9999]) == "a"
    assert tokenizer.decode([space, a]) == " a"  # a continuation keeps its space
    assert tokenizer.decode([0xC3 + 3]) == "\ufffd"


def test_found_beside_the_model(stories: Path) -> None:
    tokenizer = load_tokenizer(stories / "stories260K.bin")
    assert isinstance(tokenizer, Llama2cTokenizer) and tokenizer.vocab == 512
    assert load_tokenizer(stories / "tok512.bin").encode("hello") == tokenizer.encode("hello")


def test_agrees_with_the_folder(test_data: Path, stories: Path) -> None:
    text = (test_data / "text" / "tinystories_sample.txt").read_text().replace("\n", " ")[:5000]
    ids = load_tokenizer(stories / "tok512.bin").encode(text)
    assert ids == load_tokenizer(stories).encode(text)
    assert load_tokenizer(stories / "tok512.bin").decode(ids) == text


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (-1, "is no llama2.c tokenizer, or truncated: token 265 has 2 bytes"),
        (-5, "is truncated in token 265"),
        (17, "is no llama2.c tokenizer: it has 1 tokens"),
        (0, "is no llama2.c tokenizer: it has 0 tokens"),
    ],
)
def test_truncated(tmp_path: Path, cut: int, message: str) -> None:
    path = write(tmp_path / "tok.bin")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=f"tok.bin: {message}"):
        load_tokenizer(path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder or file"):
        load_tokenizer(tmp_path / "tok.bin")

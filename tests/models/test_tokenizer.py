"""Tokenisers of Hugging Face folders: what stands around a text, streaming, chat, vocabulary."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import SPECIAL, TEXT
from tokenizer_files import write_tokenizer as write
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flightllm.models import zoo
from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.models.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from flightllm.spec.errors import InputError

CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, with special tokens and a chat template, nothing in front of a text."""
    rules = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHAT}
    return load_tokenizer(write(tmp_path_factory.mktemp("plain"), rules=rules))


def streamed(tokenizer: Tokenizer, ids: Sequence[int], after: Sequence[int] = ()) -> list[str]:
    """The pieces of a stream, the rest last."""
    stream = tokenizer.stream(after)
    return [*[stream.push(token) for token in ids], stream.finish()]


def test_round_trip(plain: Tokenizer) -> None:
    assert plain.decode(plain.encode(TEXT)) == TEXT
    assert plain.encode("") == []
    assert (plain.vocab, plain.bos, plain.eos) == (300, 0, (1,))


@pytest.mark.parametrize(
    ("template", "rules", "front"),
    [
        (False, {"bos_token": "<s>"}, []),
        (True, {"bos_token": "<s>"}, [0]),
        (True, {"bos_token": "<s>", "add_bos_token": False}, []),
        (False, {"bos_token": "<s>", "add_bos_token": True}, [0]),
        (False, {"bos_token": None, "add_bos_token": True}, []),
        (True, None, []),  # nothing says that <s> is the beginning
    ],
)
def test_what_stands_in_front(
    tmp_path: Path, template: bool, rules: dict[str, object] | None, front: list[int]
) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template, rules))
    ids = tokenizer.encode("Once", bos=False)
    assert ids and tokenizer.encode("Once") == front + ids
    assert tokenizer.decode(front + ids) == "Once"


@pytest.mark.parametrize(
    ("rules", "generation", "config", "expected"),
    [
        ({"eos_token": "</s>"}, {"eos_token_id": [2, 1]}, {"eos_token_id": 0}, (2, 1)),
        ({"eos_token": "</s>"}, {}, {"eos_token_id": 2}, (2,)),
        ({"eos_token": "</s>"}, None, {"eos_token_id": 50256}, (1,)),
        ({}, None, None, ()),
        (None, {"eos_token_id": 2}, None, (2,)),
    ],
)
def test_ends(
    tmp_path: Path,
    rules: dict[str, object] | None,
    generation: dict[str, object] | None,
    config: dict[str, object] | None,
    expected: tuple[int, ...],
) -> None:
    folder = write(tmp_path, rules=rules, generation=generation, config=config)
    assert load_tokenizer(folder).eos == expected


def test_beginning_from_the_model_config(tmp_path: Path) -> None:
    """An explicit null in tokenizer_config.json wins over the model's configuration."""
    config = {"bos_token_id": 2}
    assert load_tokenizer(write(tmp_path / "a", config=config)).bos == 2
    rules = {"bos_token": None}
    assert load_tokenizer(write(tmp_path / "b", rules=rules, config=config)).bos is None


@given(st.text(max_size=40) | st.text(alphabet="日本語é😀ß€ the", max_size=40))
def test_streams_whole_characters(plain: Tokenizer, text: str) -> None:
    ids = plain.encode(text)
    pieces = streamed(plain, ids)
    assert "".join(pieces) == plain.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 299), max_size=60))
def test_streams_any_tokens_without_getting_stuck(plain: Tokenizer, ids: list[int]) -> None:
    """Bytes that are no UTF-8 come out after a few tokens: nothing waits for ever."""
    stream, waited = plain.stream(), 0
    for token in ids:
        waited = 0 if stream.push(token) or token < len(SPECIAL) else waited + 1
        assert waited < 8
    stream.finish()


@given(text=st.text(min_size=1, max_size=30), cut=st.integers(0, 30))
def test_streams_behind_a_prompt(plain: Tokenizer, text: str, cut: int) -> None:
    ids = plain.encode(text)
    prompt, rest = ids[:cut], ids[cut:]
    whole, told = plain.decode(ids), plain.decode(prompt)
    if whole.startswith(told):  # the prompt does not end inside a character
        assert told + "".join(streamed(plain, rest, prompt)) == whole


def test_incomplete_character_at_the_end(plain: Tokenizer) -> None:
    ids = plain.encode("é" * 3 + "\U0001f9ff")
    assert streamed(plain, ids[:-1])[-1] == "\ufffd"


def test_tokens_that_end_inside_characters(tmp_path: Path) -> None:
    """A merge over the edge of two characters makes every token of a row end inside one."""
    whole = "日" * 6
    engine = Engine(models.BPE())
    engine.decoder = decoders.ByteLevel()
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first, second, third = engine.pre_tokenizer.pre_tokenize_str("日")[0][0]
    crossing = third + first
    vocab = {piece: place for place, piece in enumerate((first, second, third, crossing))}
    engine.model = models.BPE(vocab, [(third, first)])
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(whole)
    assert vocab[crossing] in ids
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == whole and set(pieces) == {"", "日"}


def test_streams_spaces_of_sentencepiece(stories: Path, test_data: Path) -> None:
    tokenizer = load_tokenizer(stories)
    text = (test_data / "text" / "tinystories_sample.txt").read_text()[:1500] + " \u20ac\u00e9"
    ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
    prompt, rest = ids[:50], ids[50:]
    continued = tokenizer.decode(prompt) + "".join(streamed(tokenizer, rest, prompt))
    assert continued == tokenizer.decode(ids)


def test_stories_prompt(stories: Path) -> None:
    tokenizer = load_tokenizer(stories)
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert (tokenizer.vocab, tokenizer.bos, tokenizer.eos) == (512, 1, (2,))


def test_chat(plain: Tokenizer, tmp_path: Path) -> None:
    prompt = plain.chat([{"role": "user", "content": "Hello"}])
    assert prompt == "<s>user: Hello</s>\n<s>assistant: "
    assert plain.encode(prompt, bos=False)[0] == 0
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "plain"}]
    assert load_tokenizer(write(tmp_path, rules={"chat_template": named})).chat([]) == "plain"
    (tmp_path / "chat_template.jinja").write_text("file wins")
    assert load_tokenizer(tmp_path).chat([]) == "file wins"


def test_chat_equals_transformers(tmp_path: Path) -> None:
    """A ChatML template with a loop that breaks, JSON, namespaces and white space control."""
    template = """
{%- set seen = namespace(count=0) %}
{% for message in messages %}
    {%- if seen.count >= 3 %}{% break %}{% endif %}
    {%- set seen.count = seen.count + 1 %}
    {{- '<|end|>' if not loop.first }}{{ message.role | upper }} {{ message | tojson }}
{% endfor %}
{%- if add_generation_prompt %}{{ eos_token }}assistant{% endif %}
"""
    rules = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    rules["tokenizer_class"] = "PreTrainedTokenizerFast"
    write(tmp_path, rules=rules)
    messages = [{"role": "user", "content": f"<é & '{turn}'>"} for turn in range(5)]
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert expected.count("USER") == 3
    assert load_tokenizer(tmp_path).chat(messages) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the model has no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alt"),
        ("{% if %}", "the chat template fails"),
        ("{{ messages.__class__.__mro__ }}", "the chat template fails"),
        ("{{ messages.append(1) }}", "the chat template fails"),
    ],
)
def test_chat_that_fails(tmp_path: Path, template: str | None, message: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, rules={"chat_template": template}))
    with pytest.raises(InputError, match=message):
        tokenizer.chat([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json: is not a tokenizer"),
        ("tokenizer.json", "hello", "tokenizer.json: is not a tokenizer"),
        ("generation_config.json", "[]", "generation_config.json: holds a list"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "fits"), [(300, True), (320, True), (299, False), (400, False), (32000, False)]
)
def test_vocabulary(plain: Tokenizer, vocab: int, fits: bool) -> None:
    config = ModelConfig(
        family="llama",
        vocab=vocab,
        dim=16,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=8,
        ffn_dim=16,
        max_length=8,
        rope=RopeConfig(),
        name="toy",
    )
    if fits:
        check_vocabulary(plain, config)
    else:
        with pytest.raises(InputError, match=f"toy: the tokenizer has 300 ids.* {vocab}:"):
            check_vocabulary(plain, config)


def test_padding_of_public_models_is_allowed(plain: Tokenizer) -> None:
    for name, ids in (("qwen2.5-7b", 151665), ("opt-125m", 50265), ("gpt2", 50257)):
        plain_size, plain.vocab = plain.vocab, ids
        check_vocabulary(plain, zoo.shape(name))
        plain.vocab = plain_size

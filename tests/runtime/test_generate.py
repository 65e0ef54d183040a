"""generate() over a device that only pretends: loops, limits, streaming, times."""

import numpy as np
import pytest
from fake_device import CYCLES_A_TOKEN, FakeDevice, LetterTokenizer, fake_logits, fake_program

from flightllm.runtime.generate import Generator, TextStream, encode_prompt, generate
from flightllm.runtime.sampling import Sampler
from flightllm.runtime.session import Session
from flightllm.spec.errors import InputError
from flightllm.spec.isa import Register

PROMPT = [12, 5, 6, 7]
BOARDS = ("tiny", "tiny-2core")


def session(board: str = "tiny-2core", **options: object) -> Session:
    program = fake_program(board, **options)
    return Session(FakeDevice(program.config), program)


def greedy(ids: list[int], tokens: int, vocab: int = 75) -> list[int]:
    """What a greedy host would make of the fake model."""
    out = list(ids)
    for _ in range(tokens):
        out.append(int(fake_logits(out, vocab).argmax()))
    return out[len(ids) :]


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("length", [1, 5, 16, 17, 33])
def test_greedy_is_what_the_model_says(board: str, length: int) -> None:
    prompt = [(7 * i) % 75 for i in range(length)]
    run = Generator(session(board), prompt, tokens=9)
    assert list(run) == greedy(prompt, 9) == run.token_ids
    assert run.stop == "tokens"


@pytest.mark.parametrize("steps", [2, 4, 7, 64])
def test_device_may_decode_several_tokens_alone(steps: int) -> None:
    run = Generator(session(), PROMPT, tokens=20, steps=steps)
    assert list(run) == greedy(PROMPT, 20)


def test_several_steps_are_one_run() -> None:
    target = session()
    list(Generator(target, PROMPT, tokens=9, steps=4))
    decodes = [registers for entry, registers in target.device.runs if entry == "decode"]
    assert [r[Register.STEPS] for r in decodes] == [4, 4]
    assert [r[Register.POS] for r in decodes] == [4, 8]


def test_a_second_prompt_starts_afresh() -> None:
    target = session()
    first = list(Generator(target, PROMPT, tokens=5))
    list(Generator(target, [3, 4], tokens=5))
    assert list(Generator(target, PROMPT, tokens=5)) == first


def test_ends_at_any_end_token() -> None:
    expected = greedy(PROMPT, 20)
    end = (74, expected[6])
    for steps in (1, 5):
        run = Generator(session(eos=end), PROMPT, tokens=20, steps=steps)
        assert list(run) == expected[: expected.index(end[1]) + 1]
        assert run.stop == "end"


def test_end_tokens_can_be_ignored() -> None:
    expected = greedy(PROMPT, 10)
    assert list(Generator(session(eos=(expected[2],)), PROMPT, tokens=10, end=())) == expected


@pytest.mark.parametrize("steps", [1, 8])
def test_full_context_ends_the_text(steps: int) -> None:
    prompt = [1] * 60
    run = Generator(session(max_length=70), prompt, tokens=64, steps=steps)
    # The last token needs no place in the cache: 60 + 10 entries make 11 tokens.
    assert list(run) == greedy(prompt, 11)
    assert run.stop == "context"


def test_prompt_as_long_as_the_context_gives_one_token() -> None:
    run = Generator(session(max_length=20), [2] * 20, tokens=5)
    assert list(run) == greedy([2] * 20, 1)
    assert run.stop == "context"


def test_sampling_repeats_with_its_seed_and_changes_with_another() -> None:
    def tokens(seed: int) -> list[int]:
        return list(Generator(session(), PROMPT, 20, Sampler(1.0, 0.95, seed)))

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_sampling_draws_from_the_logits_of_the_whole_vocabulary() -> None:
    sampler, expected = Sampler(0.7, 0.9, 5), list(PROMPT)
    for _ in range(8):
        expected.append(sampler.draw(fake_logits(expected, 75)))
    assert list(Generator(session(), PROMPT, 8, Sampler(0.7, 0.9, 5))) == expected[4:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": []}, "the prompt is empty"),
        ({"ids": [75]}, "token 75 is outside fake's vocabulary of 75"),
        ({"ids": [-1]}, "token -1 is outside"),
        ({"ids": [1] * 71}, "the prompt has 71 tokens, but the program's maximum length is 70"),
        ({"tokens": 0}, "tokens: 0 is not at least 1"),
        ({"steps": 0}, "steps: 0 is not 1 to 64"),
        ({"steps": 65}, "steps: 65 is not 1 to 64"),
        ({"steps": 2, "sampler": Sampler(1.0)}, "sampling needs the host after every token"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(Generator(session(), **{"ids": PROMPT, **options}))


def test_text_streams_and_adds_up() -> None:
    pieces: list[str] = []
    tokenizer = LetterTokenizer()
    result = generate(session(), tokenizer, "567", tokens=12, on_text=pieces.append)
    assert result.prompt_ids == (12, 5, 6, 7)
    assert list(result.token_ids) == greedy(PROMPT, 12)
    assert result.text == "".join(pieces) == tokenizer.decode(result.token_ids)
    assert len(pieces) > 6


def test_a_stream_may_be_left_early() -> None:
    stream = TextStream(session(), LetterTokenizer(), "567", tokens=30)
    for _ in stream:
        if len(stream.result().token_ids) == 3:
            break
    assert list(stream.result().token_ids) == greedy(PROMPT, 3)
    assert stream.result().stop == ""


def test_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="they do not belong together"):
        generate(session(), LetterTokenizer(vocab=76), "567")


def test_empty_text_starts_from_the_first_token_of_a_text() -> None:
    tokenizer = LetterTokenizer()
    assert encode_prompt(tokenizer, "") == [12]
    tokenizer.encode = lambda text, bos=True: []
    assert encode_prompt(tokenizer, "") == [12]
    tokenizer.bos = None
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(tokenizer, "")


def test_cost_keeps_prefill_apart() -> None:
    result = generate(session(), LetterTokenizer(), [1] * 20, tokens=6)
    assert result.prefill_cycles == 20 * CYCLES_A_TOKEN
    assert result.cycles_per_token == CYCLES_A_TOKEN
    assert result.seconds_per_token is not None and result.seconds_per_token > 0
    assert result.counters == {"mm.busy": 25, "runs": 7}
    assert result.executor == "fake"
    assert result.to_dict()["token_ids"] == list(result.token_ids)


def test_a_single_token_has_no_time_a_token() -> None:
    result = generate(session(), LetterTokenizer(), PROMPT, tokens=1)
    assert result.seconds_per_token is None and result.cycles_per_token is None


def test_unknown_cycles_stay_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from flightllm.spec.device import RunResult

    run = FakeDevice.run
    monkeypatch.setattr(
        FakeDevice, "run", lambda self, *args: RunResult(None, run(self, *args).counters)
    )
    result = generate(session(), LetterTokenizer(), PROMPT, tokens=4)
    assert result.cycles_per_token is None and result.prefill_cycles is None


def test_memory_digest_sees_one_flipped_bit() -> None:
    target = session()
    digest = generate(target, LetterTokenizer(), PROMPT, tokens=4).memory_sha256
    again = session()
    assert generate(again, LetterTokenizer(), PROMPT, tokens=4).memory_sha256 == digest
    cache = target.program.segment(1, "kv")
    (byte,) = target.device.read(1, 0, cache.base + 8, 1)
    target.device.write(1, 0, cache.base + 8, bytes([byte ^ 1]))
    assert target.memory_sha256() != digest


def test_program_for_another_board_is_refused() -> None:
    program = fake_program("tiny")
    with pytest.raises(InputError, match="compile it for this board"):
        Session(FakeDevice(fake_program("tiny-2core").config), program)


def test_top_lists_fall_and_belong_to_the_logits() -> None:
    target = session()
    target.prefill(PROMPT)
    values, ids = target.top()
    logits = fake_logits(PROMPT, 75)
    assert np.array_equal(values, logits[ids])
    assert np.all(np.diff(values) <= 0) and values[0] == logits.max()


def test_without_a_tokenizer_prompts_are_ids() -> None:
    result = generate(session(), None, PROMPT, tokens=5)
    assert list(result.token_ids) == greedy(PROMPT, 5) and result.text == ""
    with pytest.raises(InputError, match="there is no tokenizer"):
        generate(session(), None, "567")

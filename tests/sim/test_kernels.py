"""The compiled kernels equal `spec.numerics` bit for bit, on any number of threads."""

import multiprocessing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")

from flightllm.sim.functional import kernels  # noqa: E402
from flightllm.spec import numerics  # noqa: E402

GROUPS = st.sampled_from([8, 32, 64, 128])


def random_case(
    seed: int, vectors: int, rows: int, columns: int, group: int, spread: float = 0.0
) -> dict[str, Any]:
    """Arguments of `accumulate`; columns that fill no group are padded with zeros.

    `spread` widens the exponents of scales and minima, until sums flush and overflow.
    """
    rng = np.random.default_rng(seed)
    groups = -(-columns // group)

    def padded(count: int) -> np.ndarray:
        out = np.zeros((count, groups * group), np.int8)
        out[:, :columns] = rng.integers(-127, 128, (count, columns))
        return out

    def factors() -> np.ndarray:
        size = (rows, groups)
        with np.errstate(over="ignore"):
            return (rng.standard_normal(size) * 2.0 ** (spread * rng.uniform(-1, 1, size))).astype(
                np.float32
            )

    mask = rng.random((rows, groups * group)) < 0.5
    return {
        "x": padded(vectors),
        "levels": padded(rows),
        "scales": factors(),
        "group": group,
        "minima": factors(),
        "mask": mask,
    }


def restricted(case: dict[str, Any], mode: str) -> dict[str, Any]:
    """The case without minima, with minima for a dense matrix, or for a sparse one."""
    if mode == "sparse":
        return {**case, "levels": case["levels"] * case["mask"]}
    return {**case, "mask": None, "minima": case["minima"] if mode == "minima" else None}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(
    st.integers(0, 2**32),
    st.integers(1, 5),
    st.integers(1, 50),
    st.integers(1, 300),
    GROUPS,
    st.sampled_from([0.0, 20.0]),
    st.sampled_from(["plain", "minima", "sparse"]),
)
def test_accumulate(
    seed: int, vectors: int, rows: int, columns: int, group: int, spread: float, mode: str
) -> None:
    case = restricted(random_case(seed, vectors, rows, columns, group, spread), mode)
    assert same_bits(kernels.accumulate(**case), numerics.accumulate(**case))


@pytest.mark.parametrize("mode", ["plain", "minima", "sparse"])
def test_sums_near_the_smallest_number_flush(mode: str) -> None:
    case = restricted(random_case(1, 3, 33, 256, 32), mode)
    for name in ("scales", "minima"):
        if case[name] is not None:
            case[name] = case[name] * np.float32(2.0**-141)  # products about 2^-126
    out = kernels.accumulate(**case)
    assert same_bits(out, numerics.accumulate(**case))
    assert not ((np.abs(out) < 2.0**-126) & (out != 0)).any()
    assert (out == 0).any() and (out != 0).any()


def test_infinities_and_nan() -> None:
    case = restricted(random_case(2, 2, 20, 128, 32), "plain")
    case["scales"][3, 0] = np.inf
    case["scales"][4, 1] = np.nan
    case["scales"][5] = [3e38, -3e38, 1e38, -1e38]
    out, expected = kernels.accumulate(**case), numerics.accumulate(**case)
    assert np.array_equal(out, expected, equal_nan=True)
    assert not np.isfinite(out[:, 3:6]).any()


def test_largest_sums() -> None:
    x = np.full((1, 1024), -127, np.int8)
    levels = np.full((16, 1024), 127, np.int8)
    scales = np.ones((16, 1), np.float32)
    assert (kernels.accumulate(x, levels, scales, 1024) == -127.0 * 127 * 1024).all()
    wide = np.full((1, kernels.MAX_COLUMNS), 127, np.int8)
    assert (kernels.int_sums(wide, wide) == 127 * 127 * kernels.MAX_COLUMNS).all()


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 40), st.integers(1, 200))
def test_int_sums(seed: int, vectors: int, rows: int, columns: int) -> None:
    case = random_case(seed, vectors, rows, columns, 8)
    exact = case["x"].astype(np.int32) @ case["levels"].astype(np.int32).T
    assert same_bits(kernels.int_sums(case["x"], case["levels"]), exact)


def test_views_and_read_only_arrays() -> None:
    case = restricted(random_case(3, 2, 48, 128, 32), "sparse")
    expected = kernels.accumulate(**case)
    odd = {
        name: np.asfortranarray(value) if isinstance(value, np.ndarray) else value
        for name, value in case.items()
    }
    for value in odd.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    assert same_bits(kernels.accumulate(**odd), expected)


# --- threads ---

LARGE = (4, 4, 1030, 512, 128)  # several parts, the last one no whole tile


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_THREADS", threads)
    case = restricted(random_case(*LARGE), "minima")
    assert same_bits(kernels.accumulate(**case), numerics.accumulate(**case))
    exact = case["x"].astype(np.int32) @ case["levels"].astype(np.int32).T
    assert same_bits(kernels.int_sums(case["x"], case["levels"]), exact)


def _in_child(connection: Any) -> None:
    connection.send(kernels.accumulate(**restricted(random_case(*LARGE), "plain")).tobytes())


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)
def test_a_forked_child_computes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_THREADS", 2)
    here = kernels.accumulate(**restricted(random_case(*LARGE), "plain")).tobytes()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(sender,))
    child.start()
    assert receiver.poll(60), "the child hangs"
    assert receiver.recv() == here
    child.join(60)


def test_without_a_cache_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_one = kernels.njit

    def no_locator(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_one(*arguments, **options)

    monkeypatch.setattr(kernels, "njit", no_locator)
    compiled = kernels._compiled.__wrapped__(kernels._sum_rows)
    out = np.empty((1, 2), np.int32)
    compiled(np.array([[1, 2], [3, 4]], np.int8), np.array([[5, 6]], np.int16), 0, 2, out)
    assert out.tolist() == [[17, 39]]


# --- errors ---


def test_shapes_must_fit() -> None:
    case = restricted(random_case(5, 1, 16, 64, 32), "minima")
    for name, value in (
        ("levels", case["levels"][:, :32]),
        ("scales", case["scales"][:8]),
        ("group", 48),
        ("minima", case["minima"][:, :1]),
    ):
        with pytest.raises(ValueError, match="fit"):
            kernels.accumulate(**{**case, name: value})
    with pytest.raises(ValueError, match="133144"):
        kernels.int_sums(np.zeros((1, 133145), np.int8), np.zeros((1, 133145), np.int8))
    with pytest.raises(ValueError, match="number of columns"):
        kernels.int_sums(np.zeros((1, 3), np.int8), np.zeros((1, 4), np.int8))


# --- the oracle can fail ---


def fused(case: dict[str, Any]) -> np.ndarray:
    """What hardware with fused multiply-adds would give: one rounding for product and sum."""
    x, levels, scales, group = (case[name] for name in ("x", "levels", "scales", "group"))
    acc = np.zeros((x.shape[0], levels.shape[0]), np.float32)
    for g in range(scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        isum = x[:, part].astype(np.int64) @ levels[:, part].astype(np.int64).T
        acc = (acc + isum.astype(np.float64) * scales[:, g]).astype(np.float32)
    return acc


def unflushed(case: dict[str, Any]) -> np.ndarray:
    """The document's order without its flushes."""
    x, levels, scales, group = (case[name] for name in ("x", "levels", "scales", "group"))
    acc = np.zeros((x.shape[0], levels.shape[0]), np.float32)
    for g in range(scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        isum = x[:, part].astype(np.int32) @ levels[:, part].astype(np.int32).T
        acc = acc + isum.astype(np.float32) * scales[:, g]
    return acc


def test_planted_errors_are_caught() -> None:
    case = restricted(random_case(6, 2, 64, 512, 32), "plain")
    right = kernels.accumulate(**case)
    assert np.allclose(fused(case), right, rtol=1e-4)
    assert not same_bits(fused(case), right)
    backwards = {
        **case,
        "x": case["x"][:, ::-1],
        "levels": case["levels"][:, ::-1],
        "scales": case["scales"][:, ::-1],
    }
    other_order = kernels.accumulate(**backwards)
    assert np.allclose(other_order, right, rtol=1e-4)
    assert not same_bits(other_order, right)
    broken = case["levels"].copy()
    broken[7, 100] ^= 1
    assert not same_bits(kernels.accumulate(**{**case, "levels": broken}), right)
    assert same_bits(unflushed(case), right)
    case["scales"] = case["scales"] * np.float32(2.0**-141)
    assert not same_bits(unflushed(case), kernels.accumulate(**case))

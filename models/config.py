"""What a decoder-only model is, in numbers: one frozen dataclass for every supported family.

Nothing here knows a file format: `hf_config` reads Hugging Face's config.json into it, `llama2c`
reads llama2.c's header, `zoo` writes it down. `tensor_shapes` lists the canonical tensors that
follow from a configuration; every checkpoint reader is checked against that list.
"""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.spec.errors import InputError

__all__ = ["FAMILIES", "ModelConfig", "RopeConfig", "tensor_shapes"]

FAMILIES = ("llama", "opt", "gpt2")
ACTIVATIONS = ("silu", "relu", "gelu", "gelu_erf")
ROPE_KINDS = ("default", "linear", "llama3", "yarn", "explicit")
MAX_LAYERS = 4096
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base frequency and how it is stretched to longer contexts.

    Members
    -------
    theta : base of the geometric frequencies.
    kind : "default", "linear", "llama3", "yarn" or "explicit".
    factor : stretching factor, at least 1 (1 for "default").
    original_length : context before stretching, in tokens ("llama3" and "yarn").
    low_freq_factor, high_freq_factor : bounds of the interpolated band ("llama3").
    beta_fast, beta_slow : rotations that bound the ramp ("yarn", arXiv 2309.00071).
    attention_factor : what cos and sin are multiplied with ("yarn"; 1 elsewhere).
    truncate : whether the ramp's bounds are rounded outwards to whole dimensions ("yarn").
    frequencies : radians that a position turns each pair by, float32 values ("explicit": what a
        file lists outright).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    frequencies: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise InputError(f"rope: {self.kind!r} scaling is not one of {', '.join(ROPE_KINDS)}")
        if self.theta <= 1:
            raise InputError(f"rope.theta: {self.theta} is not above 1")
        if self.factor < 1:
            raise InputError(f"rope.factor: {self.factor} is below 1")
        if self.kind in ("llama3", "yarn") and (self.original_length or 0) < 1:
            raise InputError(
                f"rope.original_length: {self.original_length} is not a context length,"
                f" which {self.kind} scaling needs"
            )
        if (self.kind == "explicit") != bool(self.frequencies):
            raise InputError("rope.frequencies: explicit RoPE needs them, and no other kind does")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"rope.low_freq_factor: {self.low_freq_factor} does not lie between 0 and"
                f" high_freq_factor, {self.high_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer with norms before attention and MLP.

    Members
    -------
    family : "llama" (LLaMA 2/3, Mistral, Qwen2, TinyLlama), "opt" or "gpt2".
    vocab, dim, layers, heads, kv_heads, head_dim, ffn_dim : sizes.
    max_length : longest context in tokens.
    norm : "rms" or "layer" (LayerNorm with weight and bias). norm_eps : added to the variance.
    activation : "silu", "relu", "gelu" (tanh form) or "gelu_erf". gated : activation(gate) * up.
    rope : None where the model learns its positions. learned_positions : the opposite.
    tied : the head is the embedding. window : tokens a token attends to, itself included, or None.
    bos, eos : token ids, from the model's own configuration; none where the model has none.
    qkv_bias, o_bias, mlp_bias : which matrices carry biases.
    name : for messages and reports.

    Raises
    ------
    InputError : when a size is impossible or two members contradict each other.
    """

    family: str
    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    max_length: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    activation: str = "silu"
    gated: bool = True
    rope: RopeConfig | None = None
    learned_positions: bool = False
    tied: bool = False
    window: int | None = None
    bos: int | None = None
    eos: tuple[int, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    name: str = "model"

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_sizes()
        for label, ids in (("bos", () if self.bos is None else (self.bos,)), ("eos", self.eos)):
            for token in ids:
                if not 0 <= token < self.vocab:
                    raise InputError(
                        f"{self.name}: {label} {token} is not a token id below {self.vocab}"
                    )

    def _check_choices(self) -> None:
        choices = (
            ("family", self.family, FAMILIES),
            ("norm", self.norm, ("rms", "layer")),
            ("activation", self.activation, ACTIVATIONS),
        )
        for label, value, allowed in choices:
            if value not in allowed:
                raise InputError(
                    f"{self.name}: {label} {value!r} is not one of {', '.join(allowed)}"
                )
        if (self.rope is None) != self.learned_positions:
            raise InputError(f"{self.name}: a model has either RoPE or learned positions, not both")
        if not 0 < self.norm_eps < 1:
            raise InputError(f"{self.name}: norm_eps {self.norm_eps} does not lie between 0 and 1")

    def _check_sizes(self) -> None:
        sizes = ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "max_length")
        for label in sizes:
            value = getattr(self, label)
            if value < 1:
                raise InputError(f"{self.name}: {label} must be a positive integer, not {value}")
            # Sizes that no file can hold are refused before anything is listed or allocated.
            limit = MAX_LAYERS if label == "layers" else MAX_SIZE
            if value > limit:
                raise InputError(f"{self.name}: {label} must be at most {limit}, not {value}")
        if self.heads % self.kv_heads:
            raise InputError(
                f"{self.name}: {self.heads} query heads are not a multiple of"
                f" {self.kv_heads} key/value heads"
            )
        if self.rope is not None and self.head_dim % 2:
            raise InputError(
                f"{self.name}: head_dim {self.head_dim} is odd, but RoPE turns pairs of dimensions"
            )
        if self.rope is not None and self.rope.kind == "explicit":
            if len(self.rope.frequencies) != self.head_dim // 2:
                raise InputError(
                    f"{self.name}: {len(self.rope.frequencies)} RoPE frequencies are not one for"
                    f" each of {self.head_dim // 2} pairs"
                )
        if self.window is not None and self.window < 1:
            raise InputError(
                f"{self.name}: window must be a positive number of tokens, not {self.window}"
            )

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        total = 0
        for shape in tensor_shapes(self).values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    dim, hidden = config.dim, config.ffn_dim
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = {"q": (query, dim), "k": (key, dim), "v": (key, dim), "o": (dim, query)}
    if config.gated:
        matrices["gate"] = (hidden, dim)
    matrices |= {"up": (hidden, dim), "down": (dim, hidden)}
    biased = {"o": config.o_bias, **dict.fromkeys(("q", "k", "v"), config.qkv_bias)}
    shapes: dict[str, tuple[int, ...]] = {}
    for part, matrix in matrices.items():
        if part in ("q", "gate") or (part == "up" and not config.gated):
            norm = "attn_norm" if part == "q" else "mlp_norm"
            shapes[f"{norm}.weight"] = (dim,)
            if config.norm == "layer":
                shapes[f"{norm}.bias"] = (dim,)
        shapes[f"{part}.weight"] = matrix
        if biased.get(part, config.mlp_bias):
            shapes[f"{part}.bias"] = matrix[:1]
    return shapes


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical names of the tensors a model consists of, with their shapes, in data-flow order.

    Matrices are [out, in]. "head.weight" is listed only where it is not the embedding.
    """
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab, config.dim)}
    if config.learned_positions:
        shapes["positions"] = (config.max_length, config.dim)
    layer = _layer_shapes(config)
    for index in range(config.layers):
        shapes |= {f"layers.{index}.{part}": shape for part, shape in layer.items()}
    shapes["final_norm.weight"] = (config.dim,)
    if config.norm == "layer":
        shapes["final_norm.bias"] = (config.dim,)
    if not config.tied:
        shapes["head.weight"] = (config.vocab, config.dim)
    return shapes

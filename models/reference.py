"""The float reference: every supported family in plain torch float32, as a pure function.

It is the model as its authors defined it, without a trick: what quantisation is measured against,
what calibration observes and what training differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flightllm.models.checkpoint import Checkpoint
from flightllm.models.config import ModelConfig
from flightllm.models.rope import rope_tables
from flightllm.spec.errors import InputError

__all__ = ["FloatModel", "KVCache", "Observer", "sample"]

Observer = Callable[[str, Tensor], None]
"""Called with a linear's name and its input [B, T, K], and with heads after RoPE."""


class KVCache:
    """Keys (after RoPE) and values of the tokens seen so far; grows as it is written.

    Parameters
    ----------
    config : the model. batch : number of sequences.
    """

    def __init__(self, config: ModelConfig, batch: int = 1) -> None:
        self.limit = config.max_length
        shape = (batch, config.kv_heads, 0, config.head_dim)
        self._keys = [torch.zeros(shape) for _ in range(config.layers)]
        self._values = [torch.zeros(shape) for _ in range(config.layers)]

    def _grown(self, store: Tensor, length: int) -> Tensor:
        if length <= store.shape[2]:
            return store
        room = min(self.limit, max(length, 2 * store.shape[2], 64))
        grown = torch.zeros((*store.shape[:2], room, store.shape[3]))
        grown[:, :, : store.shape[2]] = store
        return grown

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store entries [B, kv_heads, T, head_dim] from position `start` on.

        Returns
        -------
        Keys and values of positions 0 to start + T - 1.
        """
        stop = start + keys.shape[2]
        for stores, new in ((self._keys, keys), (self._values, values)):
            stores[layer] = self._grown(stores[layer], stop)
            stores[layer][:, :, start:stop] = new.detach()
        return self._keys[layer][:, :, :stop], self._values[layer][:, :, :stop]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of x [B, heads, T, head_dim] by its angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def sample(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> int:
    """Choose a token from logits [vocab]: greedy at temperature 0, else from the top-p nucleus."""
    if temperature <= 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    # The token that crosses top_p still belongs to the nucleus.
    ordered = torch.where(ordered.cumsum(0) - ordered < top_p, ordered, 0.0)
    return int(ids[torch.multinomial(ordered, 1, generator=generator)])


class FloatModel:
    """A decoder-only model in float32.

    Parameters
    ----------
    config : what the model is.
    tensors : the canonical tensors (`config.tensor_shapes`), float32; a tied head is not needed.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config, self.tensors = config, tensors
        self._tables: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> FloatModel:
        """All of a checkpoint's tensors, converted to float32, in memory."""
        tensors = {name: checkpoint.tensor(name).float() for name in checkpoint.names}
        return cls(checkpoint.config, tensors)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        start: int = 0,
        observe: Observer | None = None,
    ) -> Tensor:
        """Logits after each token.

        Parameters
        ----------
        ids : int64 [B, T], the tokens at positions start to start + T - 1.
        cache : holds positions 0 to start - 1 and receives the new ones; gradients do not flow
            into it. Without it, start must be 0.
        observe : called as observe("layers.3.down", x [B, T, K]) with each linear's input ("head"
            for the last), and as observe("layers.3.q_heads", x [B, T, heads, head_dim]) and
            "k_heads" with the heads after RoPE.

        Returns
        -------
        float32 [B, T, vocab].

        Raises
        ------
        InputError : when the tokens run past the model's longest context.
        """
        stop = start + ids.shape[1]
        if stop > self.config.max_length:
            raise InputError(
                f"{self.config.name}: {stop} tokens do not fit the context of"
                f" {self.config.max_length}"
            )
        if start and cache is None:
            raise ValueError(f"start is {start}, but there is no cache of what came before")
        x = functional.embedding(ids, self.tensors["embed"])
        if self.config.learned_positions:
            x = x + self.tensors["positions"][start:stop]
        for layer in range(self.config.layers):
            x = x + self._attention(layer, x, cache, start, observe)
            x = x + self._mlp(layer, x, observe)
        x = self._norm("final_norm", x)
        if observe is not None:
            observe("head", x)
        return x @ self.tensors["embed" if self.config.tied else "head.weight"].T

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        if self.config.norm == "rms":
            mean = x.square().mean(-1, keepdim=True)
            return x * torch.rsqrt(mean + self.config.norm_eps) * weight
        bias = self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self.config.norm_eps)

    def _linear(self, name: str, x: Tensor, observe: Observer | None) -> Tensor:
        if observe is not None:
            observe(name, x)
        bias = self.tensors.get(f"{name}.bias")
        return functional.linear(x, self.tensors[f"{name}.weight"], bias)

    def _angles(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions start to stop - 1, from a table that grows."""
        if self._tables is None or len(self._tables[0]) < stop:
            length = min(self.config.max_length, max(2 * stop, 256))
            cos, sin = rope_tables(self.config, length)
            self._tables = torch.from_numpy(cos), torch.from_numpy(sin)
        return self._tables[0][start:stop], self._tables[1][start:stop]

    def _attention(
        self, layer: int, x: Tensor, cache: KVCache | None, start: int, observe: Observer | None
    ) -> Tensor:
        config, path = self.config, f"layers.{layer}"
        h = self._norm(f"{path}.attn_norm", x)
        # [B, heads, T, head_dim]
        query, key, value = (
            self._linear(f"{path}.{part}", h, observe)
            .view(*x.shape[:2], -1, config.head_dim)
            .transpose(1, 2)
            for part in ("q", "k", "v")
        )
        if config.rope is not None:
            cos, sin = self._angles(start, start + x.shape[1])
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if observe is not None:
            observe(f"{path}.q_heads", query.transpose(1, 2))
            observe(f"{path}.k_heads", key.transpose(1, 2))
        if cache is not None:
            key, value = cache.write(layer, start, key, value)
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask(start, x.shape[1]), enable_gqa=True
        )
        return self._linear(f"{path}.o", out.transpose(1, 2).flatten(2), observe)

    def _mask(self, start: int, length: int) -> Tensor | None:
        """Which of the tokens so far each of the new ones attends to, bool [T, start + T]."""
        stop, window = start + length, self.config.window
        if length == 1 and (window is None or window >= stop):
            return None
        distance = torch.arange(start, stop)[:, None] - torch.arange(stop)[None, :]
        seen = distance >= 0
        return seen if window is None else seen & (distance < window)

    def _mlp(self, layer: int, x: Tensor, observe: Observer | None) -> Tensor:
        path = f"layers.{layer}"
        h = self._norm(f"{path}.mlp_norm", x)
        up = self._linear(f"{path}.up", h, observe)
        if self.config.gated:
            inner = self._activate(self._linear(f"{path}.gate", h, observe)) * up
        else:
            inner = self._activate(up)
        return self._linear(f"{path}.down", inner, observe)

    def _activate(self, x: Tensor) -> Tensor:
        match self.config.activation:
            case "silu":
                return functional.silu(x)
            case "relu":
                return functional.relu(x)
            case "gelu":
                return functional.gelu(x, approximate="tanh")
            case _:
                return functional.gelu(x)

    @torch.no_grad()
    def generate(
        self,
        ids: Sequence[int],
        tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Collection[int] = (),
    ) -> list[int]:
        """Continue a prompt with the KV cache.

        Parameters
        ----------
        ids : the prompt, at least one token.
        tokens : how many to generate at most; fewer when the context is full.
        temperature : 0 for greedy. top_p : nucleus to sample from. seed : of the sampling.
        stop : tokens that end the text; the one met is the last returned.

        Returns
        -------
        The generated tokens, without the prompt.
        """
        if not ids:
            raise InputError("the prompt is empty: give at least one token")
        generator = torch.Generator().manual_seed(seed)
        cache, start, out = KVCache(self.config), 0, list[int]()
        pending = list(ids)
        for _ in range(min(tokens, self.config.max_length - len(ids) + 1)):
            logits = self.forward(torch.tensor([pending]), cache, start)[0, -1]
            start += len(pending)
            out.append(sample(logits, temperature, top_p, generator))
            pending = out[-1:]
            if out[-1] in stop:
                break
        return out

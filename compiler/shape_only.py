"""The shape of a model without weights: sizes from its configuration, widths by a stated rule.

After folding, a LayerNorm's bias stands in the biases of the projections that read it, so such a
model has biases there whatever its checkpoint holds.
"""

from __future__ import annotations

from flightllm.compiler.block_patterns import rule_patterns
from flightllm.compiler.grid import grid_for
from flightllm.compiler.mixed import mixed_widths_for_shapes
from flightllm.compiler.scheme import QuantOptions, group_for
from flightllm.compiler.shape import MATRICES, MatrixPlan, ModelShape
from flightllm.models.config import ModelConfig
from flightllm.spec.errors import InputError
from flightllm.spec.formats import MatrixFormat

__all__ = ["check_supported", "shape_only"]


def _plan(bits: int, columns: int, group: int, kept: int, private: bool) -> MatrixPlan:
    table = grid_for(bits).table
    fmt = MatrixFormat(
        bits, group_for(columns, group), kept=kept, private=private and kept != 16,
        indices=kept == 2, table=table is not None,
    )  # fmt: skip
    return MatrixPlan(fmt, table)


def _biases(config: ModelConfig) -> frozenset[str]:
    folded = config.norm == "layer"
    out: set[str] = set()
    if config.qkv_bias or folded:
        out |= {"q", "k", "v"}
    if config.mlp_bias or folded:
        out |= {"gate", "up"} if config.gated else {"up"}
    if config.o_bias:
        out.add("o")
    if config.mlp_bias:
        out.add("down")
    if folded:
        out.add("head")
    return frozenset(out)


def check_supported(config: ModelConfig) -> None:
    """Refuse an activation that the device does not have.

    Raises
    ------
    InputError : for a gate with anything but SiLU, or SiLU without a gate.
    """
    if config.gated != (config.activation == "silu"):
        form = "with" if config.gated else "without"
        raise InputError(
            f"{config.name}: activation {config.activation!r} {form} a gate is not supported"
            " (silu with a gate; relu or gelu without)"
        )


def shape_only(config: ModelConfig, options: QuantOptions) -> ModelShape:
    """What the back end compiles for `config` quantised by `options`.

    Raises
    ------
    InputError
        For "as-is": a shape has no codes of its own. For a density that attention cannot have, and
        an activation that the device does not.
    """
    check_supported(config)
    scheme = options.scheme()
    if scheme is None:
        raise InputError(f"{config.name}: a shape has no codes to take as-is; give --weights")
    names = [n for n in MATRICES if n != "gate" or config.gated]
    widths = mixed_widths_for_shapes(config, scheme.bits)
    hidden = config.heads * config.head_dim
    columns = {"o": hidden, "down": config.ffn_dim}
    layers = tuple(
        {
            name: _plan(
                layer[name], columns.get(name, config.dim), scheme.group, options.kept,
                options.masks == "rows",
            )
            for name in names
        }
        for layer in widths
    )  # fmt: skip
    head = _plan(options.head_bits, config.dim, scheme.group, 16, False)
    activation = {"gelu_erf": "gelu"}.get(config.activation, config.activation)
    return ModelShape(
        config.name, config.dim, config.heads, config.kv_heads, config.head_dim, config.ffn_dim,
        config.vocab, config.max_length, config.norm_eps, activation, *options.kv_bits,
        config.window,
        config.rope is not None, config.learned_positions, _biases(config), layers, head,
        rule_patterns(config, options.attention_density),
    )  # fmt: skip

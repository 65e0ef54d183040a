"""Checkpoint to QuantModel: fold, calibrate, smooth, prune and quantise, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flightllm.compiler import calibrate, fisher, mixed, sensitivity, smooth
from flightllm.compiler.as_is import FALLBACK, AsIsReport, keep, obstacle, unwanted
from flightllm.compiler.block import linear
from flightllm.compiler.block_sparse import MaskedAttention
from flightllm.compiler.compensation import Prepared, corrected_bias, prune_matrix, round_matrix
from flightllm.compiler.fold import (
    MATRICES,
    FoldedEnds,
    FoldedLayer,
    fold_ends,
    fold_layer,
    pair_order,
)
from flightllm.compiler.grid import grid_for
from flightllm.compiler.ladder import FLOAT, Ladder
from flightllm.compiler.prune import Pruning
from flightllm.compiler.quant_report import (
    MatrixReport,
    QuantReport,
    average_bits,
    pass_reports,
    pruned_bits,
    stored_bits,
)
from flightllm.compiler.recover import recover
from flightllm.compiler.scaling import head_factor, scale_layer
from flightllm.compiler.scheme import AS_IS, QuantOptions, group_for
from flightllm.compiler.shape_only import check_supported
from flightllm.compiler.store import LayerStore, StoredLayers
from flightllm.compiler.streams import Streams, divergence
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.quantized import QuantLayer, QuantLinear, QuantModel
from flightllm.models.rope import rope_tables
from flightllm.spec.quant import QuantTensor

__all__ = ["Progress", "Quantised", "quantise"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""
EASING_SEQUENCES = 16
"""Calibration texts on which channels are balanced and K is smoothed."""


@dataclass(frozen=True)
class Quantised:
    """A quantised model and what it cost."""

    model: QuantModel
    report: QuantReport


@torch.no_grad()
def quantise(
    checkpoint: Checkpoint, options: QuantOptions, progress: Progress | None = None,
    store: LayerStore | None = None,
) -> Quantised:  # fmt: skip
    """Quantise a checkpoint.

    Parameters
    ----------
    checkpoint : with weights. options : see `QuantOptions`.
    progress : told of each step.
    store : where finished layers are kept, so that only one is in memory; without calibration
        those of an earlier run are taken over.

    Returns
    -------
    The same result for the same checkpoint, options and machine.

    Raises
    ------
    InputError : for a shape without weights, a model that the device cannot run, tensors that are
        not finite, or calibration text that cannot be used.
    """
    tell = progress or (lambda what, done, total: None)
    build = _Build(checkpoint, options, tell, store)
    made = build.result()
    passes = made.report.passes
    if options.recover != "none":
        model, report = recover(checkpoint, made.model, options, tell)
        passes.append(report)
        made = replace(made, model=model)
    if build.attention is not None:
        passes.append(build.attention.report(made.model, passes[-1]))
    return made


@dataclass(frozen=True)
class _Site:
    """A linear's input in the float stream (h) and the quantised one (g) [B, T, K]."""

    h: Tensor
    g: Tensor
    prepared: Prepared


class _Build:
    """One run of `quantise`."""

    def __init__(
        self, checkpoint: Checkpoint, options: QuantOptions, progress: Progress,
        store: LayerStore | None,
    ) -> None:  # fmt: skip
        self.store = store
        self.checkpoint, self.options, self.progress = checkpoint, options, progress
        self.config = config = checkpoint.config
        check_supported(config)
        self.length = options.length(config.max_length)
        self.scheme = options.scheme(bool(checkpoint.code_readers))
        self.report = QuantReport(
            AS_IS if self.scheme is None else str(self.scheme), options.sparsity, "none"
        )
        self.pruning = Pruning(options.kept, options.pruning, options.masks == "rows")
        self.as_is = AsIsReport()
        self.streams: Streams | None = None
        self.ladder: Ladder | None = None
        self.pruned: dict[str, Tensor] = {}
        self.curvature: list[dict[str, Tensor]] | None = None
        self.head_curvature: Tensor | None = None
        self.attention: MaskedAttention | None = None
        if config.activation == "gelu_erf":
            self.note("GELU is computed in its tanh form")

    @cached_property
    def ends(self) -> FoldedEnds:
        """Embedding and head, read when they are first needed."""
        return fold_ends(self.checkpoint)

    def note(self, text: str) -> None:
        """Tell the user something once."""
        if text not in self.report.notes:
            self.report.notes.append(text)

    # ------------------------------------------------------------------ before the layers

    def _calibrate(self) -> None:
        """Get the text and set both streams to the embedding."""
        options, checkpoint = self.options, self.checkpoint
        sequences, length = calibrate.calibration_size(self.config)
        if options.calibrate == "none":
            return
        if options.calibrate == "auto":
            found = calibrate.sampled(
                checkpoint,
                sequences,
                length,
                options.seed,
                lambda done, total: self.progress("sample calibration text", done, total),
            )
        else:
            found = calibrate.from_file(checkpoint, options.calibrate, sequences, length)
        self.report.calibration = found.source
        self.streams = Streams(self.config, self.ends, found, options.kv_bits)
        self.ladder = Ladder(self.streams)
        balanced = self.scheme is not None and options.scaling == "balance"
        if balanced and fisher.affordable(self.config, fisher.SEQUENCES * length):
            self.progress("measure curvature", 0, 1)
            layers = [fold_layer(checkpoint, i) for i in range(self.config.layers)]
            self.curvature, self.head_curvature = fisher.output_curvature(
                layers, self.ends, self.streams, options.seed
            )

    def _widths(self) -> mixed.Widths:
        """Bits of every matrix."""
        scheme = self.scheme or FALLBACK
        sizes = mixed.matrix_sizes(self.config)
        if not scheme.mixed:
            return mixed.by_layer(dict.fromkeys(sizes, int(scheme.bits)))
        self.progress("measure sensitivities", 0, 1)
        choices = mixed.candidate_widths(scheme.bits)
        layers = (fold_layer(self.checkpoint, i) for i in range(self.config.layers))
        streams, group, kept = self.streams, scheme.group, self.options.kept
        tokens = 0 if streams is None else sensitivity.SEQUENCES * streams.x.shape[1]
        if streams is not None and sensitivity.affordable(self.config, tokens, len(choices)):
            losses = sensitivity.by_divergence(
                list(layers), self.ends, streams, choices, group, kept
            )
        else:
            losses = sensitivity.by_output_error(layers, streams, choices, group, kept)
        chosen = mixed.solve_widths(losses, list(sizes.values()), choices, scheme.bits)
        return mixed.by_layer(dict(zip(sizes, chosen)))

    # ------------------------------------------------------------------ one matrix

    def _kept_codes(self, name: str, row_factor: Tensor | None) -> QuantTensor | None:
        """The checkpoint's own codes of a matrix, where they are wanted and can be held."""
        if self.scheme is not None:
            return None
        codes = self.checkpoint.codes(f"{name}.weight")
        why = unwanted(name, self.config, self.options)
        if codes is None:
            why = "the checkpoint has no codes of it"
        elif why is None:
            why = obstacle(codes)
        if codes is None or why is not None:
            self.as_is.refused(name, why or "")
            return None
        order = None
        if self.config.rope is not None and name.endswith((".q", ".k")):
            heads = codes.levels.shape[0] // self.config.head_dim
            order = pair_order(heads, self.config.head_dim).numpy()
        made = keep(codes, order, None if row_factor is None else row_factor.numpy())
        self.as_is.kept(name, made)
        return made.tensor

    def _rounded(self, name: str, weight: Tensor, bits: int, site: _Site | None) -> QuantTensor:
        """Prune and round one matrix; the head stays dense."""
        grid, group = grid_for(bits), group_for(weight.shape[1], (self.scheme or FALLBACK).group)
        pruning = Pruning() if name == "head" else self.pruning
        prepared = None if site is None else site.prepared
        if prepared is not None and not pruning.dense:
            self.pruned[name.split(".")[-1]] = prune_matrix(weight, prepared, pruning)[0]
        made = round_matrix(weight, prepared, self.options.rounding, grid, group, pruning)
        return QuantTensor(
            levels=made.levels.to(torch.int8).numpy(),
            scales=made.scales.half().numpy(),
            bits=grid.bits,
            group=group,
            table=grid.table,
            kept=pruning.kept,
            mask=None if made.mask is None else made.mask.numpy(),
            private=pruning.private and made.mask is not None,
        )

    def _linear(
        self, name: str, weight: Tensor, bias: Tensor | None, bits: int, site: _Site | None,
        row_factor: Tensor | None = None,
    ) -> QuantLinear:  # fmt: skip
        """Quantise matrix `name` ("layers.3.down", "head") and correct its bias."""
        tensor = self._kept_codes(name, row_factor)
        if tensor is None:
            tensor = self._rounded(name, weight, bits, site)
        made, new_bias = torch.from_numpy(tensor.dequantised()), bias
        if bias is not None and site is not None and self.streams is not None:
            owed = self.streams.mean_owed() if name.endswith((".o", ".down")) else None
            new_bias = corrected_bias(bias, weight, made, site.prepared.moments, owed)
        wanted, got = weight, made
        if site is not None and self.streams is not None:
            wanted = linear(site.h[self.streams.held], weight, bias)
            got = linear(site.g[self.streams.held], made, new_bias)
        error = float((wanted - got).norm() / wanted.norm().clamp(min=1e-20))
        self.report.matrices.append(
            MatrixReport(name, *tensor.shape, tensor.bits, tensor.group, tensor.kept, error,
                         stored_bits(tensor))
        )  # fmt: skip
        return QuantLinear(tensor, None if new_bias is None else new_bias.numpy())

    # ------------------------------------------------------------------ one layer

    def _eased(
        self, layer: FoldedLayer, widths: dict[str, int], curvature: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, FoldedLayer], dict[str, Tensor]]:
        """The layer, after scaling, after K smoothing; and (as-is) what multiplied its rows.

        A matrix of stored codes can take up neither columns' factors nor turned rows.
        """
        streams, config, free = self.streams, self.config, self.scheme is not None
        smooth_k = self.options.smooth_k and config.head_dim % 2 == 0
        made = {"": layer}
        if streams is None:
            if not smooth_k:
                return made, {}
            smoothing = smooth.smoothing_from_weights(layer, config)
            smoothing = smoothing if free else smoothing.by_powers_of_two()
            rows = {} if free else smooth.row_factors(smoothing, config.heads)
            return made | {"smooth k": smooth.apply_smoothing(layer, smoothing)}, rows
        x, exact = streams.x[:EASING_SEQUENCES], streams.exact
        group = (self.scheme or FALLBACK).group
        if free and self.options.scaling != "none":
            valid = streams.valid[:EASING_SEQUENCES]
            inputs = {n: v[valid] for n, v in streams.inputs(layer, x, exact).items()}
            layer = scale_layer(
                self.options.scaling, layer, inputs, config, widths, group, curvature
            )
            made["scale"] = layer
        if not smooth_k:
            return made, {}
        h = exact.norm(x, layer.attn_norm)
        q, k, _ = streams.heads(layer, h, exact)
        valid = h[streams.valid[:EASING_SEQUENCES]]
        energies = {"k": valid.var(0, unbiased=False), "q": valid.square().mean(0)}
        noise = tuple(
            smooth.weight_noise(layer.weights[name], energy, config, widths[name], group)
            for name, energy in energies.items()
        )
        smoothing = smooth.smoothing_from_heads(q, k, streams.rounded, noise, turn=free)
        smoothing = smoothing if free else smoothing.by_powers_of_two()
        rows = {} if free else smooth.row_factors(smoothing, config.heads)
        return made | {"smooth k": smooth.apply_smoothing(layer, smoothing)}, rows

    def _site(self, h: Tensor, g: Tensor, residual: bool = False) -> _Site:
        assert self.streams is not None
        return _Site(h, g, Prepared(self.streams.moments(h, g, residual)))

    def _layer(self, index: int, widths: dict[str, int]) -> QuantLayer:
        original = fold_layer(self.checkpoint, index)
        curvature = None if self.curvature is None else self.curvature[index]
        eased, rows = self._eased(original, widths, curvature)
        layer = list(eased.values())[-1]
        done: dict[str, QuantLinear] = {}

        def run(names: tuple[str, ...], site: _Site | None) -> FoldedLayer:
            """Quantise the matrices of one input; gives the layer with all that is done so far."""
            for name in (name for name in names if name in layer.weights):
                weight, bias = layer.weights[name], layer.biases.get(name)
                done[name] = self._linear(
                    f"layers.{index}.{name}", weight, bias, widths[name], site, rows.get(name)
                )
            return _with(layer, done)

        if self.streams is None:
            run(MATRICES, None)
        else:
            self._through(self.streams, layer, run)
        if self.ladder is not None:
            del eased[""]
            key, value = self.options.kv_bits
            plain = ["vectors", *["values"] * (value == 4), *["keys"] * (key == 4)]
            steps = {FLOAT: original, **dict.fromkeys(plain, original), **eased}
            if self.pruned:
                steps["prune"] = layer.with_weights(self.pruned, {})
            self.ladder.step({**steps, "round": _with(layer, done)})
            self.pruned = {}
        return QuantLayer(
            attn_norm=layer.attn_norm.numpy(),
            mlp_norm=layer.mlp_norm.numpy(),
            patterns=None if self.attention is None else self.attention.masks.patterns[index],
            **{name: done.get(name) for name in MATRICES},  # type: ignore[arg-type]
        )

    def _through(
        self, streams: Streams, layer: FoldedLayer,
        run: Callable[[tuple[str, ...], _Site | None], FoldedLayer],
    ) -> None:  # fmt: skip
        """Take both streams through a layer, quantising each matrix when its input is known."""
        exact, quant = streams.exact, streams.rounded
        h, g = exact.norm(streams.x, layer.attn_norm), quant.norm(streams.y, layer.attn_norm)
        rounded = run(("q", "k", "v"), self._site(h, g))
        h, g = streams.attention(layer, h, exact), streams.attention(rounded, g, quant)
        rounded = run(("o",), self._site(h, g, residual=True))
        streams.add("o", layer, rounded, h, g)
        h, g = exact.norm(streams.x, layer.mlp_norm), quant.norm(streams.y, layer.mlp_norm)
        rounded = run(("gate", "up"), self._site(h, g))
        h, g = streams.inner(layer, h, exact), streams.inner(rounded, g, quant)
        rounded = run(("down",), self._site(h, g, residual=True))
        streams.add("down", layer, rounded, h, g)
        self.report.residual_errors.append(streams.residual_error())

    def _store_layer(self, store: LayerStore, index: int, widths: dict[str, int]) -> None:
        """Make a layer and put it away, or find it; what it was made from depends on no other."""
        if self.streams is None and store.has(index):
            self.report.matrices += store.reports(index)
            self.as_is.events += store.events(index)
            self.note("layers that an earlier run had finished were taken over")
            return
        matrices, events = len(self.report.matrices), len(self.as_is.events)
        layer = self._layer(index, widths)
        store.save(index, layer, self.report.matrices[matrices:], self.as_is.events[events:])

    # ------------------------------------------------------------------ after the layers

    def _head(self) -> QuantLinear:
        ends, streams, options = self.ends, self.streams, self.options
        bits = options.head_bits
        if streams is None:
            return self._linear("head", ends.head, ends.head_bias, bits, None)
        if self.scheme is not None:
            part = slice(0, EASING_SEQUENCES)
            h = streams.exact.norm(streams.x[part], ends.final_norm)[streams.valid[part]]
            factor = head_factor(
                options.scaling, h, ends.head, bits, self.scheme.group, self.head_curvature
            )
            ends = replace(ends, head=ends.head * factor, final_norm=ends.final_norm / factor)
            self.ends = ends
        h = streams.exact.norm(streams.x, ends.final_norm)
        g = streams.rounded.norm(streams.y, ends.final_norm)
        head = self._linear("head", ends.head, ends.head_bias, bits, self._site(h, g))
        made = torch.from_numpy(head.weight.dequantised())
        bias = None if head.bias is None else torch.from_numpy(head.bias)
        held = streams.held
        self.report.divergence, self.report.top1_agreement = divergence(
            linear(h[held], ends.head, ends.head_bias), linear(g[held], made, bias)
        )
        return head

    def result(self) -> Quantised:
        """Do everything."""
        if self.options.attention_density < 1:
            self.attention = MaskedAttention(self.checkpoint, self.options, self.progress)
            self.report.attention = str(self.attention.masks)
        self._calibrate()
        widths, layers = self._widths(), []
        for index in range(self.config.layers):
            self.progress("quantise layers", index, self.config.layers + 1)
            if self.store is None:
                layers.append(self._layer(index, widths[index]))
            else:
                self._store_layer(self.store, index, widths[index])
        self.progress("quantise layers", self.config.layers, self.config.layers + 1)
        original = self.ends
        head = self._head()  # before the model: it may move a part of the final norm's gain
        for text in self.as_is.notes(str(FALLBACK)):
            self.note(text)
        stored = None if self.store is None else StoredLayers(self.store, self.config.layers)
        model = self._model(tuple(layers) if stored is None else stored, head)
        self.progress("quantise layers", self.config.layers + 1, self.config.layers + 1)
        self.report.code_bits, self.report.average_weight_bits = average_bits(model)
        self._report_passes(original, head)
        return Quantised(model, self.report)

    def _report_passes(self, original: FoldedEnds, head: QuantLinear) -> None:
        """Report each pass that changed something."""
        options, matrices, ladder = self.options, self.report.matrices, self.ladder
        fixed = self.scheme is None
        methods = {
            "vectors": "INT8",
            "values": "V in 4 bits",
            "keys": "K in 4 bits",
            "scale": options.scaling,
            "smooth k": "scale" if fixed else "turn and scale",
            "prune": f"{options.pruning} {options.sparsity}, masks by {options.masks}",
            "round": AS_IS if fixed else f"{options.rounding} {self.report.scheme}",
        }
        errors, found = {}, {}
        if ladder is None:
            sparse = "magnitude " + options.sparsity
            methods = {"prune": sparse, "round": f"nearest {self.report.scheme}"}
            if options.kept == 16:
                del methods["prune"]
        else:
            errors = ladder.errors
            made = torch.from_numpy(head.weight.dequantised())
            bias = None if head.bias is None else torch.from_numpy(head.bias)
            last = replace(self.ends, head=made, head_bias=bias)
            ends = dict.fromkeys((FLOAT, "vectors", "values", "keys"), original) | {"round": last}
            found = ladder.finish({name: ends.get(name, self.ends) for name in errors})
            methods = {name: methods[name] for name in errors if name != FLOAT}
        weights = sum(m.rows * m.columns for m in matrices)
        dense = 16.0 * weights
        bits = dict.fromkeys(methods, dense) | {
            "prune": sum(
                pruned_bits(m.rows, m.columns, m.kept, self.pruning.private) for m in matrices
            ),
            "round": sum(m.stored_bits for m in matrices),
        }
        self.report.passes = pass_reports(methods, bits, weights, errors, found)

    def _model(self, layers: Sequence[QuantLayer], head: QuantLinear) -> QuantModel:
        config, ends = self.config, self.ends
        positions = None if ends.positions is None else ends.positions[: self.length]
        cos, sin = (None, None) if config.rope is None else rope_tables(config, self.length)
        return QuantModel(
            dim=config.dim,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            ffn_dim=config.ffn_dim,
            vocab=config.vocab,
            max_length=self.length,
            norm_eps=config.norm_eps,
            activation="gelu" if config.activation == "gelu_erf" else config.activation,
            key_bits=self.options.kv_bits[0],
            value_bits=self.options.kv_bits[1],
            window=config.window,
            embed=ends.embed.half().numpy(),
            positions=None if positions is None else positions.half().numpy(),
            cos=cos,
            sin=sin,
            layers=layers,
            final_norm=ends.final_norm.numpy(),
            head=head,
        )


def _with(layer: FoldedLayer, done: dict[str, QuantLinear]) -> FoldedLayer:
    """The layer with what is quantised so far in place of the original."""
    weights = {name: torch.from_numpy(d.weight.dequantised()) for name, d in done.items()}
    biases = {name: torch.from_numpy(d.bias) for name, d in done.items() if d.bias is not None}
    return layer.with_weights(weights, biases)

"""Bridges as a PEFT tuner of type SPARSE_BRIDGE.

The inputs of a model's norms (GPT-2: ln_1, ln_2, ln_f) are the residuals hd_i. So the tuner wraps these norms: each wrapper holds an
encoder f_i (linear, bias, AbsTopK) and a decoder g_i (linear, bias). Its forward is the norm's own, so a bridged dense model computes the
same bits as before; inside `steered` a given change is added to the norm's output, which is what the sublayer reads. Paper: Sec. 2.3,
App. A.3, A.4. Shapes and symbols: `extractor.bridges`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from extractor.models.dense.base import dense_types, norms_of
from extractor.sparse.abs_topk import abs_topk


class BridgePeftType(enum.StrEnum):
    """PEFT's own enum cannot be extended; its tables take any string-like member."""

    SPARSE_BRIDGE = "SPARSE_BRIDGE"


@dataclass
class SparseBridgeConfig(PeftConfig):
    """Widths D (d_dense) and S (d_sparse), the fraction of channels that the encoder's AbsTopK keeps, and the sparse model of the pair.

    crossed   first and last of the sites between which the sparse model differs from the dense one; encoders elsewhere keep all channels
    """

    d_dense: int | None = None
    d_sparse: int = 128
    encoder_frac: float = 0.25
    sparse_model_name_or_path: str | None = None
    crossed: list[int] | None = None
    target_modules: set[str] | list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BridgePeftType.SPARSE_BRIDGE


@dataclass
class Scaling:
    """The normalisation of a site's dense residuals during training: (h - mean) / scale, both (D,)."""

    mean: Tensor
    scale: Tensor


class BridgeSite(nn.Module, BaseTunerLayer):
    """One wrapped norm with its encoder and decoder, per adapter name."""

    adapter_layer_names = ("bridge_encoder", "bridge_decoder")
    other_param_names = ("kept", "crossed")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SparseBridgeConfig):
        super().__init__()
        self.base_layer = base_layer
        self.bridge_encoder = nn.ModuleDict()
        self.bridge_decoder = nn.ModuleDict()
        self.kept: dict[str, int] = {}
        self.crossed: dict[str, list[int] | None] = {}
        self.scaling: dict[str, Scaling] = {}
        self.merged_adapters: list[str] = []
        self._steer: Tensor | None = None
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SparseBridgeConfig) -> None:
        """Add the encoder and decoder of one adapter, drawn with std 0.3/sqrt(inputs)."""
        width = int(self.get_parameter("base_layer.weight").shape[0])
        self.kept[adapter_name] = max(1, round(config.encoder_frac * config.d_sparse))
        self.crossed[adapter_name] = config.crossed
        for layers, inputs, outputs in ((self.bridge_encoder, width, config.d_sparse), (self.bridge_decoder, config.d_sparse, width)):
            layer = nn.Linear(inputs, outputs)
            nn.init.normal_(layer.weight, std=0.3 / inputs**0.5)
            nn.init.zeros_(layer.bias)
            layers[adapter_name] = layer
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def encode(self, h: Tensor) -> Tensor:
        """Sparse residual (..., S) from dense residual (..., D)."""
        name = self.active_adapters[0]
        return abs_topk(self.bridge_encoder[name](self.normalised(h)), self.kept[name])

    def decode(self, h: Tensor) -> Tensor:
        """Dense residual (..., D) from sparse residual (..., S)."""
        out, scaling = self.decode_normalised(h), self.scaling.get(self.active_adapters[0])
        return out if scaling is None else torch.addcmul(scaling.mean, out, scaling.scale)

    def decode_normalised(self, h: Tensor) -> Tensor:
        """`decode` in the coordinates of `normalised`."""
        return self.bridge_decoder[self.active_adapters[0]](h)

    def normalised(self, h: Tensor) -> Tensor:
        """A dense residual (..., D) in the encoder's coordinates: normalised during training, unchanged afterwards."""
        scaling = self.scaling.get(self.active_adapters[0])
        return h if scaling is None else (h - scaling.mean) / scaling.scale

    @torch.no_grad()
    def set_maps(self, encoder: Tensor, decoder: Tensor) -> None:
        """Set the maps: a dense residual h is encoded as encoder @ h, (S, D), a sparse one s decoded as decoder @ s, (D, S)."""
        scaling = self.scaling.get(self.active_adapters[0])
        into, back = self._maps()
        for layer, weight in ((into, encoder), (back, decoder)):
            layer.weight.copy_(weight)
            layer.bias.zero_()
        if scaling is not None:
            into.bias.copy_(encoder @ scaling.mean)
            into.weight.mul_(scaling.scale)
            back.bias.copy_(-scaling.mean / scaling.scale)
            back.weight.div_(scaling.scale[:, None])

    @torch.no_grad()
    def fold_scaling(self) -> None:
        """Move the active adapter's normalisation into its weights. The maps stay the same, and only the weights need to be saved."""
        scaling = self.scaling.pop(self.active_adapters[0], None)
        if scaling is None:
            return
        into, back = self._maps()
        into.weight.div_(scaling.scale)
        into.bias.sub_(into.weight @ scaling.mean)
        back.weight.mul_(scaling.scale[:, None])
        back.bias.mul_(scaling.scale).add_(scaling.mean)

    def _maps(self) -> tuple[nn.Linear, nn.Linear]:
        """Encoder and decoder of the active adapter."""
        name = self.active_adapters[0]
        into, back = self.bridge_encoder[name], self.bridge_decoder[name]
        assert isinstance(into, nn.Linear)
        assert isinstance(back, nn.Linear)
        return into, back

    @contextmanager
    def steered(self, change: Tensor) -> Iterator[None]:
        """Inside the block `change`, which broadcasts to (B, T, D), is added to this norm's output, unless adapters are disabled."""
        before, self._steer = self._steer, change
        try:
            yield
        finally:
            self._steer = before

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if self._steer is None or self.disable_adapters:
            return out
        change = self._steer.to(out.dtype)
        return out + (change.reshape(out.shape) if change.dim() > out.dim() else change)  # OPT's MLP reads all tokens in one row

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError("bridges read the dense model and cannot be merged into it; use unload()")


class SparseBridgeModel(BaseTuner):
    """The tuner: wraps the norms that read the residual stream."""

    prefix = "bridge_"
    tuner_layer_cls = BridgeSite
    target_module_mapping = {name: list(norms_of(name)) for name in dense_types()}  # noqa: RUF012 - PEFT's own class attribute

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None) -> None:
        if isinstance(target, BridgeSite):
            target.update_layer(adapter_name, peft_config)
            return
        site = BridgeSite(target, adapter_name, peft_config)
        if adapter_name != self.active_adapter:
            site.requires_grad_(False)
        self._replace_module(parent, target_name, site, target)

    def _prepare_adapter_config(self, peft_config, model_config):
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        peft_config.d_dense = peft_config.d_dense or model_config.get("hidden_size") or model_config.get("n_embd")
        return peft_config

    def _check_merge_allowed(self) -> None:
        raise ValueError("bridges read the dense model and cannot be merged into it; use unload()")


PEFT_TYPE_TO_CONFIG_MAPPING[BridgePeftType.SPARSE_BRIDGE] = SparseBridgeConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[BridgePeftType.SPARSE_BRIDGE] = SparseBridgeModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[BridgePeftType.SPARSE_BRIDGE] = "bridge_"  # type: ignore[index]


def bridge_sites(model: nn.Module) -> list[BridgeSite]:
    """The 2L + 1 wrapped norms of a bridged model, in the order its forward pass meets them: those of the blocks, then the final one."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, BridgeSite)]
    sites = [module for _, module in sorted(found, key=lambda one: not any(part.isdecimal() for part in one[0].split(".")))]
    for index, site in enumerate(sites):
        for name, crossed in site.crossed.items():
            if crossed is not None and not crossed[0] <= index <= crossed[1]:
                site.kept[name] = int(site.get_parameter(f"bridge_decoder.{name}.weight").shape[1])
    return sites


def site_parameters(sites: list[BridgeSite]) -> list[nn.Parameter]:
    """Encoder and decoder weights of the active adapter, in site order."""
    return [p for site in sites for name in site.adapter_layer_names for p in getattr(site, name)[site.active_adapters[0]].parameters()]

"""Learned sparse adapters between a frozen dense model and a sparse one. Importing this package registers them with PEFT."""

from extractor.bridges.tuner import BridgeSite, SparseBridgeConfig, SparseBridgeModel, bridge_sites

__all__ = ["BridgeSite", "SparseBridgeConfig", "SparseBridgeModel", "bridge_sites"]

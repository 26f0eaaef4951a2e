"""A compiled circuit: `CompiledCircuit.load(folder)` runs it without its model. The code is in `extractor.circuits.compiled`."""

from extractor.circuits.compiled import CompiledCircuit, compile_circuit

__all__ = ["CompiledCircuit", "compile_circuit"]

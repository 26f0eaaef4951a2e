"""The header of a safetensors file. No torch."""

from __future__ import annotations

from pathlib import Path

from extractor.errors import BrokenArtifact


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file; reads its header only. Raises BrokenArtifact."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise BrokenArtifact(f"{file} is not a readable safetensors file: {error}") from None
    if not found:
        raise BrokenArtifact(f"{file} holds no tensors; save it again")
    return found

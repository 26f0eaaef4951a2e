"""The header of a safetensors file. No torch."""

from __future__ import annotations

from pathlib import Path

from extractor.errors import BrokenArtifact


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file; reads its header only. Raises BrokenArtifact."""
    return {name: shape for name, (shape, _) in _header(file).items()}


def integers_in(file: Path) -> list[str]:
    """The names of the tensors of a safetensors file that hold whole numbers; reads its header only. Raises BrokenArtifact."""
    return [name for name, (_, kind) in _header(file).items() if kind.startswith(("I", "U"))]


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype, such as F32 or U8."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
            found = {name: (tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise BrokenArtifact(f"{file} is not a readable safetensors file: {error}") from None
    if not found:
        raise BrokenArtifact(f"{file} holds no tensors; save it again")
    return found

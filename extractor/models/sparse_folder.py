"""Folders of sparse models: the bridges in them are checked when a job is made, and only known files of them are copied. No torch.

A folder may come from a stranger: it can hold links to other places, code under our names, and a dense.json that names any model.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from extractor import files
from extractor.errors import BrokenArtifact, HubUnavailable, ModelNotFound
from extractor.models.checks import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    FolderFiles,
    check_model,
    check_size,
    own_file,
    weights_of,
)
from extractor.models.reference import MAX_PARAMETERS, check_adapter_files, check_rest, find, is_here, max_parameters
from extractor.models.tensors import shapes_in
from extractor.models.tokenizer import copy_tokenizer

DENSE_JSON = "dense.json"
FAITHFULNESS_JSON = "faithfulness.json"
BRIDGES = "bridges"
KNOWN = (CONFIG, INDEX, "generation_config.json", "README.md", "import.json", DENSE_JSON, FAITHFULNESS_JSON)
KNOWN_OF_BRIDGES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md")
CODE = Path(__file__).parent.parent / "sparse"
_PINNED = re.compile(r"[^@]+@[0-9a-f]{40}")
_MAPS = ("bridge_decoder.bias", "bridge_decoder.weight", "bridge_encoder.bias", "bridge_encoder.weight")


def check_sparse_folder(folder: Path) -> None:
    """Check the bridges of a sparse model's folder, and that no file to be copied is a link to another place.

    Raises BrokenArtifact, UnsupportedModel; not where the dense model of the bridges is gone: the job then goes on without them.
    """
    for name in [*KNOWN, *(f"{BRIDGES}/{name}" for name in KNOWN_OF_BRIDGES)]:
        own_file(folder, folder / name)
    for name in weights_of(FolderFiles(folder)):
        own_file(folder, folder / name)
    if (folder / DENSE_JSON).is_file() and (folder / BRIDGES / ADAPTER_CONFIG).is_file():
        _check_maps(folder)
        _check_dense(folder)


def copy_sparse(source: Path, target: Path) -> list[str]:
    """Copy a sparse model's known files, its tokenizer and bridges; returns the names of what is left out.

    Its code is written anew from this package, not copied. Raises BrokenArtifact for a link to another place.
    """
    (target / BRIDGES).mkdir(parents=True)
    for name in [*KNOWN, *weights_of(FolderFiles(source)), *(f"{BRIDGES}/{name}" for name in KNOWN_OF_BRIDGES)]:
        if own_file(source, source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not any((target / BRIDGES).iterdir()):
        (target / BRIDGES).rmdir()
    copy_tokenizer(source, target)
    for path in CODE.glob("*.py"):
        if (source / path.name).is_file() and path.name != "__init__.py":
            shutil.copyfile(path, target / path.name)
    return sorted({entry.name for entry in source.iterdir()} - {entry.name for entry in target.iterdir()})


def dense_of(folder: Path) -> tuple[str, str | None, str | None]:
    """The references of the dense model and its adapter in dense.json, and the model's digest, if it is known. Raises BrokenArtifact."""
    known = _facts(folder)
    return known["model"], known["adapter"], known["sha256"]


def _facts(folder: Path) -> dict[str, Any]:
    known = files.read_json(folder / DENSE_JSON)
    if not isinstance(known, dict) or not isinstance(known.get("model"), str) or not isinstance(known.get("adapter"), (str, type(None))):
        raise BrokenArtifact(
            f"{folder / DENSE_JSON} does not name the dense model of the bridges; copy the model again, or remove {BRIDGES}/"
        )
    return {"adapter": None, "sha256": None} | known


def _check_maps(folder: Path) -> None:
    """Check encoders and decoders: two sites a layer and one more, between widths that the configs name. Raises BrokenArtifact."""
    shape, adapter = files.read_json(folder / CONFIG), files.read_json(folder / BRIDGES / ADAPTER_CONFIG)
    if not isinstance(adapter, dict) or adapter.get("peft_type") != "SPARSE_BRIDGE":
        raise BrokenArtifact(
            f"{folder / BRIDGES / ADAPTER_CONFIG} is not the config of bridges; copy the model again, or remove {BRIDGES}/"
        )
    found = shapes_in(folder / BRIDGES / ADAPTER_WEIGHTS)
    dense, sparse = adapter.get("d_dense"), shape["d_model"]
    wanted = {_MAPS[0]: (dense,), _MAPS[1]: (dense, sparse), _MAPS[2]: (sparse,), _MAPS[3]: (sparse, dense)}
    sites = {name.rpartition(".bridge_")[0] for name in found}
    right = {f"{site}.{part}": size for site in sites for part, size in wanted.items()}
    if len(sites) != 2 * shape["n_layer"] + 1 or found != right:
        raise BrokenArtifact(
            f"{folder / BRIDGES / ADAPTER_WEIGHTS} does not hold an encoder and a decoder at each of the {2 * shape['n_layer'] + 1} sites, "
            f"between widths {dense} and {sparse}; copy the model again, or remove {BRIDGES}/"
        )


def _check_dense(folder: Path) -> None:
    """Check the dense model that dense.json names as far as it can be found. Raises BrokenArtifact, UnsupportedModel."""
    known = _facts(folder)
    for key, kind, digest, patterns in (
        ("model", "model", "sha256", (CONFIG, "*.safetensors")),
        ("adapter", "adapter", "adapter_sha256", (ADAPTER_CONFIG, ADAPTER_WEIGHTS)),
    ):
        reference = known[key]
        if reference is None:
            continue
        if not is_here(reference) and not _PINNED.fullmatch(reference):
            raise BrokenArtifact(
                f"{folder / DENSE_JSON} names {reference[:80]!r}, neither a folder nor a commit of a hub model (ID@COMMIT)"
            )
        try:
            _, others = find(reference, kind, known["sha256"])
        except (ModelNotFound, HubUnavailable):
            continue
        if key == "model":
            check_model(others)
            check_size(others, max_parameters(), MAX_PARAMETERS)
            check_rest(others, max_parameters(), MAX_PARAMETERS)
        else:
            check_adapter_files(others)
        if is_here(reference) and others.folder is not None and known.get(digest) not in (None, files.digest(others.folder, *patterns)):
            raise BrokenArtifact(
                f"{kind} {reference} has changed since the bridges in {folder} were trained; restore it, or remove {BRIDGES}/"
            )

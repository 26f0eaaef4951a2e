"""What a model reference means: a bundled name, a folder, or a hub id. Torch-free, so that `extract submit` can check it at once.

Safetensors only, remote code never. A hub id is pinned to a commit when the job is made ("ID@SHA"); the worker downloads that commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from extractor import artifacts
from extractor.errors import BrokenArtifact, ModelNotFound, UnsupportedModel

BUNDLED = Path(__file__).parent / "bundled"
DENSE_TYPES = ("gpt2",)
SPARSE_TYPE = "sparse_gpt"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
]


@dataclass(frozen=True)
class ModelFolder:
    """A checked local model: its folder and its model_type ('gpt2' or 'sparse_gpt')."""

    path: Path
    model_type: str

    @property
    def is_sparse(self) -> bool:
        return self.model_type == SPARSE_TYPE


def bundled_models() -> list[dict]:
    """The models that come with the package: name, path, description."""
    found = []
    for folder in sorted(p for p in BUNDLED.iterdir() if (p / "config.json").is_file()):
        card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
        lines = [line for line in card.splitlines() if line and not line.startswith(("#", "---"))]
        found.append({"name": folder.name, "path": str(folder), "description": lines[0] if lines else ""})
    return found


def resolve(reference: str) -> str:
    """The form of a reference that goes into a JobSpec: a bundled name, an absolute folder, or 'ID@SHA'.

    Raises ModelNotFound or UnsupportedModel.
    """
    if (BUNDLED / reference / "config.json").is_file() and "/" not in reference:
        return reference
    path = Path(reference).expanduser()
    if path.is_dir():
        return str(inspect_folder(path.resolve()).path)
    if path.exists():
        raise UnsupportedModel(f"model {reference!r} is a file; name the folder that holds config.json and model.safetensors")
    if reference.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(reference.partition("@")[0]):
        raise ModelNotFound(f"model {reference!r} not found: there is no such folder")
    return _pin_on_hub(reference)


def inspect_folder(path: Path) -> ModelFolder:
    """Check that a folder (or the model/ inside a result folder) is a model we can work on. Raises UnsupportedModel, BrokenArtifact."""
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    if not (path / "config.json").is_file():
        raise UnsupportedModel(f"folder {path} is no model: it has no config.json")
    config = artifacts.read_json(path / "config.json")
    if not isinstance(config, dict):
        raise BrokenArtifact(f"{path / 'config.json'} is not a model config: expected a JSON object")
    model_type = str(config.get("model_type"))
    supported = (*DENSE_TYPES, SPARSE_TYPE)
    if model_type not in supported:
        raise UnsupportedModel(f"model in {path} is of type {model_type!r}; supported: {', '.join(supported)}")
    architectures = config.get("architectures") or []
    if model_type == "gpt2" and architectures and "GPT2LMHeadModel" not in architectures:
        raise UnsupportedModel(f"model in {path} is a {architectures[0]}, not a GPT2LMHeadModel: it has no language-model head")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.ckpt") for p in path.glob(pattern))
        found = f"only pickled weights ({', '.join(pickled)}), which can run code when loaded" if pickled else "no weights"
        raise UnsupportedModel(f"model in {path} has {found}; save it with safetensors")
    return ModelFolder(path, model_type)


def open_model(reference: str) -> ModelFolder:
    """The local folder of a JobSpec's reference, downloaded when it is on the hub. Raises ModelNotFound, UnsupportedModel."""
    if (BUNDLED / reference / "config.json").is_file() and "/" not in reference:
        return inspect_folder(BUNDLED / reference)
    if Path(reference).is_absolute():
        if not Path(reference).is_dir():
            raise ModelNotFound(f"model folder {reference} is not on this machine")
        return inspect_folder(Path(reference))
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    try:
        folder = snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES)
    except Exception as error:  # the client raises a wide family; all mean that the model is not to be had
        raise _hub_error(name, error) from None
    return inspect_folder(Path(folder))


def _pin_on_hub(reference: str) -> str:
    from huggingface_hub import HfApi

    name, _, revision = reference.partition("@")
    try:
        info = HfApi().model_info(name, revision=revision or None, timeout=20)
    except Exception as error:
        raise _hub_error(name, error) from None
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(f.endswith(".safetensors") for f in files):
        raise UnsupportedModel(f"hub model {name!r} has no safetensors weights; pickled weights are never loaded")
    return f"{name}@{info.sha}"


def _hub_error(name: str, error: Exception) -> ModelNotFound:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    known = ", ".join(model["name"] for model in bundled_models())
    if isinstance(error, GatedRepoError):
        return ModelNotFound(f"hub model {name!r} is gated: accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"hub model {name!r} has no such revision")
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(f"model {name!r} not found: not bundled ({known}), no folder, and not on the hub (or private: set HF_TOKEN)")
    reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return ModelNotFound(f"model {name!r} not found: not bundled ({known}), no folder, and the hub cannot be reached ({reason})")

"""`extract import`: convert the authors' published checkpoints (openai/circuit_sparsity) to our format.

1. `beeg_config.json` becomes a SparseGPTConfig. Keys that do not affect inference are ignored with a note; keys that change the
   computation in a way our model cannot represent are refused.
2. `final_model.pt`, a flat dict of tensors, becomes our state dict: the same names, but `attn.attn_imp.sink_logit` and
   `final_logits_bias`. Every tensor must exist, be finite and have the shape that the config implies.
3. The result is an ordinary model folder plus `import.json`: sha256 of the files read, the original config, all notes.

No other code of the project opens .pt files; these models are published in no other format. `weights_only=True` builds only tensors and
plain containers and runs no code. A .safetensors file with the same keys is accepted too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files as extractor_files
from extractor.errors import BrokenArtifact, OutputError, UnsupportedModel, UsageError, first_line
from extractor.models.openai_format import CONFIG, empty_model, translate_config, translate_tensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("final_model.pt", "final_model.safetensors", "model.safetensors")


@dataclass
class Import:
    """The inputs read so far. `files` holds their sha256 and bytes, `notes` what was ignored or changed."""

    source: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read(self, path: Path) -> Path:
        self.files[path.name] = {"sha256": extractor_files.sha256(path), "bytes": path.stat().st_size}
        return path


def import_checkpoint(folder: Path, out: Path, tokenizer: Path | None = None) -> dict:
    """Turn a published checkpoint into a model folder; returns the content of its import.json.

    folder      holds beeg_config.json and final_model.pt (or a .safetensors file with the same keys), optionally tokenizer.json
    out         a new or empty folder
    tokenizer   a folder with tokenizer.json (or vocab.json and merges.txt), if `folder` has none

    Raises UsageError for an unsupported request or model, BrokenArtifact for damaged files; then `out` stays as it was.
    """
    from extractor.models.tokenizer_files import TOKENIZER_FILES

    _check_output(out)
    config_path, weights_path = _find(folder)
    work = Import(folder.resolve())
    published = _read_config(work.read(config_path))
    settings = translate_config(published, work.notes)
    words = _tokenizer_folder(folder, tokenizer, settings, work)
    tensors = translate_tensors(read_tensors(work.read(weights_path)), settings, published, work.notes)
    with extractor_files.new_folder(out) as target:
        facts = _write_model(target, settings, tensors)
        if words is not None:
            for name in TOKENIZER_FILES:
                if (words / name).is_file():
                    work.read(words / name)
            _write_tokenizer(words, target, settings["n_ctx"])
        report = {"version": 1, "source": str(work.source), "files": work.files, "notes": work.notes, **facts, "published": published}
        extractor_files.write_json(target / "import.json", report)
        extractor_files.write_text(target / "README.md", _card(report, settings, words is not None))
    return report


def _check_output(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"output {out} exists and is not an empty folder; name a new one")


def _find(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        raise UsageError(f"checkpoint {folder} is not a folder; name the one that holds {CONFIG} and {WEIGHTS[0]}")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"checkpoint folder {folder} has no {CONFIG}")
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UsageError(f"checkpoint folder {folder} has no weights: expected {WEIGHTS[0]} or {WEIGHTS[1]}")
    return folder / CONFIG, found


def _read_config(path: Path) -> dict[str, Any]:
    config = extractor_files.read_json(path)
    if not isinstance(config, dict):
        raise BrokenArtifact(f"{path} is not a model config: expected a JSON object")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The flat dict of tensors in a .pt or .safetensors file. Raises BrokenArtifact, UnsupportedModel for anything but tensors by name."""
    if path.suffix == ".safetensors":
        return extractor_files.read_tensors(path)
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Damage fails in the unpickler too; only objects that are refused are called globals in its message.
        if "GLOBAL" in str(error):
            raise UnsupportedModel(
                f"{path} holds pickled objects beside tensors, which are never loaded; save a flat dict of tensors"
            ) from None
        raise BrokenArtifact(f"{path} is not a readable PyTorch file; it may be incomplete") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others for damaged archives
        raise BrokenArtifact(f"{path} is not a readable PyTorch file: {first_line(error)}") from None
    if not isinstance(found, dict) or not found:
        raise UnsupportedModel(f"{path} holds a {type(found).__name__}, not a flat dict of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UnsupportedModel(f"{path} is not a flat dict of tensors: entry {str(name)[:60]!r} is a {type(value).__name__}")
    return found


def _tokenizer_folder(folder: Path, given: Path | None, settings: dict[str, Any], work: Import) -> Path | None:
    """The folder of the tokenizer, None without one. Raises UnsupportedModel where it is another vocabulary's, BrokenArtifact."""
    from extractor.models.tokenizer import END_OF_TEXT, load_tokenizer

    if given is None and not (folder / "tokenizer.json").is_file():
        work.notes.append("no tokenizer.json: the model runs, but tasks need one; import again with --tokenizer FOLDER")
        return None
    source = given or folder
    tokenizer = load_tokenizer(source)
    size = max(tokenizer.get_vocab().values(), default=0) + 1
    if size > settings["vocab_size"]:
        raise UnsupportedModel(f"the tokenizer in {source} has {size} entries, the model {settings['vocab_size']}: it is another model's")
    settings["bos_token_id"] = settings["eos_token_id"] = tokenizer.token_to_id(END_OF_TEXT)
    return source


def _write_tokenizer(source: Path, target: Path, n_ctx: int) -> None:
    from extractor.models.tokenizer import copy_tokenizer, load_tokenizer, save_tokenizer

    if (source / "tokenizer.json").is_file():
        copy_tokenizer(source, target)
    else:
        save_tokenizer(load_tokenizer(source), target, n_ctx)


def _write_model(target: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, int]:
    """Write config.json, model.safetensors and the code files; returns numbers about the model."""
    import torch

    model = empty_model(settings)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.config.dtype = torch.float32
    model.save_pretrained(target)
    return {
        "parameters": sum(t.numel() for t in tensors.values()),
        "nonzeros": sum(int(t.count_nonzero()) for t in tensors.values()),
        "layers": settings["n_layer"],
        "width": settings["d_model"],
    }


def _card(report: dict[str, Any], settings: dict[str, Any], has_tokenizer: bool) -> str:
    files = "\n".join(f"| {name} | {facts['bytes']:,} | `{facts['sha256']}` |" for name, facts in report["files"].items())
    notes = "\n".join(f"- {note}" for note in report["notes"]) or "- none"
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n" if has_tokenizer else ""
    return f"""# Imported weight-sparse GPT, {report["parameters"]:,} parameters

A checkpoint published with *Weight-sparse transformers have interpretable circuits* (Gao et al. 2025, arXiv 2511.13653), converted; \
its numbers are unchanged.
{settings["n_layer"]} layers, width {settings["d_model"]}, {settings["d_model"] // settings["d_head"]} heads, vocabulary \
{settings["vocab_size"]}, context {settings["n_ctx"]}; {report["nonzeros"]:,} nonzero parameters.

```python
import extractor.sparse  # registers the architecture; without it: trust_remote_code=True
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(FOLDER)
{tokenizer}```

Made from

| file | bytes | sha256 |
|---|---|---|
{files}

Notes of the import (also in `import.json`):

{notes}
"""

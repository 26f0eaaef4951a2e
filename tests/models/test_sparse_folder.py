"""The folder of a sparse model may come from a stranger: what is copied of it, and what its bridges and dense.json are checked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from extractor.errors import BrokenArtifact, ExtractorError, HubUnavailable, ModelNotFound, UnsupportedModel
from extractor.jobs.request import circuit_job
from extractor.models import sparse_folder
from extractor.models.reference import BUNDLED
from extractor.models.sparse_folder import CODE, check_sparse_folder, copy_sparse

FROZEN = Path(__file__).parent.parent / "frozen" / "result" / "model"
WEIGHTS = "bridges/adapter_model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sparse model with bridges, as a release wrote it."""
    folder = Path(shutil.copytree(FROZEN, tmp_path / "model"))
    for file in folder.glob("*.py.txt"):
        file.rename(file.with_suffix(""))
    return folder


def change(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def tensors(folder: Path, change_them: Callable[[dict], object]) -> None:
    found = load_file(folder / WEIGHTS)
    change_them(found)
    save_file(found, folder / WEIGHTS, {"format": "pt"})


def refused(call: Callable[[], object], kind: type[ExtractorError] = BrokenArtifact) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_own_result_is_copied_whole(model: Path, tmp_path: Path):
    check_sparse_folder(model)
    (tmp_path / "copy").mkdir()
    assert copy_sparse(model, tmp_path / "copy") == []
    assert names(tmp_path / "copy") == names(model)
    for name in names(model):
        if not name.endswith(".py"):
            assert (tmp_path / "copy" / name).read_bytes() == (model / name).read_bytes()


def test_only_known_files_are_copied_the_others_counted_and_code_is_the_packages(model: Path, tmp_path: Path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "id_rsa").write_text("secret")
    (model / "data").symlink_to(tmp_path / "secrets")
    (model / "root").symlink_to("/")
    (model / "notes.txt").symlink_to("/etc/hostname")
    (model / "bridges" / "more.bin").write_bytes(b"more")
    (model / "modeling_sparse_gpt.py").write_text("raise SystemExit('the code ran')")
    (model / "evil.py").write_text("raise SystemExit('the code ran')")
    check_sparse_folder(model)
    (tmp_path / "copy").mkdir()
    assert copy_sparse(model, tmp_path / "copy") == ["data", "evil.py", "notes.txt", "root"]
    assert not {"data/id_rsa", "evil.py", "notes.txt", "bridges/more.bin"} & names(tmp_path / "copy")
    assert (tmp_path / "copy" / "modeling_sparse_gpt.py").read_bytes() == (CODE / "modeling_sparse_gpt.py").read_bytes()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "faithfulness.json", "bridges/README.md", WEIGHTS])
def test_a_known_file_that_is_a_link_to_another_place_is_refused(name: str, model: Path, tmp_path: Path):
    (model / name).touch()
    (model / name).rename(tmp_path / "elsewhere")
    (model / name).symlink_to(tmp_path / "elsewhere")
    said = f"{name} is a link out of this folder; copy the file itself there"
    assert said in refused(lambda: check_sparse_folder(model))
    (tmp_path / "copy").mkdir()
    assert said in refused(lambda: copy_sparse(model, tmp_path / "copy"))


def test_bridges_that_are_a_link_are_refused(model: Path, tmp_path: Path):
    (model / "bridges").rename(tmp_path / "elsewhere")
    (model / "bridges").symlink_to(tmp_path / "elsewhere")
    assert "is a link out of this folder" in refused(lambda: check_sparse_folder(model))


def test_links_inside_the_folder_and_into_the_hubs_cache_are_files(model: Path, tmp_path: Path):
    (model / "README.md").symlink_to("config.json")
    check_sparse_folder(model)
    (model / "README.md").unlink()
    snapshot = tmp_path / "models--lab--sparse" / "snapshots" / ("a" * 40)
    blobs = tmp_path / "models--lab--sparse" / "blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate(sorted(names(model))):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    check_sparse_folder(snapshot)
    (tmp_path / "copy").mkdir()
    assert copy_sparse(snapshot, tmp_path / "copy") == []
    assert names(tmp_path / "copy") == names(model)
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "absent"}, "does not name the dense model of the bridges"),
        ({"model": 3}, "does not name the dense model of the bridges"),
        ({"adapter": ["x"]}, "does not name the dense model of the bridges"),
        ({"model": "some/model"}, "names 'some/model', neither a folder nor a"),
        ({"model": "some/model@main"}, "names 'some/model@main', neither a folder nor a"),
        ({"adapter": "some/lora"}, "names 'some/lora', neither a folder nor a"),
        ({"model": "../../etc"}, "names '../../etc', neither a folder nor a"),
        ({"sha256": "0" * 64}, "has changed"),
    ],
)
def test_what_dense_json_names_is_checked_when_the_job_is_made(changes: dict, said: str, model: Path):
    change(model / "dense.json", **changes)
    assert said in refused(lambda: circuit_job(str(model), ("quote_close",)))


@pytest.mark.parametrize("text", ["{}", "[]", "{", "3"])
def test_so_is_its_form(text: str, model: Path):
    (model / "dense.json").write_text(text)
    refused(lambda: circuit_job(str(model), ("quote_close",)))


def test_the_folder_that_dense_json_names_must_hold_that_model(model: Path, tmp_path: Path):
    dense = Path(shutil.copytree(BUNDLED / "python-tiny-1", tmp_path / "dense"))
    change(model / "dense.json", model=str(dense))
    check_sparse_folder(model)
    change(dense / "config.json", n_positions=64)
    assert "has changed" in refused(lambda: check_sparse_folder(model))
    change(dense / "config.json", model_type="bert")
    assert "is of type 'bert'" in refused(lambda: check_sparse_folder(model), UnsupportedModel)
    shutil.rmtree(dense)
    check_sparse_folder(model)  # a dense model that is gone: the job goes on without bridges


@pytest.mark.parametrize(
    ("change_them", "said"),
    [
        (lambda t: t.popitem(), "does not hold an encoder and a decoder at each of the 5 sites, between widths 128 and 16"),
        (lambda t: t.update({k: v[:-1] for k, v in t.items() if k.endswith("ln_f.bridge_encoder.bias")}), "does not hold an encoder"),
        (lambda t: t.update(more=torch.zeros(3)), "does not hold an encoder"),
        (lambda t: [t.pop(k) for k in list(t) if "ln_f" in k], "does not hold an encoder"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_bridges_that_do_not_fit_are_refused_when_the_job_is_made(change_them: Callable, said: str, model: Path):
    tensors(model, change_them)
    assert said in refused(lambda: circuit_job(str(model), ("quote_close",)))


def test_damaged_bridges_too(model: Path):
    (model / WEIGHTS).write_bytes(b"\xff" * 100)
    assert "is not a readable safetensors file" in refused(lambda: circuit_job(str(model), ("quote_close",)))
    (model / WEIGHTS).unlink()
    assert "is not a readable safetensors file" in refused(lambda: circuit_job(str(model), ("quote_close",)))


@pytest.mark.parametrize("kind", [ModelNotFound, HubUnavailable])
def test_bridges_stay_where_their_dense_model_cannot_be_had_now(kind: type[ExtractorError], model: Path, monkeypatch: pytest.MonkeyPatch):
    change(model / "dense.json", model=f"org/gone@{'a' * 40}", sha256=None)

    def away(reference: str, _kind: str, _digest: str | None) -> None:
        raise kind(f"{reference} is away")

    monkeypatch.setattr(sparse_folder, "find", away)
    check_sparse_folder(model)


def test_a_sparse_model_without_bridges_is_taken(model: Path):
    shutil.rmtree(model / "bridges")
    assert circuit_job(str(model), ("quote_close",)).model == str(model)


def test_bridges_that_are_no_numbers_are_refused_when_they_are_loaded(model: Path):
    from extractor.bridges.pair import open_pair

    assert len(open_pair(model).sites) == 5
    tensors(model, lambda t: t["base_model.model.transformer.ln_f.bridge_encoder.bias"].fill_(torch.nan))
    assert "bridge_encoder.default.bias are NaN or infinite" in refused(lambda: open_pair(model))

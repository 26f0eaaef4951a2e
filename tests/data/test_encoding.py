"""Prompts, answers and documents under tokenizers of many kinds; tokens without an embedding; how tokens are shown."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizer_zoo as zoo
import torch
from safetensors.torch import save_file
from tokenizer_zoo import ZOO

from extractor.data.build_corpus import build_corpus
from extractor.data.encoding import document_marks, marks_of, prompt_text, text_ids, text_ids_of, token_text, token_texts
from extractor.data.prompts import TokenizedTask, answer_ids, encode_pair, get_task, task_batch, tokenize_task
from extractor.data.task_choice import check_expressible, choose
from extractor.errors import TaskNotExpressible, UnsupportedModel
from extractor.jobs.request import circuit_job
from extractor.models.tokenizer import load_tokenizer
from extractor.spec.schema import CorpusSpec
from tasks import Pair, Task

MARKING = ["prepend", "metaspace_first", "metaspace_always", "prefix_space", "prefix_space_of_the_config", "llama", "llama_with_an_end"]


def made(folder: Path, name: str):
    folder.mkdir(exist_ok=True)
    ZOO[name](folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", MARKING)
def test_an_answer_is_what_follows_its_prompt_however_a_text_begins(tmp_path: Path, name: str):
    tokenizer = made(tmp_path / "model", name)
    task = tokenize_task(get_task("quote_close"), tokenizer)
    assert task.answers == ('")', "')")
    assert [token_text(tokenizer, token) for token in task.answer_ids] == ['")', "')"]
    batch = task_batch(task, tokenizer, "train", 8, 0, 200)
    before = marks_of(tokenizer).before
    for row, last, token in zip(batch.ids.tolist(), batch.last.tolist(), batch.correct.tolist(), strict=True):
        ids = row[: last + 1]
        assert ids[: len(before)] == before
        text = prompt_text(tokenizer, ids)
        answer = task.answers[task.answer_ids.index(token)]
        assert text_ids(tokenizer, text.removeprefix(" ") + answer) == [*ids, token]


@pytest.mark.parametrize("name", ["prepend", "llama", "metaspace_always"])
def test_an_answer_with_a_space_is_the_word_with_the_space(tmp_path: Path, name: str):
    tokenizer = made(tmp_path / "model", name)
    found = answer_ids(Pair("for x", "for y", (" in", ":")), (" in", ":"), tokenizer)
    assert token_texts(tokenizer, [found.first, found.second]) == [" in", ":"]


def test_pairs_whose_answers_are_other_tokens_than_usual_do_not_fit(tmp_path: Path):
    """'a' is '##a' inside a word and 'a' after a space: two tokens, of which a task has one."""
    tokenizer = made(tmp_path / "model", "wordpiece")

    def write(rng: random.Random) -> Pair:
        before, after = f"{rng.randrange(10**6):06} ", " " if rng.random() < 0.2 else ""
        return Pair(f"{before}x{after}", f"{before}y{after}")

    task = tokenize_task(Task("mine", "mine", (("a", "b"),), write), tokenizer)
    assert token_texts(tokenizer, task.answer_ids) == ["##a", "##b"]
    batch = task_batch(task, tokenizer, "train", 16, 0, 64)
    assert {(f, s) for f, s in zip(batch.first.tolist(), batch.second.tolist(), strict=True)} == {task.answer_ids}
    odd = Pair("x ", "y ")
    assert encode_pair(odd, task, tokenizer) is None
    assert encode_pair(Pair("x", "y"), task, tokenizer) is not None


@pytest.mark.parametrize("name", ZOO)
def test_a_document_has_the_tokens_that_its_tokenizer_puts_around_it(tmp_path: Path, name: str):
    from transformers import AutoTokenizer

    tokenizer = made(tmp_path / "model", name)
    texts = [f"x = {i}\nprint(x)\n" for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus = build_corpus(CorpusSpec(sources=(str(tmp_path / "text.jsonl"),)), tokenizer, tmp_path / "cache")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    if getattr(theirs.backend_tokenizer.model, "dropout", None):
        theirs.backend_tokenizer.model.dropout = None
    marks, end = marks_of(tokenizer), tokenizer.token_to_id(zoo.END)
    expected = []
    for text in texts:
        ids = theirs(text).input_ids
        expected.append(ids if end is None else [*ids[: len(ids) - len(marks.after)], end])
    assert document_marks(tokenizer).before == marks.before
    found = np.concatenate([*corpus.train[0], corpus.held_out[0]]).tolist()
    assert len(found) == sum(map(len, expected))
    assert sorted(found) == sorted(token for ids in expected for token in ids)
    assert found[: len(expected[0])] in expected


def test_another_beginning_is_another_text_in_the_cache(tmp_path: Path):
    (tmp_path / "text.py").write_text("x = 1\n" * 400)
    spec = CorpusSpec(sources=(str(tmp_path / "text.py"),))
    folders = set()
    for name in ("metaspace_first", "llama", "llama_with_an_end", "plain", "padding_fixed", "truncation"):
        folders |= set(build_corpus(spec, made(tmp_path / name, name), tmp_path / "cache").folders)
    assert len(folders) == 4  # plain, padding and truncation are one


def test_ids_above_16_bits_are_kept_though_the_tokens_are_few(tmp_path: Path):
    tokenizer = made(tmp_path / "model", "added_tokens_with_a_gap")
    (tmp_path / "text.py").write_text("[SEP] x = 1\n" * 40)
    corpus = build_corpus(CorpusSpec(sources=(str(tmp_path / "text.py"),)), tokenizer, tmp_path / "cache")
    assert max(int(shard.max()) for shard in corpus.train[0]) == 70_000


def pairs_file(folder: Path, start: str = "") -> Path:
    path = folder / "mine.jsonl"
    lines = [
        {"positive": f'{start}n = {i}\nprint("{a}', "negative": f"{start}n = {i}\nprint('{a}", "answers": ['")', "')"]}
        for i in range(1, 10)
        for a in ("name", "data", "value", "file", "word")
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def grown(gpt2_folder: Path, tmp_path: Path) -> Path:
    """A model with fewer embeddings than its tokenizer has tokens."""
    import shutil

    folder = Path(shutil.copytree(gpt2_folder, tmp_path / "grown"))
    zoo.added_token(folder)
    zoo.change(folder, "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    shutil.copyfile(gpt2_folder / "config.json", folder / "config.json")
    zoo.change(folder, "config.json", vocab_size=1024)
    return folder


def test_a_task_file_with_a_token_that_has_no_embedding_is_refused_when_the_job_is_made(grown: Path, tmp_path: Path):
    with pytest.raises(TaskNotExpressible) as caught:
        circuit_job(str(grown), (str(pairs_file(tmp_path, "[SEP]")),))
    for said in ("line 1: token '[SEP]' (id 1024) has no embedding, the model has 1,024", "45 of 45 pairs", "resize_token_embeddings"):
        assert said in str(caught.value)
    assert circuit_job(str(grown), (str(pairs_file(tmp_path)),)).tasks == ("mine",)
    assert circuit_job(str(grown), ("quote_close",)).tasks == ("quote_close",)


def test_so_it_is_with_an_adapter_which_brings_no_further_embeddings(grown: Path, tmp_path: Path):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["c_attn"], "base_model_name_or_path": "x"})
    )
    save_file({"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 32)}, lora / "adapter_model.safetensors")
    with pytest.raises(TaskNotExpressible, match="has no embedding, the model has 1,024"):
        circuit_job(str(grown), (str(pairs_file(tmp_path, "[SEP]")),), adapter=str(lora))


def test_a_task_that_writes_a_token_without_embedding_is_refused(tmp_path: Path):
    tokenizer = made(tmp_path / "model", "added_token")

    def write(rng: random.Random) -> Pair:
        before = f"[SEP]n = {rng.randrange(10**6)}\n"
        return Pair(before + 'print("x', before + "print('x")

    task = Task("mine", "mine", (('")', "')"),), write)
    assert check_expressible(task, tokenizer, 64, 1025).vocab_size == 1025
    with pytest.raises(TaskNotExpressible, match=r"'mine' cannot be asked of this model: token '.SEP.' .id 1024. has no embedding"):
        check_expressible(task, tokenizer, 64, 1024)


def test_an_answer_without_embedding_is_refused(tmp_path: Path):
    tokenizer = made(tmp_path / "model", "added_token")
    task = TokenizedTask(Task("mine", "mine", (), lambda _: Pair("", "")), (), (), 1024)
    with pytest.raises(TaskNotExpressible, match="id 1024"):
        encode_pair(Pair("x = 1\n", "y = 1\n", ("[SEP]", "x")), task, tokenizer)


def test_a_beginning_without_embedding_is_refused_too(tmp_path: Path):
    tokenizer = made(tmp_path / "model", "halves_with_a_beginning")
    vocab = max(tokenizer.get_vocab().values())
    assert check_expressible(get_task("quote_close"), tokenizer, None, vocab + 1)
    llama = made(tmp_path / "llama", "llama")
    with pytest.raises(TaskNotExpressible, match=r"has no embedding, the model has 40"):
        check_expressible(get_task("quote_close"), llama, None, 40)


def test_text_with_a_token_that_has_no_embedding_is_refused_and_counted(tmp_path: Path):
    tokenizer = made(tmp_path / "model", "added_token")
    (tmp_path / "good.py").write_text("x = 1\n" * 200)
    (tmp_path / "bad.py").write_text("x = 1  # [SEP]\n" * 200)
    good, bad = (CorpusSpec(sources=(str(tmp_path / name),)) for name in ("good.py", "bad.py"))
    assert build_corpus(good, tokenizer, tmp_path / "cache", vocab_size=1024).tokens
    assert build_corpus(bad, tokenizer, tmp_path / "cache", vocab_size=1025).tokens
    for _ in range(2):  # also when the tokens are in the cache already
        with pytest.raises(UnsupportedModel) as caught:
            build_corpus(bad, tokenizer, tmp_path / "cache", vocab_size=1024)
    for said in (f"corpus {tmp_path / 'bad.py'} has 200 tokens that the model cannot read", "'[SEP]' (id 1024)", "the model has 1,024"):
        assert said in str(caught.value)


def test_special_tokens_are_shown_and_counted(tmp_path: Path):
    from extractor.jobs.check_tasks import samples

    made(tmp_path / "model", "added_token")
    tokenizer = load_tokenizer(tmp_path / "model")
    (task,) = choose([str(pairs_file(tmp_path, "[SEP]"))]).tasks
    (first,) = samples(check_expressible(task, tokenizer), tokenizer, 1)
    assert first["positive"]["tokens"][0] == "[SEP]"
    assert "".join(first["positive"]["tokens"]) == first["positive"]["text"]
    path = pairs_file(tmp_path, "[SEP]")
    path.write_text(path.read_text().replace('"positive": "[SEP]n', '"positive": "[SEP][SEP]n', 1))
    with pytest.raises(TaskNotExpressible, match=r"the positive prompt is \d+ tokens \['\[SEP\]', '\[SEP\]', 'n'"):
        check_expressible(choose([str(path)]).tasks[0], tokenizer)


@pytest.mark.parametrize("name", ["plain", "added_token", "gpt2_class"])
def test_of_gpt2_tokenizers_a_token_is_shown_as_it_decodes(tmp_path: Path, name: str):
    tokenizer = made(tmp_path / "model", name)
    for token in range(1, 1024):
        assert token_text(tokenizer, token) == tokenizer.decode([token])
    assert token_text(tokenizer, 0) == zoo.END
    assert token_text(tokenizer, 5000) == "[id 5000]"


def test_a_prompt_is_shown_without_the_tokens_that_stand_before_every_text(tmp_path: Path):
    llama, plain = made(tmp_path / "llama", "llama"), made(tmp_path / "plain", "added_token")
    assert prompt_text(llama, text_ids(llama, "x in x")) == "x in x"
    assert token_texts(llama, text_ids(llama, "x in")) == ["<s>", " x", " in"]
    assert prompt_text(plain, text_ids(plain, "[SEP]x = 1")) == "[SEP]x = 1"
    assert text_ids(llama, "") == [1]
    assert text_ids(plain, "") == []


@pytest.mark.parametrize("name", sorted(ZOO))
def test_many_texts_have_the_ids_that_each_has_alone(tmp_path: Path, name: str):
    """Or none, where the tokenizer cannot encode them together."""
    tokenizer = made(tmp_path / "model", name)
    pairs = itertools.islice(get_task("quote_close").pairs("train", 0), 5)
    texts = ["print(", *(text for pair in pairs for text in (pair.positive, pair.negative + '")'))]
    found = text_ids_of(tokenizer, texts)
    assert found in ({}, {text: text_ids(tokenizer, text) for text in texts} if found else {})
    assert found or name not in MARKING


def test_texts_that_cannot_be_encoded_together_are_left_to_be_encoded_alone(tmp_path: Path):
    tokenizer = made(tmp_path / "model", "llama")
    assert text_ids_of(tokenizer, ["for x", "x"])
    tokenizer.enable_padding()
    assert text_ids_of(tokenizer, ["for x", "x"]) == {}

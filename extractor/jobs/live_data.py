"""What the page needs to run the circuit itself: the compiled circuit, the tokenizer, the token ids of the shown pairs.

The page computes what `circuits.compiled` computes, at every token. Tables of the vocabulary are cut to the positions that fit. Where they
do not fit at all (a large vocabulary), the page holds the tokens of the shown pairs alone, and no tokenizer: prompts cannot be typed there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from extractor.data.encoding import marks_of, token_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.circuits.compiled import CompiledCircuit

MOST_BYTES = 450_000  # of the tables as 32-bit numbers; the same as text
BY_TOKEN = ("tracked", "squares", "crossed", "rest_readout", "direct")  # (V, ...), and the columns of `crossed` are positions
BY_POSITION = ("position_tracked", "position_squares", "position_readout")
_UNUSED = ("_nodes", "_rows", "_columns")  # places in the model, which the page does not need


def live_data(compiled: CompiledCircuit, tokenizer: Tokenizer, tokens: Mapping[str, Any]) -> dict[str, Any] | None:
    """The data of the page's circuit; None where `tokens` is of a version that did not store ids.

    tensors     {name: {shape, float or int: base64}}, as `CompiledCircuit` names them; int: little-endian 32-bit numbers; float: the upper
                three bytes of such numbers, rounded (16 bits of the fraction: an error of at most 8e-6 of a number)
    layers      the sublayers, as compiled.safetensors describes them; tensors by their names
    longest     most tokens of a prompt; null: any number
    tokens      ids of the rows of the tables; null: all
    texts       texts of these tokens
    pairs       [{tokens: ids of both prompts, answers: their right answers' ids}]
    tokenizer   {json: tokenizer.json, before: ids that stand before every text}; null where the tables hold only some tokens

    tokens   the content of tokens.json
    """
    if "ids" not in tokens:
        return None
    ids, tensors = tokens["ids"], {name: tensor for name, tensor in compiled.state_dict().items() if not name.endswith(_UNUSED)}
    pairs = [{name: _of(ids, pair[name]) for name in ("tokens", "answers")} for pair in tokens["pairs"]]
    prompts = [prompt for pair in pairs for prompt in pair["tokens"]]
    longest, shown = _longest(compiled), max(map(len, prompts))
    rows = None if longest is None or longest >= shown else sorted({token for prompt in prompts for token in prompt})
    if rows is not None:
        longest, tensors = shown, tensors | {name: tensors[name][rows] for name in BY_TOKEN}
    if longest is not None:
        tensors |= {name: tensors[name][:longest] for name in (*BY_POSITION, *(n for n in tensors if n.endswith("_read_positions")))}
        tensors["crossed"] = tensors["crossed"][:, :longest]
    return {
        "tensors": {name: _packed(tensor) for name, tensor in tensors.items()},
        "layers": compiled.described,
        "longest": longest,
        "tokens": rows,
        "texts": token_texts(tokenizer, range(len(compiled.tracked)) if rows is None else rows),
        "pairs": pairs,
        "tokenizer": None if rows is not None else {"json": json.loads(tokenizer.to_str()), "before": marks_of(tokenizer).before},
    }


def _of(ids: Sequence[int], places: Any) -> Any:
    return [_of(ids, place) for place in places] if isinstance(places, list) else ids[places]


def _longest(compiled: CompiledCircuit) -> int | None:
    """Most positions for which the tables of all tokens fit, 0 where none do; None: no table has positions, and they fit."""
    fixed = sum(getattr(compiled, name).numel() for name in BY_TOKEN if name != "crossed")
    left = MOST_BYTES // 4 - fixed
    if compiled.longest is None:
        return None if left >= 0 else 0
    return max(0, min(compiled.longest, left // (len(compiled.tracked) + compiled.tracked.shape[1])))


def _packed(tensor: Tensor) -> dict[str, Any]:
    if not tensor.is_floating_point():
        data, kind = tensor.detach().cpu().int().contiguous().numpy().astype("<i4").tobytes(), "int"
    else:
        bits = tensor.detach().cpu().float().contiguous().numpy().astype("<f4").view("<u4").flatten()
        data, kind = (bits + 0x80).view("u1").reshape(-1, 4)[:, 1:].tobytes(), "float"
    return {"shape": list(tensor.shape), kind: base64.b64encode(data).decode("ascii")}

"""Recompute a circuit's held-out loss from a result folder with nothing but torch: python tests/rerun_circuit.py FOLDER [TASK [zero]]

A node of the circuit is computed, and competes in its site's AbsTopK with the circuit's other nodes; every other node has its mean.
A listed edge carries what its source is; every other weight carries its source's mean. With 'zero' the means are zero. The loss is
`loss.circuit` of result.json for the paper's standard, `validation.conditions.mean.loss` or `.zero.loss` for the robust one.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, relu, rms_norm, softplus

root = Path(sys.argv[1])
folder = root / "circuits" / sys.argv[2] if len(sys.argv) > 2 else next((root / "circuits").iterdir())
c, circuit = json.loads((root / "model/config.json").read_text()), json.loads((folder / "circuit.json").read_text())
w, means, pairs = (
    load_file(path) for path in (root / "model/model.safetensors", folder / "means.safetensors", folder / "held_out.safetensors")
)
if sys.argv[3:] == ["zero"]:
    means = {site: torch.zeros_like(mean) for site, mean in means.items()}
node = {n["id"]: (n["site"], n["channel"]) for n in circuit["nodes"]}
on = {site: torch.zeros(len(mean), dtype=torch.bool) for site, mean in means.items()}
for site, channel in node.values():
    on[site][channel] = True
listed = {}  # (source site, target site): places of the listed edges
for edge in circuit["edges"]:
    (source, column), (target, row) = node[edge["source"]], node[edge["target"]]
    listed.setdefault((source, target), []).append((row, column))


def at(site: str, x: torch.Tensor) -> torch.Tensor:
    """The values of a site's nodes, given what they are before AbsTopK."""
    width, place = x.shape[-1], site.partition(".")[2]
    k = c["site_k"].get(place, width) if c.get("site_k") else max(1, round(c["activation_frac"] * width))
    rivals = x.abs().masked_fill(~on[site], -1)
    return torch.where(on[site], x * (rivals >= rivals.topk(k).values[..., -1:]), means[site])


def send(source: str, target: str, weight: torch.Tensor, x: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
    """What the values x of a source send to a target; mean: what they would be, were all of them means."""
    there = torch.zeros_like(weight)
    for place in listed.get((source, target), []):
        there[place] = weight[place]
    return x @ there.T + (means[source] if mean is None else mean) @ (weight - there).T


def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, (x.shape[-1],), gain, c["rms_norm_eps"])


def read(h: torch.Tensor, p: dict, number: int) -> torch.Tensor:
    x = norm(h, p[f"ln_{number}.weight"])
    return x if not c.get("d_pos_emb") else torch.cat([x, norm(positions, p[f"ln_p{number}.weight"]).expand(rows, -1, -1)], -1)


ids, (rows, length), width, heads = pairs["ids"], pairs["ids"].shape, c["d_model"], c["d_model"] // c["d_head"]
h, future = w["transformer.wte.weight"][ids], torch.ones(length, length, dtype=torch.bool).triu(1)
positions = w["transformer.wpe.weight"][:length] if "transformer.wpe.weight" in w else 0
h = h + positions if c.get("added_positions") else h
for i in range(c["n_layer"]):
    p = {name.removeprefix(f"transformer.h.{i}."): t for name, t in w.items() if name.startswith(f"transformer.h.{i}.")}
    a, m = f"{i}.attn.", f"{i}.mlp."
    x = at(a + "act_in", read(h, p, 1))
    parts = zip("qkv", p["attn.c_attn.weight"].split(width), p["attn.c_attn.bias"].split(width), strict=True)
    split = lambda t: t.view(rows, length, heads, -1).transpose(1, 2)  # noqa: E731
    q, k, v = (split(at(a + name, send(a + "act_in", a + name, weight, x) + bias)) for name, weight, bias in parts)
    pattern = (q @ k.mT / c["d_head"] ** 0.5).masked_fill(future, -torch.inf).exp()
    sink = p["attn.sink_logit"].exp().view(heads, 1, 1) if c["sinks"] else 0
    pattern = pattern / (pattern.sum(-1, keepdim=True) + sink)
    mixed, usual = ((pattern @ t).transpose(1, 2).reshape(rows, length, width) for t in (v, split(means[a + "v"].expand(rows, length, -1))))
    h = h + at(a + "resid_delta", send(a + "v", a + "resid_delta", p["attn.c_proj.weight"], mixed, usual) + p["attn.c_proj.bias"])
    x = send(m + "act_in", m + "post_act", p["mlp.c_fc.weight"], at(m + "act_in", read(h, p, 2))) + p["mlp.c_fc.bias"]
    x = at(m + "post_act", relu(x) if c.get("activation") == "relu" else gelu(x))
    h = h + at(m + "resid_delta", send(m + "post_act", m + "resid_delta", p["mlp.c_proj.weight"], x) + p["mlp.c_proj.bias"])
last, token = h[torch.arange(rows), pairs["last"]], ids[torch.arange(rows), pairs["last"]]
logits = norm(last, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T + w.get("logits_bias", 0)
if c["bigram"] == "dense":
    logits = logits + w["bigram_table"][token]
elif c["bigram"] == "counts":
    logits = logits.scatter_add(-1, w["bigram_index"][token], w["bigram_values"][token])
elif c["bigram"] == "low_rank":
    logits = logits + w["bigram_left"][token] @ w["bigram_right"]
margin = (logits.gather(1, pairs["correct"][:, None]) - logits.gather(1, pairs["wrong"][:, None]))[:, 0]
sign = pairs["sign"] if "sign" in pairs else torch.where(pairs["correct"] == circuit["answer_ids"][0], 1.0, -1.0)
print(softplus(-circuit["calibration"]["scale"] * margin - sign * circuit["calibration"]["shift"]).mean().item())

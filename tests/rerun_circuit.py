"""Recompute a circuit's held-out loss from a result folder with nothing but torch: python tests/rerun_circuit.py FOLDER [TASK]"""

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
on = {site: torch.zeros(len(mean), dtype=torch.bool) for site, mean in means.items()}
for node in circuit["nodes"]:
    on[node["site"]][node["channel"]] = True


def site(name: str, x: torch.Tensor) -> torch.Tensor:
    width, place = x.shape[-1], name.partition(".")[2]
    k = c["site_k"].get(place, width) if c.get("site_k") else max(1, round(c["activation_frac"] * width))
    where = x.abs().topk(k, dim=-1).indices
    return torch.where(on[name], torch.zeros_like(x).scatter(-1, where, x.gather(-1, where)), means[name])


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
    x = site(f"{i}.attn.act_in", read(h, p, 1))
    parts = zip("qkv", (x @ p["attn.c_attn.weight"].T + p["attn.c_attn.bias"]).split(width, -1), strict=True)
    q, k, v = (site(f"{i}.attn.{n}", t).view(rows, length, heads, -1).transpose(1, 2) for n, t in parts)
    weight = (q @ k.transpose(-1, -2) / c["d_head"] ** 0.5).masked_fill(future, -torch.inf).exp()
    sink = p["attn.sink_logit"].exp().view(heads, 1, 1) if c["sinks"] else 0
    mixed = ((weight / (weight.sum(-1, keepdim=True) + sink)) @ v).transpose(1, 2).reshape(rows, length, width)
    h = h + site(f"{i}.attn.resid_delta", mixed @ p["attn.c_proj.weight"].T + p["attn.c_proj.bias"])
    x = site(f"{i}.mlp.act_in", read(h, p, 2)) @ p["mlp.c_fc.weight"].T + p["mlp.c_fc.bias"]
    x = site(f"{i}.mlp.post_act", relu(x) if c.get("activation") == "relu" else gelu(x))
    h = h + site(f"{i}.mlp.resid_delta", x @ p["mlp.c_proj.weight"].T + p["mlp.c_proj.bias"])
last, token = h[torch.arange(rows), pairs["last"]], ids[torch.arange(rows), pairs["last"]]
logits = norm(last, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T + w.get("logits_bias", 0)
if c["bigram"] == "dense":
    logits = logits + w["bigram_table"][token]
elif c["bigram"] == "counts":
    logits = logits.scatter_add(-1, w["bigram_index"][token], w["bigram_values"][token])
elif c["bigram"] == "low_rank":
    logits = logits + w["bigram_left"][token] @ w["bigram_right"]
first, second = circuit["answer_ids"]
margin = circuit["calibration"]["scale"] * (logits[:, first] - logits[:, second]) + circuit["calibration"]["shift"]
print(softplus(torch.where(pairs["correct"] == first, -margin, margin)).mean().item())

"""Recompute a circuit's figures from its result folder with nothing but torch: python tests/rerun_circuit.py FOLDER [TASK [FIGURE ...]]

A node of a circuit is computed, and competes in its site's AbsTopK with the circuit's other nodes; every other node has its replacement
value. A listed edge carries what its source is; every other weight carries its source's replacement value. Prints a line for each figure:
its place in result.json, what this script finds, and what is stored. Without a FIGURE all are computed whose files are there.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, relu, rms_norm, softplus

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": lambda x: gelu(x, approximate="tanh"), "relu": relu}
root = Path(sys.argv[1])
folder = root / "circuits" / sys.argv[2] if len(sys.argv) > 2 else next((root / "circuits").iterdir())
c, circuit = json.loads((root / "model/config.json").read_text()), json.loads((folder / "circuit.json").read_text())
w, means, pairs = (
    load_file(path) for path in (root / "model/model.safetensors", folder / "means.safetensors", folder / "held_out.safetensors")
)
stored = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {"loss": {}}
draws = load_file(folder / "conditions.safetensors") if (folder / "conditions.safetensors").exists() else {}
ids, (rows, length), width, heads = pairs["ids"], pairs["ids"].shape, c["d_model"], c["d_model"] // c["d_head"]
sign = pairs["sign"] if "sign" in pairs else torch.where(pairs["correct"] == circuit["answer_ids"][0], 1.0, -1.0)

node = {n["id"]: (n["site"], n["channel"]) for n in circuit["nodes"]}
kept = {site: torch.zeros(len(mean), dtype=torch.bool) for site, mean in means.items()}
for site, channel in node.values():
    kept[site][channel] = True
listed = {}  # (source site, target site): places of the listed edges
for edge in circuit["edges"]:
    (source, column), (target, row) = node[edge["source"]], node[edge["target"]]
    listed.setdefault((source, target), []).append((row, column))
every, no_node = ({site: torch.full_like(on, value) for site, on in kept.items()} for value in (True, False))
without = {site: ~on for site, on in kept.items()}


def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, (x.shape[-1],), gain, c["rms_norm_eps"])


def margins(on: dict, edges: str, base: dict, values: dict | None = None) -> torch.Tensor:
    """Logit of the right answer minus that of the wrong one, (rows,).

    on      {site: (width,) bool} the nodes that are computed
    edges   'listed': these alone carry what their source is; 'all'; 'cut': all but the listed
    base    {site: replacement values, (width,) or (rows, length, width)}
    values  filled with what every node is, where given
    """

    def at(site: str, x: torch.Tensor) -> torch.Tensor:
        """The values of a site's nodes, given what they are before AbsTopK."""
        size, place = x.shape[-1], site.partition(".")[2]
        k = c["site_k"].get(place, size) if c.get("site_k") else max(1, round(c["activation_frac"] * size))
        first, last = c.get("sparse_layers") or (0, c["n_layer"])
        k = k if first <= int(site.partition(".")[0]) <= last else size
        rivals = x.abs().masked_fill(~on[site], -1)
        x = torch.where(on[site], x * (rivals >= rivals.topk(k).values[..., -1:]), base[site])
        if values is not None:
            values[site] = x
        return x

    def send(source: str, target: str, weight: torch.Tensor, x: torch.Tensor, usual: torch.Tensor | None = None) -> torch.Tensor:
        """What the values x of a source send to a target; usual: what they would be, were all of them replaced."""
        there = weight if edges == "all" else torch.zeros_like(weight) if edges == "listed" else weight.clone()
        for place in listed.get((source, target), []) if edges != "all" else ():
            there[place] = weight[place] if edges == "listed" else 0
        return x @ there.T + (base[source] if usual is None else usual) @ (weight - there).T

    def read(h: torch.Tensor, p: dict, number: int) -> torch.Tensor:
        x = norm(h, p[f"ln_{number}.weight"])
        return x if not c.get("d_pos_emb") else torch.cat([x, norm(positions, p[f"ln_p{number}.weight"]).expand(rows, -1, -1)], -1)

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
        replaced = base[a + "v"].expand(rows, length, -1)
        mixed, usual = ((pattern @ t).transpose(1, 2).reshape(rows, length, width) for t in (v, split(replaced)))
        h = h + at(a + "resid_delta", send(a + "v", a + "resid_delta", p["attn.c_proj.weight"], mixed, usual) + p["attn.c_proj.bias"])
        x = send(m + "act_in", m + "post_act", p["mlp.c_fc.weight"], at(m + "act_in", read(h, p, 2))) + p["mlp.c_fc.bias"]
        x = at(m + "post_act", ACTIVATIONS[c.get("activation", "gelu")](x))
        h = h + at(m + "resid_delta", send(m + "post_act", m + "resid_delta", p["mlp.c_proj.weight"], x) + p["mlp.c_proj.bias"])
    last, token = h[torch.arange(rows), pairs["last"]], ids[torch.arange(rows), pairs["last"]]
    logits = norm(last, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T + w.get("logits_bias", 0)
    if c["bigram"] == "dense":
        logits = logits + w["bigram_table"][token]
    elif c["bigram"] == "counts":
        logits = logits.scatter_add(-1, w["bigram_index"][token], w["bigram_values"][token])
    elif c["bigram"] == "low_rank":
        logits = logits + w["bigram_left"][token] @ w["bigram_right"]
    return (logits.gather(1, pairs["correct"][:, None]) - logits.gather(1, pairs["wrong"][:, None]))[:, 0]


def loss(margin: torch.Tensor, scale: float = 1.0, shift: float = 0.0) -> float:
    return softplus(-scale * margin - sign * shift).mean().item()


def calibrated(name: str, margin: torch.Tensor) -> float:
    """With the scale and the shift that this network had on the select split."""
    return loss(margin, *stored["validation"]["calibrations"][name])


def under(condition: str) -> float:
    """The circuit at the model's own scale, where other nodes have the values of the condition."""
    if condition in ("mean", "zero"):
        return loss(margins(kept, "listed", means if condition == "mean" else zeros))
    own: dict = {}
    margins(every, "all", means, own)
    if condition in ("same", "other"):
        base = {site: x[draws[condition]] for site, x in own.items()}
    else:
        share = torch.arange(rows) // draws["prompts"].item()
        base = {site: torch.where(draws[f"subset.{site}"][share][:, None], x, means[site]) for site, x in own.items()}
    return loss(margins(kept, "listed", base))


zeros = {site: torch.zeros_like(mean) for site, mean in means.items()}
own_scale, ablation = circuit["calibration"], stored.get("ablation", "mean")
usual = zeros if ablation == "zero" else means  # what the paper's standard ablates to
figures = {
    "loss.circuit": lambda: loss(margins(kept, "listed", usual), own_scale["scale"], own_scale["shift"]),
    "loss.full": lambda: loss(margins(every, "all", usual)),
    "loss.without_circuit": lambda: calibrated("without_circuit", margins(without, "all", usual)),
    "validation.removed.nothing": lambda: calibrated("without nothing", margins(every, "all", usual)),
    "validation.removed.edges": lambda: calibrated("without edges", margins(every, "cut", usual)),
    "validation.uncalibrated": lambda: loss(margins(kept, "listed", usual)),
    "validation.ablation.mean": lambda: calibrated("mean", margins(kept, "listed", means)),
    "validation.ablation.zero": lambda: calibrated("zero", margins(kept, "listed", zeros)),
    **{f"validation.conditions.{name}": lambda name=name: under(name) for name in ("mean", "zero", "same", "other", "subset")},
}
if ablation == "resample":  # another prompt's values, drawn in parts of the split: not in the files
    for figure in ("loss.circuit", "loss.without_circuit", "validation.removed.edges", "validation.uncalibrated"):
        del figures[figure]
if stored.get("standard") == "robust":  # its loss is that of the worst condition
    figures["loss.circuit"] = lambda: max(under(name) for name in ("mean", "zero", "same", "other", "subset"))
if "calibrations" not in stored.get("validation", {}) or not draws:  # an earlier version wrote the result
    some = ("mean", "zero") if stored.get("standard") == "robust" else ()
    figures = {name: figures[name] for name in [f"validation.conditions.{one}" for one in some] or ["loss.circuit"] if name in figures}
if unknown := [name for name in sys.argv[3:] if name not in figures]:
    sys.exit(f"cannot recompute {', '.join(unknown)} from {folder}; these can be: {', '.join(figures)}")
for figure in sys.argv[3:] or figures:
    found: dict | float = stored
    for part in figure.split("."):
        found = found.get(part, {}) if isinstance(found, dict) else found
    found = found.get("loss") if isinstance(found, dict) else found
    print(figure, figures[figure](), found)

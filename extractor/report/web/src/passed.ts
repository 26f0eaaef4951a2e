// What every edge brings to a token of the shown prompt.

import { type PageData, STEPS } from "./data";
import type { Choice } from "./state";
import { shownOf, tokenOf, type View } from "./view";

/** {edge: weight times the source's deviation from its mean}: at the chosen token, else the last; of a value to a write, through attention from all tokens.
 *  Of a difference: of the first prompt less the second. */
export function passed(data: PageData, view: View, choice: Choice): Map<string, number> {
  const shown = shownOf(view, choice), heads = new Map(data.nodes.map(node => [node.id, node.head]));
  const one = (which: 0 | 1) => {
    const at = tokenOf(view, choice) ?? view.ids[which].length - 1;
    return new Map(data.edges.map(([source, target, weight]) => [`${source} ${target}`, weight * arrives(data, view, which, at, source, target, heads.get(source))]));
  };
  if (shown !== "difference") return one(shown === "second" ? 1 : 0);
  const second = one(1);
  return new Map([...one(0)].map(([edge, value]) => [edge, value - second.get(edge)!]));
}

function arrives(data: PageData, view: View, which: 0 | 1, at: number, source: string, target: string, head: number | undefined): number {
  const steps = view.rows(source)?.[which], scale = (data.tokens!.nodes[source]?.scale ?? 0) / STEPS;
  if (!steps) return 0;
  if (!target.includes(".attn.resid_delta.")) return steps[at]! * scale;
  const shares = view.heads[`${source.split(".")[0]}.${head}`]?.[which][at] ?? [];
  return shares.reduce((sum, share, from) => sum + (share / 255) * steps[from]! * scale, 0);
}

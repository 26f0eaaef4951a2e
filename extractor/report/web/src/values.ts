// Values of nodes on the shown pairs.

import type { Row, TokenData } from "./data";
import type { Choice } from "./state";

/** A node's values as steps, for the prompt or the difference that is shown; null where there are none. */
export function rowOf(data: TokenData | null, choice: Choice, node: string): Row | null {
  const found = data?.nodes[node]?.values[choice.pair];
  if (!found) return null;
  if (choice.shown !== "difference") return found[choice.shown === "first" ? 0 : 1];
  return found[0].map((step, i) => (step - (found[1][i] ?? 0)) / 2);
}

export function stepAt(data: TokenData | null, choice: Choice, node: string, token: number): number | null {
  return rowOf(data, choice, node)?.[token] ?? null;
}

/** The value itself: for a difference that between the two prompts, else the deviation from the node's mean. */
export function deviation(data: TokenData, choice: Choice, node: string, step: number): number {
  return (step / 127) * data.nodes[node]!.scale * (choice.shown === "difference" ? 2 : 1);
}

// How the picture is painted: nodes by value, by what they tell apart or by what they do; edges by weight or by what they do.

import type { Edge, NodeFacts, PageData } from "./data";
import { STEPS } from "./data";

export type Fill = "value" | "auc" | "removed";
export type Wires = "weight" | "removed" | "passed";
export const FILLS: Fill[] = ["value", "auc", "removed"];
export const WIRES: Wires[] = ["weight", "removed", "passed"];

const WORDS: Record<Fill, string> = {
  value: "", // see `words`
  auc: "Blue: higher before the first answer, orange: before the second. The stronger, the nearer is the AUC to 1 at the node’s best place.",
  removed: "The stronger the blue, the more the loss rises without this node; orange: it falls.",
};

export class Paint {
  fill: Fill = "value";
  wires: Wires = "weight";
  private readonly facts: Map<string, NodeFacts>;
  private readonly rises: Map<string, number>;
  private readonly highest: { node: number; edge: number };

  constructor(private readonly data: PageData) {
    this.facts = new Map(data.nodes.map(node => [node.id, node]));
    this.rises = new Map(data.edges.filter(edge => edge[3] !== null).map(edge => [key(edge), edge[3]!]));
    const nodes = data.nodes.map(node => Math.abs(this.rise(node) ?? 0));
    this.highest = { node: Math.max(1e-9, ...nodes), edge: Math.max(1e-9, ...this.rises.values()) };
  }

  /** Which of the choices have numbers. */
  has(what: Fill): boolean {
    if (what === "auc") return this.data.nodes.some(node => node.auc);
    return what !== "removed" || this.data.nodes.some(node => this.rise(node) !== null);
  }

  hasWires(what: Wires): boolean {
    return what === "weight" || (what === "removed" ? this.rises.size > 0 : this.data.tokens !== null);
  }

  /** token: the text of the chosen one, whose values nodes are painted by; other: another circuit than the page's is drawn. */
  words(token: string | null, other: boolean): string {
    const instead = this.fill === "value" && token === null && this.has("removed");
    const values = token === null ? "" : `Values at “${token}”: blue above the node’s mean, orange below.`;
    const nodes = instead ? `No token is chosen. ${WORDS.removed}` : this.fill === "value" ? values : WORDS[this.fill];
    const edges = EDGES[this.wires];
    return [nodes, edges, other && (nodes || edges) ? "All this was measured in the circuit of this page; nodes that it lacks are white." : ""].filter(Boolean).join(" ");
  }

  /** -STEPS to STEPS; null: not painted. Of values: the rise of the loss, which stands where no token is chosen. */
  step(id: string): number | null {
    const node = this.facts.get(id)!;
    if (this.fill !== "auc") return this.rise(node) === null ? null : (STEPS * (this.rise(node) ?? 0)) / this.highest.node;
    const found = Object.values(node.auc ?? {}).filter(auc => auc !== null);
    if (!found.length) return null;
    const best = found.reduce((a, b) => (Math.abs(b - 0.5) > Math.abs(a - 0.5) ? b : a));
    return 2 * STEPS * (best - 0.5);
  }

  /** Width, dashes and colour of an edge; '' for those of its weight. passed: see `Passed`. */
  line(edge: string, passed: Map<string, number> | null): [width: string, dashes: string, colour: string] {
    if (this.wires === "weight") return ["", "", ""];
    const found = this.wires === "removed" ? this.rises.get(edge) : passed?.get(edge);
    if (found === undefined) return ["1", "1 4", ""];
    if (this.wires === "removed") return [String(0.5 + 6 * Math.sqrt(Math.max(0, found) / this.highest.edge)), "", ""];
    const most = Math.max(1e-9, ...Array.from(passed!.values(), Math.abs));
    return [String(0.3 + 6 * Math.sqrt(Math.abs(found) / most)), "", `rgb(var(--${found < 0 ? "below" : "above"}))`];
  }

  private rise(node: NodeFacts): number | null {
    return node.without === undefined || this.data.loss === null ? null : node.without - this.data.loss;
  }
}

const EDGES: Record<Wires, string> = {
  weight: "",
  removed: "Wide edges: the loss rises without them; dotted: not measured.",
  passed: "Edges: what they bring to the chosen token of the shown prompt, else to the last: weight times the source’s deviation from its mean, through attention from all tokens; blue raises, orange lowers the target; dotted: not of the circuit that runs.",
};

const key = (edge: Edge): string => `${edge[0]} ${edge[1]}`;

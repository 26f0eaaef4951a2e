// How the picture is painted: nodes by value, by what they tell apart or by what they do; edges by weight or by what they do.

import type { Edge, NodeFacts, PageData } from "./data";
import { STEPS } from "./data";

export type Fill = "value" | "auc" | "removed";
export type Wires = "weight" | "removed";
export const FILLS: Fill[] = ["value", "auc", "removed"];
export const WIRES: Wires[] = ["weight", "removed"];

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
  has(what: Fill | Wires): boolean {
    if (what === "auc") return this.data.nodes.some(node => node.auc);
    return what !== "removed" || this.data.nodes.some(node => this.rise(node) !== null);
  }

  get hasEdges(): boolean {
    return this.rises.size > 0;
  }

  /** token: the text of the chosen one, whose values nodes are painted by; other: another circuit than the page's is drawn. */
  words(token: string | null, other: boolean): string {
    const instead = this.fill === "value" && token === null && this.has("removed");
    const values = token === null ? "" : `Values at “${token}”: blue above the node’s mean, orange below.`;
    const nodes = instead ? `No token is chosen. ${WORDS.removed}` : this.fill === "value" ? values : WORDS[this.fill];
    const edges = this.wires === "removed" ? "Wide edges: the loss rises without them; dotted: not measured." : "";
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

  /** Width and dashes of an edge, pixels; '' for those of its weight. */
  line(source: string, target: string): [width: string, dashes: string] {
    if (this.wires === "weight") return ["", ""];
    const rise = this.rises.get(`${source} ${target}`);
    return rise === undefined ? ["1", "1 4"] : [String(0.5 + 6 * Math.sqrt(Math.max(0, rise) / this.highest.edge)), ""];
  }

  private rise(node: NodeFacts): number | null {
    return node.without === undefined || this.data.loss === null ? null : node.without - this.data.loss;
  }
}

const key = (edge: Edge): string => `${edge[0]} ${edge[1]}`;

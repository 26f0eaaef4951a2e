// What is shown of a pair of prompts: the numbers that Python stored, or, once something was changed, those of the circuit in this page.

import { PageCircuit } from "./circuit";
import { type PageData, type Row, STEPS } from "./data";
import { visible } from "./elements";
import type { Choice } from "./state";

export interface View {
  ids: [number[], number[]]; // to compare tokens; of stored pairs their texts' places
  texts: [string[], string[]];
  answers: [string, string]; // the right ones
  first: [number, number]; // probability of the first answer
  plain: [number, number]; // the same without changes
  rows: (node: string) => [Row, Row] | null; // deviations from the node's mean: STEPS is the largest stored one
  heads: Record<string, [Row[], Row[]]>; // shares of attention, 0 to 255
  problem: string | null; // why typed prompts are not shown
}

export class Views {
  readonly circuit: PageCircuit | null;
  private readonly means: Map<string, number>;
  private last: { key: string; view: View } | null = null;

  constructor(private readonly data: PageData) {
    this.circuit = data.live && new PageCircuit(data.live, data.calibration);
    this.means = new Map(data.nodes.map(node => [node.id, node.mean]));
  }

  of(choice: Choice): View {
    const key = JSON.stringify([choice.pair, choice.typed, choice.edits]);
    if (this.last?.key !== key) this.last = { key, view: this.made(choice) };
    return this.last.view;
  }

  private made(choice: Choice): View {
    if (!this.circuit) return this.stored(choice.pair);
    const own = this.circuit.ids(choice.pair);
    try {
      const ids = choice.typed?.map(text => this.circuit!.encode(text)) as [number[], number[]] | undefined;
      return this.run(this.circuit, choice, ids ?? own);
    } catch (error) {
      return { ...this.run(this.circuit, choice, own), problem: (error as Error).message };
    }
  }

  private answers(number: number): [string, string] {
    const { texts, pairs } = this.data.tokens!;
    return pairs[number]!.answers.map(place => texts[place]!) as [string, string];
  }

  private stored(number: number): View {
    const tokens = this.data.tokens!, pair = tokens.pairs[number]!;
    const heads = Object.fromEntries(Object.entries(tokens.heads).map(([head, pairs]) => [head, pairs[number]!]));
    const text = (id: number) => tokens.texts[id]!;
    return {
      ids: pair.tokens,
      texts: [pair.tokens[0].map(text), pair.tokens[1].map(text)],
      answers: this.answers(number),
      first: pair.first,
      plain: pair.first,
      rows: node => tokens.nodes[node]?.values[number] ?? null,
      heads,
      problem: null,
    };
  }

  private run(circuit: PageCircuit, { pair, edits }: Choice, ids: [number[], number[]]): View {
    const plain = circuit.plain(ids, pair), found = circuit.both(ids, pair, edits);
    const steps = (node: string, values: Float64Array): Row => {
      const scale = this.data.tokens!.nodes[node]!.scale, mean = this.means.get(node)!;
      return Array.from(values, value => ((value - mean) / scale) * STEPS);
    };
    const shown = (prompt: number[]) => prompt.map(id => visible(circuit.text(id)));
    const shares = (which: 0 | 1, head: string): Row[] => (found[which].patterns.get(head) ?? []).map(row => Array.from(row, share => 255 * share));
    return {
      ids,
      texts: [shown(ids[0]), shown(ids[1])],
      answers: this.answers(pair),
      first: [circuit.probability(found[0]), circuit.probability(found[1])],
      plain: [circuit.probability(plain[0]), circuit.probability(plain[1])],
      rows: node => {
        const [a, b] = [found[0].values.get(node), found[1].values.get(node)];
        return a && b && this.data.tokens!.nodes[node] ? [steps(node, a), steps(node, b)] : null;
      },
      heads: Object.fromEntries([...found[0].patterns.keys()].map(head => [head, [shares(0, head), shares(1, head)]])),
      problem: null,
    };
  }
}

/** A node's deviations for the prompt or the difference that is shown; null where there are none. */
export function rowOf(view: View, choice: Choice, node: string): Row | null {
  const found = view.rows(node);
  if (!found) return null;
  if (choice.shown !== "difference") return found[choice.shown === "first" ? 0 : 1];
  return found[0].map((step, i) => (step - (found[1][i] ?? 0)) / 2);
}

/** The value itself: for a difference that between the two prompts, else the deviation from the node's mean. */
export function deviation(scale: number, choice: Choice, step: number): number {
  return (step / STEPS) * scale * (choice.shown === "difference" ? 2 : 1);
}

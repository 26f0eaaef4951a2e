// What the reader has chosen. It is kept in the address, so that a link opens the same view.

export type Shown = "first" | "second" | "difference";

export interface Choice {
  node: string | null;
  pair: number;
  shown: Shown;
  token: number | null;
}

const NOTHING: Choice = { node: null, pair: 0, shown: "first", token: null };
const SHOWN: Shown[] = ["first", "second", "difference"];

export class State {
  choice: Choice;
  private readonly listeners: ((choice: Choice, before: Choice) => void)[] = [];

  /** lengths: number of tokens of each pair's prompts. */
  constructor(private readonly nodes: Set<string>, private readonly lengths: number[]) {
    this.choice = this.fitting({ ...NOTHING, ...this.read() });
    addEventListener("hashchange", () => {
      if (!location.hash) return this.apply(NOTHING);
      const found = this.read();
      if (Object.keys(found).length) this.set(found);
    });
  }

  onChange(listener: (choice: Choice, before: Choice) => void): void {
    this.listeners.push(listener);
  }

  set(change: Partial<Choice>): void {
    const next = this.fitting({ ...this.choice, ...change });
    if (next.pair !== this.choice.pair && change.token === undefined) next.token = null;
    history.replaceState(null, "", this.hash(next) || location.pathname + location.search);
    this.apply(next);
  }

  hash(choice: Choice): string {
    const parts = new URLSearchParams();
    if (choice.node) parts.set("node", choice.node);
    if (choice.pair) parts.set("pair", String(choice.pair + 1));
    if (choice.shown !== "first") parts.set("shown", choice.shown);
    if (choice.token !== null) parts.set("token", String(choice.token + 1));
    const text = parts.toString();
    return text && "#" + text;
  }

  /** Without a token that the pair's prompts do not have. */
  private fitting(choice: Choice): Choice {
    return choice.token !== null && choice.token >= (this.lengths[choice.pair] ?? 0) ? { ...choice, token: null } : choice;
  }

  private apply(next: Choice): void {
    const before = this.choice;
    this.choice = next;
    for (const listener of this.listeners) listener(next, before);
  }

  /** What the address says; a link to a section says nothing. Nodes, pairs and views that do not exist are left out. */
  private read(): Partial<Choice> {
    const parts = new URLSearchParams(location.hash.slice(1)), found: Partial<Choice> = {};
    const node = parts.get("node"), shown = parts.get("shown") as Shown | null;
    const number = (key: string, most: number) => {
      const value = Number(parts.get(key)) - 1;
      return Number.isInteger(value) && value >= 0 && value < most ? value : null;
    };
    if (node && this.nodes.has(node)) found.node = node;
    if (shown && SHOWN.includes(shown)) found.shown = shown;
    const pair = number("pair", this.lengths.length), token = number("token", Infinity);
    if (pair !== null) found.pair = pair;
    if (token !== null) found.token = token;
    return found;
  }
}

// The card of a node: what it tells apart, what it does, where it is active, what it is joined to.

import type { Edge, NodeFacts, PageData, Passage, Place } from "./data";
import { make, nats, nodeLink, percent, short, signed, tint, visible } from "./elements";
import { Switches } from "./live";
import { noteFields, type Notes } from "./notes";
import type { State } from "./state";
import type { Views } from "./view";

const PLACES: [Place, string][] = [["difference", "at the token that differs"], ["after", "between it and the last"], ["end", "at the last token"]];

export class Card {
  private readonly panel = document.getElementById("card")!;
  private readonly byId: Map<string, NodeFacts>;
  private readonly hint: string;
  private switches: Switches | null = null;

  constructor(private readonly data: PageData, private readonly state: State, private readonly views: Views, private readonly notes: Notes) {
    this.byId = new Map(data.nodes.map(node => [node.id, node]));
    this.hint = this.panel.textContent!.trim();
  }

  show(id: string | null): void {
    const node = id === null ? undefined : this.byId.get(id);
    this.panel.classList.toggle("filled", node !== undefined);
    this.switches = null;
    if (!node) {
      this.panel.replaceChildren(make("p", "note", this.hint));
      return;
    }
    const close = make("button", "close", "×");
    close.type = "button";
    close.setAttribute("aria-label", "Close the card");
    close.addEventListener("click", () => {
      this.state.set({ node: null });
      document.querySelector<HTMLElement>(".picture")!.focus({ preventScroll: true });
    });
    this.switches = this.views.circuit && new Switches(node.id, visible(this.data.answers[0] ?? ""), this.state, this.views);
    this.panel.replaceChildren(
      make("header", "", make("h3", "", node.id), close),
      make("p", "note", node.site),
      ...(this.switches ? [this.switches.row] : []),
      facts(node, this.data),
      noteFields(node.id, this.notes),
      ...this.joined(node.id),
      ...passagesOf(node.id, this.data),
    );
    this.panel.scrollTop = 0;
  }

  /** After the circuit ran with other changes. */
  refresh(): void {
    this.switches?.update();
  }

  private joined(id: string): Node[] {
    return [
      ...edgeList("From", this.data.edges.filter(edge => edge[1] === id), 0),
      ...edgeList("To", this.data.edges.filter(edge => edge[0] === id), 1),
    ];
  }
}

function facts(node: NodeFacts, data: PageData): HTMLElement {
  const list = make("dl", "facts");
  const add = (name: string, value: string | Node) => list.append(make("dt", "", name), make("dd", "", value));
  if (node.auc) {
    for (const [place, words] of PLACES) {
      const auc = node.auc[place];
      if (auc !== null && Math.abs(auc - 0.5) >= 0.1) add(`AUC ${words}`, `${Math.max(auc, 1 - auc).toFixed(2)}, higher before ${answer(data, auc > 0.5 ? 0 : 1)}`);
    }
  }
  if (node.moved !== undefined) add("set to the other prompt’s value", `moves ${percent(node.moved)} of the answer, flips ${percent(node.flipped!)}`);
  if (node.without !== undefined && data.loss !== null) add("loss if removed", `${nats(node.without)} nats, with it ${nats(data.loss)}`);
  if (node.steering !== undefined) add("steers the dense model", `other answer ${percent(node.steering)} (select pairs)`);
  add("mean", short(node.mean));
  if (node.percentiles) {
    const at = (percentile: number) => short(node.percentiles![data.percentiles!.indexOf(percentile)]!);
    add("values on text", `${at(1)} to ${at(99)} (1–99 %), median ${at(50)}, nonzero ${percent(node.nonzero!)}`);
  }
  if (node.unexplained != null) add("role in the full model", `${node.changed ? "another: " : ""}${node.unexplained > 1 ? "its values differ from those there by more than they vary there" : `${percent(node.unexplained)} of its variance unexplained`}`);
  if (node.reads.length) add("furthest from its mean at", tokens(node.reads));
  if (node.writes.length) add("raises, in the full model", tokens(node.writes));
  return list;
}

const answer = (data: PageData, which: number): string => (data.answers[which] ? `“${visible(data.answers[which])}”` : which ? "the second answer" : "the first answer");
const tokens = (texts: string[]): HTMLElement => make("span", "", ...texts.flatMap(text => [make("code", "token", text), " "]));

function edgeList(heading: string, edges: Edge[], end: 0 | 1): Node[] {
  if (!edges.length) return [];
  const measured = edges.some(edge => edge[3] !== null);
  const sorted = [...edges].sort((a, b) => (b[3] ?? -9) - (a[3] ?? -9) || Math.abs(b[2]) - Math.abs(a[2]));
  const list = make("ul", "joined");
  for (const edge of sorted) {
    const rise = edge[3] === null ? "" : signed(Number(edge[3].toFixed(3)));
    list.append(make("li", "", nodeLink(edge[end]), make("span", edge[2] < 0 ? "negative" : "positive", signed(edge[2])), measured ? make("span", "", rise) : null));
  }
  return [make("h4", "", `${heading} ${edges.length} node${edges.length > 1 ? "s" : ""} `, make("small", "note", measured ? "weight, loss if removed" : "weight")), list];
}

function passagesOf(id: string, data: PageData): Node[] {
  const found = data.tokens?.passages[id];
  if (!found) return [];
  const rows = found.texts.map(text => passage(text, data.tokens!.texts, found.scale));
  return [make("h4", "", "In ordinary text ", make("small", "note", "share of tokens with a higher value")), make("ul", "passages", ...rows)];
}

function passage(one: Passage, texts: string[], scale: number): HTMLElement {
  const parts = one.tokens.map((token, i) => {
    const step = one.values[i]!, part = make("span", i === one.at ? "at" : "", texts[token]!.replaceAll("·", " "));
    part.style.background = tint(step, 0.4);
    part.title = `${signed(Number(short((step / 127) * scale)))} from the mean`;
    return part;
  });
  return make("li", "", make("small", "", `${Number((100 * one.rank).toFixed(1))} %`), make("code", "", ...parts));
}

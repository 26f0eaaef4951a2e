// A picture of circuits: what a node is joined to lights up, and nodes take the colour of their value at the chosen token.

import type { Drawing, PageData } from "./data";
import { tint } from "./elements";
import type { Notes } from "./notes";
import type { Paint, Wires } from "./paint";
import type { State } from "./state";
import { rowOf, type Views } from "./view";

export class Picture {
  readonly nodes: SVGGElement[]; // those of the page's circuit
  private readonly all: SVGGElement[];
  private readonly wires: SVGPathElement[];
  private readonly byId: Map<string, SVGGElement>;
  private lighted: string | null = null;
  private drawn: Wires = "weight"; // what the widths of edges are drawn by
  private readonly own: { nodes: Set<string>; edges: Set<string> };

  constructor(readonly svg: SVGSVGElement, private readonly data: PageData, private readonly state: State, private readonly views: Views, private readonly paint: Paint, private readonly notes: Notes, private readonly preview: (id: string | null) => void) {
    this.own = { nodes: new Set(data.nodes.map(node => node.id)), edges: new Set(data.edges.map(([source, target]) => `${source} ${target}`)) };
    this.all = [...svg.querySelectorAll<SVGGElement>(".node")];
    this.nodes = this.all.filter(node => this.own.nodes.has(node.dataset.id!));
    this.wires = [...svg.querySelectorAll<SVGPathElement>("path.edge, path.stream")];
    this.byId = new Map(this.nodes.map(node => [node.dataset.id!, node]));
    svg.setAttribute("role", "group");
    svg.querySelector("title")?.remove();
    this.nodes.forEach((node, i) => this.prepare(node, i));
    for (const wire of this.wires) if (wire.dataset.weight && !wire.firstChild) wire.append(titleOf(wire.dataset));
  }

  /** In a picture of several circuits: outline what the chosen one adds to the page's, fade what it lacks, hide what only others have. */
  mark({ nodes, edges }: Drawing): void {
    const chosen = nodes && { nodes: new Set(nodes), edges: new Set(edges) };
    const paint = (shape: Element, own: boolean, there: boolean) => {
      shape.classList.toggle("added", there && !own);
      shape.classList.toggle("left", own && !there);
      shape.classList.toggle("absent", !own && !there);
    };
    for (const node of this.all) paint(node, this.own.nodes.has(node.dataset.id!), !chosen || chosen.nodes.has(node.dataset.id!));
    for (const wire of this.wires) {
      const { source, target } = wire.dataset, ends = [source!, target!].filter(Boolean);
      if (wire.classList.contains("edge")) paint(wire, this.own.edges.has(`${source} ${target}`), !chosen || chosen.edges.has(`${source} ${target}`));
      else paint(wire, ends.every(id => this.own.nodes.has(id)), !chosen || ends.every(id => chosen.nodes.has(id)));
    }
  }

  update(): void {
    const { node, token, edits, shown } = this.state.choice, view = this.data.tokens && this.views.of(this.state.choice);
    node ? this.light(node) : this.dim();
    for (const chip of this.nodes) {
      const id = chip.dataset.id!, here = token === null || !view ? null : (rowOf(view, this.state.choice, id)?.[token] ?? null);
      const step = this.paint.fill === "value" ? here : this.paint.step(id);
      const box = chip.querySelector("rect")!;
      box.style.fill = step === null ? "" : tint(step);
      const colour = this.notes.colour(id);
      if (box.style.stroke !== colour) box.style.stroke = colour;
      chip.classList.toggle("valued", step !== null);
      chip.classList.toggle("changed-here", id in edits);
      chip.classList.toggle("grouped", colour !== "");
      chip.classList.toggle("noted", this.notes.of(id).text !== "");
    }
    const note = document.getElementById("token-note"), length = view?.ids[shown === "second" ? 1 : 0].length ?? 0;
    if (note) {
      note.hidden = token === null || token >= length || this.paint.fill !== "value";
      note.textContent = note.hidden ? "" : `The picture above shows the ${shown === "difference" ? "differences" : "values"} at token ${token! + 1}.`;
    }
    if (this.drawn === this.paint.wires) return;
    this.drawn = this.paint.wires;
    for (const wire of this.wires) if (wire.classList.contains("edge")) wire.style.strokeWidth = this.paint.width(wire.dataset.source!, wire.dataset.target!);
  }

  light(id: string): void {
    if (this.lighted === id) return;
    this.lighted = id;
    const lit = new Set([id]);
    for (const wire of this.wires) {
      const { source, target } = wire.dataset;
      const touches = source === id || target === id;
      wire.classList.toggle("lit", touches);
      if (touches) lit.add(source!).add(target!);
    }
    for (const node of this.all) {
      node.classList.toggle("lit", lit.has(node.dataset.id!));
      node.classList.toggle("chosen", node.dataset.id === id);
    }
    this.svg.classList.add("focused");
  }

  dim(): void {
    if (this.lighted === null) return;
    this.lighted = null;
    this.svg.classList.remove("focused");
    for (const shape of [...this.all, ...this.wires]) shape.classList.remove("lit", "chosen");
  }

  has(id: string): boolean {
    return this.byId.has(id);
  }

  reveal(id: string): void {
    const underSheet = matchMedia("(max-width: 900px)").matches; // there the card lies over the lower part of the window
    this.byId.get(id)?.scrollIntoView({ block: underSheet ? "start" : "nearest", inline: "center" });
  }

  private prepare(node: SVGGElement, place: number): void {
    const title = node.querySelector("title");
    node.setAttribute("tabindex", place ? "-1" : "0");
    node.setAttribute("role", "button");
    node.setAttribute("aria-label", (title?.textContent ?? "").split("\n").join(", "));
    title?.remove(); // the card shows this text; two tips would overlap
    const id = node.dataset.id!;
    node.addEventListener("pointerenter", () => this.peek(id));
    node.addEventListener("pointerleave", () => this.peek(null));
    node.addEventListener("focus", () => node.matches(":focus-visible") && this.state.set({ node: id }));
    const toggle = () => this.state.set({ node: this.state.choice.node === id ? null : id });
    node.addEventListener("click", toggle);
    node.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return this.move(event, node);
      event.preventDefault();
      toggle();
    });
  }

  private peek(id: string | null): void {
    if (this.state.choice.node) return;
    id ? this.light(id) : this.dim();
    this.preview(id);
  }

  private move(event: KeyboardEvent, node: SVGGElement): void {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = this.nodes[(this.nodes.indexOf(node) + step + this.nodes.length) % this.nodes.length]!;
    for (const other of this.nodes) other.setAttribute("tabindex", other === next ? "0" : "-1");
    next.focus();
  }
}

function titleOf({ source, target, weight }: DOMStringMap): SVGElement {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = `${source} to ${target}: ${Number(weight) > 0 ? "+" : ""}${weight}`;
  return title;
}

// The picture of the circuit: what a node is joined to lights up, and nodes take the colour of their value at the chosen token.

import type { PageData } from "./data";
import { tint } from "./elements";
import { type Fill, Paint, type Wires } from "./paint";
import { bindSaving } from "./save";
import type { State } from "./state";
import { rowOf, type Views } from "./view";

export class Picture {
  readonly nodes: SVGGElement[];
  private readonly svg: SVGSVGElement;
  private readonly wires: SVGPathElement[];
  private readonly byId: Map<string, SVGGElement>;
  private readonly paint: Paint;

  constructor(private readonly data: PageData, private readonly state: State, private readonly views: Views, private readonly preview: (id: string | null) => void) {
    this.svg = document.querySelector<SVGSVGElement>(".picture svg")!;
    this.nodes = [...this.svg.querySelectorAll<SVGGElement>(".node")];
    this.wires = [...this.svg.querySelectorAll<SVGPathElement>("path.edge, path.stream")];
    this.byId = new Map(this.nodes.map(node => [node.dataset.id!, node]));
    this.svg.setAttribute("role", "group");
    this.svg.querySelector("title")?.remove();
    this.nodes.forEach((node, i) => this.prepare(node, i));
    this.scaling();
    this.paint = new Paint(data);
    this.painting();
    bindSaving(this.svg);
  }

  update(): void {
    const { node, token, edits, shown } = this.state.choice, view = this.data.tokens && this.views.of(this.state.choice);
    node ? this.light(node) : this.dim();
    for (const chip of this.nodes) {
      const id = chip.dataset.id!, here = token === null || !view ? null : (rowOf(view, this.state.choice, id)?.[token] ?? null);
      const step = this.paint.fill === "value" ? here : this.paint.step(id);
      const box = chip.querySelector("rect")!;
      box.style.fill = step === null ? "" : tint(step);
      chip.classList.toggle("valued", step !== null);
      chip.classList.toggle("changed-here", id in edits);
    }
    const note = document.getElementById("token-note"), length = view?.ids[shown === "second" ? 1 : 0].length ?? 0;
    if (note) {
      note.hidden = token === null || token >= length || this.paint.fill !== "value";
      note.textContent = note.hidden ? "" : `The picture above shows the ${shown === "difference" ? "differences" : "values"} at token ${token! + 1}.`;
    }
    for (const wire of this.wires) if (wire.classList.contains("edge")) wire.style.strokeWidth = this.paint.width(wire.dataset.source!, wire.dataset.target!);
  }

  light(id: string): void {
    const lit = new Set([id]);
    for (const wire of this.wires) {
      const { source, target } = wire.dataset;
      const touches = source === id || target === id;
      wire.classList.toggle("lit", touches);
      if (touches) lit.add(source!).add(target!);
    }
    for (const node of this.nodes) {
      node.classList.toggle("lit", lit.has(node.dataset.id!));
      node.classList.toggle("chosen", node.dataset.id === id);
    }
    this.svg.classList.add("focused");
  }

  dim(): void {
    this.svg.classList.remove("focused");
    for (const shape of [...this.nodes, ...this.wires]) shape.classList.remove("lit", "chosen");
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

  /** What nodes and edges are painted by; choices without numbers are not offered. */
  private painting(): void {
    const fill = document.querySelector<HTMLSelectElement>("#fill")!, wires = document.querySelector<HTMLSelectElement>("#wires")!;
    for (const option of [...fill.options]) if (!this.paint.has(option.value as Fill)) option.remove();
    fill.closest("label")!.hidden = fill.options.length < 2;
    wires.closest("label")!.hidden = !this.paint.hasEdges;
    const change = () => {
      [this.paint.fill, this.paint.wires] = [fill.value as Fill, wires.value as Wires];
      document.getElementById("paint-note")!.textContent = this.paint.words;
      this.update();
    };
    fill.addEventListener("change", change);
    wires.addEventListener("change", change);
  }

  /** The buttons that make the picture larger and smaller; "fit" shows all of it. */
  private scaling(): void {
    const [width, height] = [this.svg.viewBox.baseVal.width, this.svg.viewBox.baseVal.height];
    const frame = this.svg.closest<HTMLElement>(".picture")!;
    let scale = 0; // 0: the width of the page
    const show = () => {
      this.svg.style.width = scale ? `${Math.round(width * scale)}px` : "";
      this.svg.style.minWidth = scale ? "0" : "";
    };
    const now = () => this.svg.getBoundingClientRect().width / width;
    const actions: Record<string, () => void> = {
      larger: () => (scale = Math.min(4, now() * 1.25)),
      smaller: () => (scale = Math.max(0.1, now() / 1.25)),
      fit: () => (scale = Math.min(frame.clientWidth / width, (innerHeight - 40) / height)),
      width: () => (scale = 0),
    };
    for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-zoom]")) {
      button.addEventListener("click", () => {
        actions[button.dataset.zoom!]!();
        show();
      });
    }
  }
}

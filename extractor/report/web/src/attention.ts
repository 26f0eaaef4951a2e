// Where each head looks: a triangle of attention for the shown prompt. Pointing at a token lights the tokens that it reads.

import type { Row } from "./data";
import { make, percent } from "./elements";
import type { State } from "./state";
import type { Views } from "./view";

const SVG = "http://www.w3.org/2000/svg", CELL = 14;

export class AttentionView {
  readonly place = document.getElementById("attention")!;
  private figures: Figure[] = [];
  private drawn = ""; // the prompt and the heads of the figures

  constructor(private readonly state: State, private readonly views: Views) {
    this.draw();
  }

  draw(): void {
    const which = this.state.choice.shown === "second" ? 1 : 0, view = this.views.of(this.state.choice);
    const prompt = which ? "second prompt" : "first prompt"; // of a difference the first: patterns are not subtracted
    const key = JSON.stringify([view.texts[which], which, Object.keys(view.heads)]);
    if (key !== this.drawn) {
      this.drawn = key;
      this.figures = Object.entries(view.heads).map(([head, rows]) => new Figure(head, prompt, rows[which], view.texts[which]));
      this.place.replaceChildren(...this.figures.map(figure => figure.element));
    } else {
      Object.values(view.heads).forEach((rows, i) => this.figures[i]!.fill(rows[which]));
    }
  }
}

/** One head: a triangle of shares, and the tokens that the pointed-at row reads. */
class Figure {
  readonly element: HTMLElement;
  private readonly words = make("p", "reads note", "Point at a row.");
  private readonly cells: SVGElement[][];
  private readonly scale = make("p", "note");
  private shown: number;
  private most = 0; // the largest share
  private written = ""; // what the words show

  constructor(name: string, prompt: string, private rows: Row[], private readonly texts: string[]) {
    const [layer, head] = name.split("."), size = CELL * rows.length;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${size} ${size}`);
    svg.setAttribute("width", String(size));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Attention of head ${head} of layer ${layer}: rows attend to columns`);
    this.cells = rows.map((row, i) => {
      const line = document.createElementNS(SVG, "g"), cells = row.map((_, j) => cell(i, j));
      line.append(...cells);
      line.addEventListener("pointerenter", () => this.read(i));
      svg.append(line);
      return cells;
    });
    this.shown = rows.length - 1;
    this.fill(rows);
    this.element = make("figure", "plot card", make("figcaption", "", `Head ${head} of layer ${layer}, ${prompt}`));
    this.element.append(svg, this.scale, this.words);
  }

  fill(rows: Row[]): void {
    const most = Math.max(1e-9, ...rows.flat()), same = Math.abs(most - this.most) < 0.02 * most;
    rows.forEach((row, i) => {
      const before = this.rows[i]!;
      row.forEach((step, j) => {
        const box = this.cells[i]![j]!;
        if (!same || !box.style.fill || Math.abs(step - before[j]!) >= 0.5) box.style.fill = `rgb(var(--above) / ${(0.06 + 0.94 * (step / (same ? this.most : most))).toFixed(3)})`;
      });
    });
    this.rows = rows;
    if (!same) this.most = most;
    this.scale.textContent = `The darkest cell is ${percent(most / 255)} of a token’s attention.`;
    this.read(this.shown);
  }

  private read(row: number): void {
    this.shown = row;
    const shares = this.rows[row]!.map(share => share.toFixed(2)), key = JSON.stringify([row, shares, this.most]);
    if (key === this.written) return;
    this.written = key;
    this.words.replaceChildren(...reading(this.texts, this.rows[row]!, row, this.most));
  }
}

function cell(row: number, column: number): SVGElement {
  const box = document.createElementNS(SVG, "rect");
  for (const [key, value] of Object.entries({ x: CELL * column, y: CELL * row, width: CELL - 1, height: CELL - 1 })) box.setAttribute(key, String(value));
  return box;
}

/** "token 5 “x” reads:" and the tokens up to it, the stronger the more it attends to them; the share that no token gets. */
function reading(texts: string[], row: Row, place: number, most: number): (Node | string)[] {
  const rest = 1 - row.reduce((sum, step) => sum + step, 0) / 255;
  const shown = row.map((step, i) => {
    const part = make("code", "token", texts[i]!);
    part.style.background = `rgb(var(--above) / ${(0.4 * (step / most)).toFixed(3)})`;
    part.title = percent(step / 255);
    return part;
  });
  const best = row.indexOf(Math.max(...row)), sink = rest > 0.02 ? `; ${percent(rest)} goes to no token, but to the head’s sink` : "";
  return [make("b", "", `“${texts[place]}” reads `), ...shown, ` most of all “${texts[best]}”, ${percent(row[best]! / 255)}${sink}`];
}
